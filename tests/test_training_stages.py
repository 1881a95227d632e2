"""Every training stage on tiny real models: it runs, it changes what it should and nothing else, and it packs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")

from ksgen_core import build
from ksgen_core.clips.wan_diffusers import ClipModel
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.draw import Condition
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.pixels import from_uint8, read_picture
from ksgen_core.tabletop.instances import make
from ksgen_core.tabletop.skills import all_texts
from ksgen_core.training import clip_stages, encoded, image_stages, samples, sdxl_folder, tabletop, wan_folder
from ksgen_core.training.loop import Recipe, fit
from ksgen_core.training.pack import pack
from ksgen_core.training.pool import build_pool
from ksgen_core.types import Plan

SHORT = Recipe(iterations=2, batch=4, rate=1e-3, warm_up=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all stages of both models done, each for two iterations."""
    run = tmp_path_factory.mktemp("run")
    texts = all_texts()
    sdxl_folder.new_sdxl_folder(run, texts, sdxl_folder.TINY)
    wan_folder.new_wan_folder(run, texts, wan_folder.TINY)
    pool = build_pool(run / "train", ("train",), range(8), workers=1)
    model, clips = KeyStepModel.load(run / "keysteps"), ClipModel.load(run / "clips")
    changed: dict[str, set[str]] = {}

    def train(name, events, parts):
        before = {key: {k: v.clone() for k, v in part.state_dict().items()} for key, part in parts.items()}
        list(events)
        after = {key: part.state_dict() for key, part in parts.items()}
        changed[name] = {k for k in parts if any(not after[k][n].equal(v) for n, v in before[k].items())}

    images, films = model.parts(), clips.parts()
    train("vae", image_stages.train_vae(model, pool, run, SHORT), images)
    train("texts", image_stages.train_texts(model, run, dataclasses.replace(SHORT, batch=32)), images)
    latents_only = encoded.encode_pool(model, pool, run, with_tokens=False)
    train("backbone", image_stages.train_backbone(model, pool, latents_only, None, run, SHORT), images)
    changed["adapter before"] = {k for k, v in model.pipe.unet.state_dict().items() if "to_v_ip" in k and v.any()}
    train("encoders", image_stages.train_encoders(model, pool, run, SHORT), images)
    data = encoded.encode_pool(model, pool, run)
    train("skill", image_stages.train_skill(model, data, run, SHORT), images)
    foreseen = encoded.foresee(model, data)
    train("adapter", image_stages.train_backbone(model, pool, data, foreseen, run, SHORT), images)
    train("clip_vae", clip_stages.train_clip_vae(clips, pool, run, dataclasses.replace(SHORT, iterations=4)), films)
    film = torch.rand(1, 5, 32, 32, 3)
    before = clips.encode_frames(film)
    train("clip_decoder", clip_stages.train_clip_decoder(clips, pool, run, SHORT), films)
    changed["latents of clip_decoder"] = set() if clips.encode_frames(film).equal(before) else {"latents"}
    train("clips", clip_stages.train_clips(clips, run, SHORT, shards=1, shard_size=2), films)
    pack(model, clips, run / "models")
    return {"folder": run, "model": model, "pool": pool, "data": data, "foreseen": foreseen, "changed": changed}


def test_each_stage_trains_its_own_parts_alone(run):
    assert run["changed"] == {
        "vae": {"vae"},
        "texts": {"text_encoder", "text_encoder_2"},
        "backbone": {"unet"},
        "adapter before": set(),
        "encoders": {"image_encoder", "resampler", "skill_transformer"},  # the latter's copy of the zero image's tokens
        "skill": {"skill_transformer"},
        "adapter": {"unet"},
        "clip_vae": {"vae"},
        "clip_decoder": {"vae"},
        "latents of clip_decoder": set(),
        "clips": {"transformer", "text_encoder"},
    }


def test_latents_have_mean_0_and_deviation_1(run):
    latents = run["data"].latents.float()
    assert latents.mean((0, 2, 3)).abs().max() < 0.3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.3


def test_folding_the_statistics_keeps_what_the_vae_draws(tmp_path):
    sdxl_folder.new_sdxl_folder(tmp_path, ["a cup"], sdxl_folder.TINY)
    model = KeyStepModel.load(tmp_path / "keysteps")
    images = torch.rand(6, 32, 32, 3)
    with torch.no_grad():
        before = model.decode_latents(model.encode_latents(images))
        image_stages.normalise_latents(model, images)
        latents = model.encode_latents(images)
        after = model.decode_latents(latents)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_foreseen_tokens_are_those_of_the_roll_out_and_the_first_is_true(run):
    data, model, foreseen = run["data"], run["model"], run["foreseen"]
    i = next(k for k, texts in enumerate(data.text_of) if len(texts) > 2)
    numbers, row = torch.tensor([data.text_of[i]]), data.first[i]
    with torch.no_grad(), encoded.bf16(model):
        out = model.skill_transformer.roll_out(
            data.tokens[row : row + 1].float(), data.text[numbers], data.mask[numbers]
        )
    assert foreseen[row].equal(data.tokens[row])
    torch.testing.assert_close(foreseen[row + 2].float(), out[0, 2].float(), atol=0.05, rtol=0)


def test_the_backbone_overfits_one_batch(run):
    """Two pictures, always the same: the loss must fall well below that of the untrained model."""
    model, data = run["model"], run["data"]
    rows = torch.tensor([data.first[0] + 1, data.first[1] + 1])
    clean, noise = data.latents[rows].float(), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    condition = Condition(data.text[rows * 0], data.pooled[rows * 0], data.tokens[rows].float(), clean)
    unet = model.pipe.unet
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    optimiser = torch.optim.Adam(unet.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = (model.predict(0.5 * clean + 0.87 * noise, torch.tensor([500, 500]), condition) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    unet.load_state_dict(before)
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_packed_is_a_models_folder_with_library_and_demo(run):
    models = build.open_folder(run["folder"] / "models")
    assert models.key_steps().parts().keys() >= {"unet", "skill_transformer", "resampler"}
    assert models.clips().parts().keys() == {"transformer", "vae", "text_encoder"}
    plans = models.library()
    assert len(plans) > 50 and all(isinstance(plan, Plan) for plan in plans)
    assert (run["folder"] / "models/demo.png").stat().st_size > 1000
    assert json.loads((run["folder"] / "models/demo.json").read_text())["goal"]


def test_encoded_clips_are_those_of_the_vae_and_are_made_again_only_for_another(run, tmp_path):
    clips = ClipModel.load(run["folder"] / "clips")
    shard = clip_stages.encode_clips(clips, tmp_path, 0, 1)
    (path,) = tmp_path.rglob("*.pt")
    film = from_uint8(make("train", 0).film(0))[None]
    with torch.no_grad():
        true = clips.encode_frames(film)[0]
    # Half precision: of latents with a deviation of 1.
    assert (shard["latents"][0].float() - true).abs().mean() < 0.02
    written = path.stat().st_mtime_ns
    clip_stages.encode_clips(clips, tmp_path, 0, 1)
    assert path.stat().st_mtime_ns == written
    with torch.no_grad():
        clips.pipe.vae.quant_conv.bias += 1
    moved = clip_stages.encode_clips(clips, tmp_path, 0, 1)
    assert len(list(tmp_path.rglob("*.pt"))) == 2
    assert not moved["latents"].equal(shard["latents"])


def test_a_digest_tells_weights_apart_in_any_dtype():
    layer = torch.nn.Linear(3, 2)
    once = encoded.digest(layer)
    assert encoded.digest(layer) == once
    assert encoded.digest(layer.bfloat16()) != once
    layer.float()
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert encoded.digest(layer) != once


def test_crops_are_pieces_of_the_pictures_and_the_generator_chooses_them(run):
    pool = run["pool"]
    crops = pool.crops(3, 64, torch.Generator().manual_seed(1))
    assert crops.equal(pool.crops(3, 64, torch.Generator().manual_seed(1)))
    images = from_uint8(pool.images)
    for crop in crops:
        corners = [(y, x) for y in range(0, 65, 8) for x in range(0, 65, 8)]
        assert any((images[:, y : y + 64, x : x + 64] == crop).flatten(1).all(1).any() for y, x in corners)


def test_parts_are_trained_kept_and_packed_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tabletop, "MINI", sdxl_folder.TINY)
    monkeypatch.setattr(tabletop, "WAN_MINI", wan_folder.TINY)
    monkeypatch.setattr(tabletop, "TRAIN_INSTANCES", 4)
    with pytest.raises(KSGenError, match="--only vae"):
        list(tabletop.train_part("backbone", tmp_path, SHORT))
    for part in ("vae", "texts", "backbone"):
        list(tabletop.train_part(part, tmp_path, SHORT))
    tabletop.pack_models(tmp_path, tmp_path / "packed")
    packed, trained = build.open_folder(tmp_path / "packed").key_steps(), load_file(tmp_path / "backbone.safetensors")
    state = packed.pipe.unet.state_dict()
    assert {f"unet/{key}" for key in state} == trained.keys()
    name = "conv_out.weight"
    torch.testing.assert_close(state[name], trained[f"unet/{name}"], atol=1e-3, rtol=1e-3)
    assert not packed.skill_transformer.to_tokens.weight.any()


def test_a_run_starts_from_packed_models_and_trains_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tabletop, "TRAIN_INSTANCES", 2)
    tabletop.start_from(tmp_path, run["folder"] / "models")
    given = build.open_folder(run["folder"] / "models").key_steps().pipe.unet.state_dict()
    # So small a step that what it starts from is still to be seen.
    list(tabletop.train_part("adapter", tmp_path, dataclasses.replace(SHORT, rate=1e-6)))
    for key, value in load_file(tmp_path / "adapter.safetensors").items():
        torch.testing.assert_close(value, given[key.removeprefix("unet/")].float(), atol=1e-4, rtol=0)
    with pytest.raises(KSGenError, match="begun already. Leave --start out"):
        tabletop.start_from(tmp_path, run["folder"] / "models")


def test_a_stage_that_cannot_be_packed_leaves_the_former_one(run, tmp_path):
    shutil.copytree(run["folder"] / "models", tmp_path / "models")
    model, clips = KeyStepModel.load(run["folder"] / "keysteps"), ClipModel.load(run["folder"] / "clips")
    model.folder = tmp_path / "no such tokenizers"  # the disk fails in the middle of the folder
    with pytest.raises(KSGenError, match="cannot be written"):
        pack(model, clips, tmp_path / "models")
    before = {
        p.relative_to(run["folder"]): p.read_bytes() for p in (run["folder"] / "models").rglob("*") if p.is_file()
    }
    after = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "models").rglob("*") if p.is_file()}
    assert before == after


def test_a_part_killed_in_writing_stays_what_it_was_and_a_cut_one_is_named(run, tmp_path, monkeypatch):
    def cut_off(tensors, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    tabletop._keep(run["model"], tmp_path, "vae")
    before = (tmp_path / "vae.safetensors").read_bytes()
    monkeypatch.setattr(tabletop, "save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        tabletop._keep(run["model"], tmp_path, "vae")
    assert (tmp_path / "vae.safetensors").read_bytes() == before
    (tmp_path / "vae.safetensors").write_bytes(before[:-1])
    with pytest.raises(KSGenError, match="vae.safetensors is cut off .*--only vae"):
        tabletop._take(run["model"], tmp_path, "vae")


@pytest.mark.parametrize(("owner", "name", "call"), [(tabletop, "_keep", 7), (shutil, "copytree", 2)])
def test_a_start_killed_on_the_way_is_repeated_and_nothing_else(run, tmp_path, monkeypatch, owner, name, call):
    """Killed between the parts of the two models, and in the middle of the first model's folder."""
    whole, calls = getattr(owner, name), count(1)

    def killed(*given, **options):
        if next(calls) == call:
            raise KeyboardInterrupt
        return whole(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            tabletop.start_from(tmp_path, run["folder"] / "models")
    monkeypatch.setattr(tabletop, "TRAIN_INSTANCES", 2)
    for part in ("vae", "clips"):
        with pytest.raises(KSGenError, match="Repeat that with --start"):
            list(tabletop.train_part(part, tmp_path, SHORT))
    assert not (tmp_path / "models").exists()
    tabletop.start_from(tmp_path, run["folder"] / "models")
    for stage in ("keysteps", "clips"):
        assert (tmp_path / "models" / stage / "model_index.json").is_file()


@pytest.fixture(scope="module")
def started(run, tmp_path_factory):
    """A run that started from these models and has its pool; nobody writes into it."""
    folder = tmp_path_factory.mktemp("started") / "run"
    tabletop.start_from(folder, run["folder"] / "models")
    build_pool(folder / "train", tabletop.TRAIN_SPLITS, range(2), workers=1)
    return folder


@pytest.mark.parametrize("part", samples.PARTS)
def test_pictures_on_the_way_change_nothing_that_is_trained(started, part, tmp_path, monkeypatch):
    monkeypatch.setattr(tabletop, "TRAIN_INSTANCES", 2)
    for stages in (image_stages, clip_stages):
        monkeypatch.setattr(stages, "fit", partial(fit, report=1))
    monkeypatch.setattr(clip_stages, "train_clips", partial(clip_stages.train_clips, shards=1, shard_size=1))
    losses, weights = {}, {}
    for every, pictures in ((2, ["000002.png", "000003.png"]), (1000, ["000003.png"])):
        monkeypatch.setattr(samples, "EVERY", every)
        folder = tmp_path / str(every)
        shutil.copytree(started, folder)
        events = tabletop.train_part(part, folder, dataclasses.replace(SHORT, iterations=3))
        losses[every] = [progress.losses for progress in events]
        weights[every] = load_file(folder / f"{part}.safetensors")
        assert sorted(path.name for path in (folder / f"{part}-pictures").iterdir()) == pictures
    assert len(losses[2]) == 3 and losses[2] == losses[1000]
    assert all(tensor.equal(weights[1000][key]) for key, tensor in weights[2].items())


def _modes(model):
    modules = [module for part in model.parts().values() for module in part.modules()]
    return [module.training for module in modules], [p.requires_grad for m in modules for p in m.parameters()]


@pytest.mark.parametrize("part", samples.PARTS)
def test_pictures_show_the_true_ones_above_what_the_model_makes_and_leave_it_as_it_was(run, part, tmp_path):
    stage, kind = ("clips", ClipModel) if part.startswith("clip") else ("keysteps", KeyStepModel)
    model = kind.load(run["folder"] / stage)
    for name in tabletop.HOLDS[part]:
        model.parts()[name].train().requires_grad_(True)
    next(model.parts()[name].children()).eval()
    modes, state = _modes(model), torch.get_rng_state()
    weights = {f"{n}/{k}": v.clone() for n, p in model.parts().items() for k, v in p.state_dict().items()}

    samples.write_pictures(part, model, tmp_path, 7)
    (path,) = tmp_path.rglob("*.*")
    assert path == tmp_path / f"{part}-pictures/000007.png"
    assert _modes(model) == modes and torch.get_rng_state().equal(state)
    assert all(weights[f"{n}/{k}"].equal(v) for n, p in model.parts().items() for k, v in p.state_dict().items())

    grid = read_picture(path)
    instance = make("train", 6000)
    step, side = len(instance.run.steps) // 2, grid.shape[0] // 2
    frame = instance.film(step)[4] if stage == "clips" else instance.first_frame(step, side)
    assert grid[:side, :side].equal(from_uint8(frame))
    assert grid[side:].std() > 0 and not grid[side:].equal(grid[:side])
    samples.write_pictures(part, model, tmp_path, 8)
    assert path.with_name("000008.png").read_bytes() == path.read_bytes()


def test_parts_that_draw_nothing_write_no_pictures(run, tmp_path):
    samples.write_pictures("skill", run["model"], tmp_path, 1)
    assert not list(tmp_path.iterdir())
