"""The table of families, and Wan, CogVideoX and Stable Video Diffusion: tiny folders read by the code that reads every
family, compared with the bare pipelines' own calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path

import diffusers
import pytest
import tiny_cog_svd
import tiny_wan
import torch
from packaging.version import Version
from tiny_clips import PLAN, TEXTS, picture

from ksgen_core import pixels
from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.clips.checks import check_settings, own_size, side_multiple
from ksgen_core.clips.clip_diffusers import WAYS, ClipModel
from ksgen_core.clips.families import FAMILIES, check_frames, family_of, legal_frames
from ksgen_core.clips.files_diffusers import check_clip_folder
from ksgen_core.clips.render import clip_size, render_clip, render_clips
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.errors import KSGenError
from ksgen_core.memory import MemoryOptions
from ksgen_core.pipeline import StepClip, Update
from ksgen_core.residence_diffusers import settle
from ksgen_core.sampling_diffusers import State
from ksgen_core.types import KeyStep, Plan

KINDS = (*tiny_wan.KINDS, *tiny_cog_svd.KINDS)
WITH_TEXT = [kind for kind in KINDS if not kind.startswith("SVD")]
TOLERANCE = 2e-5
"""Of a pixel value 0..1. Wan's VAE adds up in another order than diffusers' own; the others are equal bit for bit."""

STREAMS = Version(diffusers.__version__) >= Version("0.40") or torch.accelerator.is_available()
"""Before, diffusers brought layers one by one to accelerators alone."""


def folder(kind: str):
    return (tiny_wan if kind in tiny_wan.KINDS else tiny_cog_svd).folder(kind)


@cache
def model_of(kind: str) -> ClipModel:
    """Read once; it is only ever read from."""
    return ClipModel.load(folder(kind))


def fast(model: ClipModel, **more) -> RenderSettings:
    family = model.family
    frames = family.least if family.every else family.frames
    return RenderSettings(**{"updates": 2, "guidance": 1.0, "frames": frames, **more})


def frames_of(model, step=1, image=None, end=None, plan=PLAN, **more):
    end = picture(9, 32, 32) if end is None and model.family.needs_last_frame else end
    image = picture(4, 32, 32) if image is None else image
    *_, done = render_clip(model, image, plan, step, fast(model, **more), end)
    return done.clip.frames


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# --- the table


def counts(family) -> list[int]:
    return list(range(family.least, family.most + 1, family.every)) if family.every else [family.frames]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_seconds_become_the_nearest_legal_number_of_frames(family):
    legal = counts(family)
    for count in range(1, 2 * family.most):
        for fps in (8.0, 16.0):  # their seconds are exact
            seconds = count / fps
            if count > family.most + max(family.every, 1) / 2:
                with pytest.raises(KSGenError, match=f"at most {family.most} frames, that is .* seconds"):
                    legal_frames(family, seconds, fps)
                continue
            got = legal_frames(family, seconds, fps)
            assert got in legal
            assert abs(got - count) == min(abs(n - count) for n in legal)
            check_frames(family, got)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_other_numbers_of_frames_are_refused_with_the_nearest(family):
    legal = counts(family)
    for count in range(0, family.most + 20):
        if count in legal:
            check_frames(family, count)
            continue
        nearest = [n for n in (max((n for n in legal if n < count), default=None),) if n]
        nearest += [n for n in (min((n for n in legal if n > count), default=None),) if n]
        with pytest.raises(KSGenError, match=rf"got {count}\. The nearest .*{' and '.join(map(str, nearest))}\."):
            check_frames(family, count)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_says_what_it_can_do(family):
    check_frames(family, family.frames)
    assert family.pipeline in WAYS and family.least <= family.frames <= family.most
    assert family.text or not family.negative
    assert family.last_frame or not family.needs_last_frame
    RenderSettings(family.updates, family.guidance, family.frames, family.fps, family.negative, family.area)


def test_families_have_names_of_their_own():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


# --- what renders


def test_a_folder_tells_its_family(kind):
    assert family_of(folder(kind)).name == kind == model_of(kind).family.name


def bare(kind: str, guidance: float, image, last=None, negative="low", seed=PLAN.steps[1].seed, fps=None):
    """What the family's own pipeline makes of the same texts and pictures: [F, H, W, 3]."""
    family = family_of(folder(kind))
    with quietly():
        pipe = getattr(diffusers, family.pipeline).from_pretrained(str(folder(kind)))
    pipe.set_progress_bar_config(disable=True)
    frames = family.least if family.every else family.frames
    height, width = image.shape[:2]
    call = {"num_frames": frames, "num_inference_steps": 2, "height": height, "width": width, "output_type": "pt"}
    chance = torch.Generator().manual_seed(seed)
    as_tensor = image.movedim(-1, 0)[None]
    if kind.startswith("Wan"):
        scale = pipe.vae_scale_factor_spatial
        shape = (1, pipe.vae.config.z_dim, (frames - 1) // 4 + 1, height // scale, width // scale)
        with torch.no_grad():
            embeds = [wan_text(pipe, text) for text in (TEXTS[1], negative)]
        call |= {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "guidance_scale": guidance}
        call |= {"latents": torch.randn(shape, generator=chance)}
        call |= {"image": pixels.to_pil(image) if kind.startswith("Wan 2.1") else as_tensor}
        if last is not None:
            call["last_image"] = pixels.to_pil(last) if kind.startswith("Wan 2.1") else last.movedim(-1, 0)[None]
    elif kind.startswith("Cog"):
        call |= {"prompt": TEXTS[1], "negative_prompt": negative, "guidance_scale": guidance, "image": as_tensor}
        call |= {"generator": chance, "max_sequence_length": tiny_cog_svd.LENGTH}
    else:
        call |= {"image": pixels.to_pil(image), "max_guidance_scale": guidance, "generator": chance}
        call |= {"fps": fps or 7, "decode_chunk_size": 8}
    return pipe(**call).frames[0].movedim(1, -1)


def wan_text(pipe, text):
    """Without the pipeline's own cleaning, which wants a package of its own."""
    batch = pipe.tokenizer(text, padding="max_length", max_length=tiny_wan.LENGTH, return_tensors="pt")
    states = pipe.text_encoder(batch.input_ids, batch.attention_mask).last_hidden_state
    return states * batch.attention_mask[..., None]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_it_is_the_pipelines_own_call(kind, guidance):
    model, image = model_of(kind), pixels.on_8_bit_grid(picture(4, 32, 32))
    end = pixels.on_8_bit_grid(picture(9, 32, 32)) if model.family.needs_last_frame else None
    size = clip_size(model, image)
    negative = "low" if model.family.text else None
    ours = frames_of(model, image=image, end=end, guidance=guidance, negative=negative)
    theirs = bare(kind, guidance, pixels.fit(image, *size), end)
    assert ours.shape[1:] == (*size, 3) and ours.dtype == torch.float32
    assert 0 <= ours.min() and ours.max() <= 1 and ours.std() > 0.02
    if kind.startswith("Wan"):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    else:
        assert ours.equal(theirs)


def test_a_clip_ends_in_a_picture_as_in_the_pipelines_own_call():
    model, image, end = model_of("Wan 2.2 14B"), picture(4, 32, 32), picture(9, 32, 32)
    ours = frames_of(model, image=image, end=end, to_next=True)
    torch.testing.assert_close(ours, bare("Wan 2.2 14B", 1.0, image, end), atol=TOLERANCE, rtol=0)
    assert not ours.equal(frames_of(model, image=image, end=end))  # not asked for
    assert not ours.equal(frames_of(model, image=image, end=picture(8, 32, 32), to_next=True))


def test_each_clip_ends_in_the_next_steps_key_image_and_the_last_is_free():
    model, images = model_of("Wan 2.2 14B"), [picture(k, 32, 32) for k in range(3)]
    settings = fast(model, to_next=True)
    events = render_clips(model, images, PLAN, [0, 1, 2], settings)
    made = {event.step: event.clip.frames for event in events if isinstance(event, StepClip)}
    for k in range(3):
        end = images[k + 1] if k < 2 else None
        *_, alone = render_clip(model, images[k], PLAN, k, settings, end)
        assert made[k].equal(alone.clip.frames)
    *_, free = render_clip(model, images[2], PLAN, 2, fast(model))
    assert made[2].equal(free.clip.frames)
    with pytest.raises(KSGenError, match="Step 1 is to end in the key image"):
        render_clip(model, images[0], PLAN, 0, settings)


def test_who_cannot_end_a_clip_says_so_and_who_must_too():
    with pytest.raises(KSGenError, match="Wan 2.2 5B cannot end a clip in a given picture"):
        render_clip(model_of("Wan 2.2 5B"), picture(), PLAN, 0, RenderSettings(to_next=True), picture(1))
    with pytest.raises(KSGenError, match="none for step 3 to end in"):
        render_clip(model_of("Wan 2.1 first/last frame"), picture(), PLAN, 2)


def test_both_experts_work_and_each_is_guided():
    model, seen = ClipModel.load(folder("Wan 2.2 14B")), []
    hooks = [
        getattr(model.pipe, name).register_forward_hook(lambda *_, name=name: seen.append(name))
        for name in model.denoisers
    ]
    plain = frames_of(model, updates=6, guidance=3.0, negative="low")
    assert seen.count("transformer") + seen.count("transformer_2") == 12
    assert seen.count("transformer") >= 2 and seen.count("transformer_2") >= 2
    other = type(model)(model.pipe, model.folder, {"guidance": 3.0, "guidance_2": 1.5, "negative": "low"})
    changed = frames_of(other, updates=6, guidance=None)
    assert not changed.equal(plain)
    assert frames_of(other, updates=6, guidance=3.0).equal(plain)  # what is said goes for both
    for hook in hooks:
        hook.remove()


def test_saved_and_read_again_it_is_the_same(kind, tmp_path):
    model = model_of(kind)
    own = {"updates": 2, "guidance": 2.0, "fps": 6.0}
    type(model)(model.pipe, model.folder, own).save(tmp_path / "again", torch.float32)
    again = ClipModel.load(tmp_path / "again")
    assert again.family == model.family and again.own == own and again.parts().keys() == model.parts().keys()
    assert again.pipe.config.keys() == model.pipe.config.keys()
    assert type(again) is type(model) and again.denoisers == model.denoisers
    frames = fast(model).frames
    *_, done = render_clip(again, picture(4, 32, 32), PLAN, 1, RenderSettings(frames=frames), picture(9, 32, 32))
    assert done.clip.fps == 6.0
    text = {"negative": model.family.negative} if model.family.text else {}
    assert done.clip.frames.equal(frames_of(model, guidance=2.0, fps=6.0, **text))
    with pytest.raises(KSGenError, match="this one|not known|unknown field"):
        (tmp_path / "again/ksgen.json").write_text('{"steps": 3}')
        ClipModel.load(tmp_path / "again")


def test_events_count_through_all_steps_and_show_what_comes(kind):
    model = model_of(kind)
    images = [picture(k, 32, 32) for k in range(2)]
    ends = {1: picture(9, 32, 32)}
    events = list(render_clips(model, images, PLAN, [0, 1], fast(model), ends=ends))
    updates = [event for event in events if isinstance(event, Update)]
    assert [(e.stage, e.steps, e.number, e.total) for e in updates] == [
        ("render", (step,), number, 4) for step, number in ((0, 1), (0, 2), (1, 3), (1, 4))
    ]
    assert [type(event) for event in events] == [Update, Update, StepClip] * 2
    size = clip_size(model, images[0])
    for event in updates:
        assert event.preview is not None and event.preview.shape == (*size, 3)
        assert 0 <= event.preview.min() and event.preview.max() <= 1


def test_a_preview_shows_the_last_frame_alone_as_near_as_a_latent_tells(kind):
    model = ClipModel.load(folder(kind))
    size = clip_size(model, picture(0, 32, 32))
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].movedim(0, -1)
    with torch.no_grad():
        latent = model.way.latent(model, image)
    # Two frames, in the layout that the pipeline hands to its scheduler: [1, Z, f, h, w] or [1, f, Z, h, w].
    between = 1 if kind.startswith("Wan") else 0

    def seen(first, last):
        foreseen = torch.stack([first, last], dim=between)[None]
        return model.preview(State(1, 1, foreseen, foreseen), image)

    right = seen(torch.zeros_like(latent), latent)
    assert seen(latent, latent).equal(right) and not seen(latent, torch.zeros_like(latent)).equal(right)
    flat = image.mean((0, 1)).expand_as(image)
    assert (right - image).square().mean() < 0.95 * (flat - image).square().mean()


def test_what_all_clips_share_is_encoded_once(kind, monkeypatch):
    model = ClipModel.load(folder(kind))
    texts, pictures = [], []
    encode = model.pipe.vae.encode
    monkeypatch.setattr(model.pipe.vae, "encode", lambda *a, **k: (pictures.append(1), encode(*a, **k))[1])
    if model.family.text:
        model.pipe.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    for step in range(3):
        frames_of(model, step, guidance=2.0)
    # One picture more than clips: for the colours of previews.
    assert len(pictures) == 4
    if not model.family.text:
        return
    assert len(texts) == 4  # three steps, and what to stay away from
    before = frames_of(model, guidance=2.0)
    with torch.no_grad():
        model.pipe.text_encoder.get_input_embeddings().weight.mul_(-1)
    assert not frames_of(model, guidance=2.0).equal(before) and len(texts) == 8


@pytest.mark.parametrize("kind", WITH_TEXT)
def test_text_and_negative_text_matter_when_they_should(kind):
    model = model_of(kind)
    other = Plan(PLAN.goal, (PLAN.steps[0], replace(PLAN.steps[1], text="crack the egg")))
    plain = frames_of(model)
    assert not frames_of(model, plan=other).equal(plain)
    assert frames_of(model, negative="dark").equal(plain)
    assert not frames_of(model, guidance=3.0, negative="dark").equal(frames_of(model, guidance=3.0, negative="low"))


def test_seed_picture_and_nothing_else_matter(kind):
    model, image = model_of(kind), picture(4, 32, 32)
    given = image.clone()
    plain = frames_of(model, image=image)
    assert frames_of(model, image=image).equal(plain) and image.equal(given)
    other = Plan(PLAN.goal, (PLAN.steps[0], replace(PLAN.steps[1], seed=99)))
    assert not frames_of(model, plan=other).equal(plain)
    assert not frames_of(model, image=picture(5, 32, 32)).equal(plain)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("Wan")])
def test_noise_that_comes_in_every_update_goes_by_the_seed(kind, tmp_path):
    path = shutil.copytree(folder(kind), tmp_path / "clips")
    edit(path / "model_index.json", scheduler=["diffusers", "FlowMatchLCMScheduler"])
    config = {"_class_name": "FlowMatchLCMScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (path / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    model, chance = ClipModel.load(path), torch.get_rng_state()
    once = frames_of(model, updates=3)
    assert frames_of(model, updates=3).equal(once) and torch.get_rng_state().equal(chance)
    other = Plan(PLAN.goal, (PLAN.steps[0], replace(PLAN.steps[1], seed=99)))
    assert not frames_of(model, updates=3, plan=other).equal(once)


def test_stopping_after_the_first_update_leaves_all_as_it_was(kind):
    model, passes = model_of(kind), []
    whole, threads = frames_of(model), threading.active_count()
    hook = getattr(model.pipe, model.denoisers[0]).register_forward_hook(lambda *_: passes.append(1))
    events = render_clip(model, picture(4, 32, 32), PLAN, 1, fast(model, updates=50), picture(9, 32, 32))
    assert next(events).number == 1
    events.close()
    hook.remove()
    assert len(passes) == 1 and threading.active_count() == threads and torch.is_grad_enabled()
    assert frames_of(model).equal(whole)


def test_half_precision_and_parts_that_come_by_need_give_the_same_film(kind):
    whole = frames_of(model_of(kind), guidance=2.0)
    rough = frames_of(ClipModel.load(folder(kind), dtype=torch.bfloat16), guidance=2.0)
    assert rough.dtype == torch.float32 and (rough - whole).abs().mean() < 0.02
    options = MemoryOptions(offload="layers" if STREAMS else "parts")
    by_need = ClipModel.load(folder(kind), place=lambda model: settle(model, options))
    assert frames_of(by_need, guidance=2.0).equal(whole)


def test_what_loses_in_half_precision_is_read_in_full(kind):
    model = ClipModel.load(folder(kind), dtype=torch.bfloat16)
    found = {name: part.dtype for name, part in model.parts().items()}
    precise = {"vae", "image_encoder"} if kind.startswith("Wan") else set()
    assert found == {name: torch.float32 if name in precise else torch.bfloat16 for name in found}
    assert model.dtype == torch.bfloat16
    ours = frames_of(model, guidance=2.0)
    if kind.startswith("Wan"):  # as diffusers' examples do it
        assert not ours.equal(frames_of(in_one_dtype(ClipModel.load(folder(kind), dtype=torch.bfloat16)), guidance=2.0))


def in_one_dtype(model):
    for part in model.parts().values():
        part.to(model.dtype)
    return model


def test_seconds_of_a_step_win_over_frames():
    model = model_of("Wan 2.2 5B")
    timed = Plan("tea", (KeyStep("stir", seconds=1.0), KeyStep("stir")))
    for step, count in ((0, 9), (1, 5)):
        assert len(frames_of(model, step, picture(0, 32, 32), plan=timed, fps=8.0)) == count
    with pytest.raises(KSGenError, match="at most 121 frames, that is 15.12 seconds at 8 frames"):
        render_clip(model, picture(), Plan("tea", (KeyStep("stir", seconds=20.0),)), 0, fast(model, fps=8.0))


def test_a_model_for_one_size_renders_it_alone():
    model, size = model_of("CogVideoX"), tiny_cog_svd.SIZE
    for shape in ((32, 32), (100, 40), size):
        assert frames_of(model, image=picture(0, *shape)).shape[1:] == (*size, 3)
    assert frames_of(model, image=picture(0), size=size).shape[1:] == (*size, 3)
    with pytest.raises(KSGenError, match="is 48x32, got 64x64. Ask for 48x32"):
        render_clip(model, picture(), PLAN, 0, fast(model, size=(64, 64)))


def test_stable_video_diffusion_is_told_the_rate_and_takes_no_text():
    model, image = model_of("SVD"), pixels.on_8_bit_grid(picture(4, 32, 32))
    assert frames_of(model, image=image, fps=12.0).equal(bare("SVD", 1.0, image, fps=12))
    assert not frames_of(model, image=image, fps=12.0).equal(frames_of(model, image=image))
    with pytest.raises(KSGenError, match="takes no text"):
        render_clip(model, image, PLAN, 0, fast(model, negative="dark"))
    with pytest.raises(KSGenError, match="has 14 frames, got 25. The nearest is 14"):
        render_clip(model, image, PLAN, 0, fast(model, frames=25))


# --- what is said before anything is loaded


def refusal(ask) -> str | None:
    try:
        ask()
    except KSGenError as error:
        return str(error)
    return None


def test_sizes_are_known_from_configs_alone(kind):
    model = model_of(kind)
    assert side_multiple(model.family, folder(kind)) == model.side_multiple
    assert own_size(model.family, folder(kind)) == model.own_size


def test_what_cannot_be_rendered_is_said_before_loading_as_after(kind):
    model, image = model_of(kind), picture(4, 32, 32)
    unit, (height, width) = model.side_multiple, model.own_size or (32, 32)
    asked = [{"negative": "dark"}, {"to_next": True}, {"frames": 3}, {"frames": model.family.frames}]
    asked += [{"size": size} for size in ((height, width), (height + unit, width), (height, width + unit // 2))]
    refused = 0
    for wish in asked:
        settings = fast(model, **wish)
        before = refusal(lambda settings=settings: check_settings(model.family, folder(kind), settings))
        after = refusal(lambda settings=settings: render_clip(model, image, PLAN, 1, settings, picture(9, 32, 32)))
        assert before == after, wish
        refused += before is not None
    assert refused >= 2


def test_a_folder_is_checked_without_loading_it(kind, tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom ksgen_core.clips.checks import check_settings\n"
        "from ksgen_core.clips.files_diffusers import check_clip_folder\n"
        "from ksgen_core.clips.settings import RenderSettings\n"
        f"folder = Path({str(folder(kind))!r})\nfamily = check_clip_folder(folder)\n"
        "check_settings(family, folder, RenderSettings())\nprint(family.name, 'torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{kind} False"
    copy = shutil.copytree(folder(kind), tmp_path / "clips")
    (copy / "ksgen.json").write_text('{"steps": 3}')
    with pytest.raises(KSGenError, match="unknown field"):
        check_clip_folder(copy)
    (copy / "ksgen.json").unlink()
    edit(copy / "model_index.json", scheduler=["my_module", "Scheduler"])
    with pytest.raises(KSGenError, match=r"names my_module.Scheduler as scheduler, which is not known"):
        check_clip_folder(copy)


# --- what is broken


@pytest.fixture
def broken(kind, tmp_path):
    return shutil.copytree(folder(kind), tmp_path / "clips")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_each_missing_part_is_named(kind, broken):
    for name in model_of(kind).family.parts:
        aside = broken / name
        aside.rename(broken / "aside")
        with pytest.raises(KSGenError, match=f"{name}.* is missing"):
            ClipModel.load(broken)
        (broken / "aside").rename(aside)
    index = json.loads((broken / "model_index.json").read_text())
    for name in model_of(kind).family.parts:
        edit(broken / "model_index.json", **{name: [None, None]})
        with pytest.raises(KSGenError, match=f"{name} is missing, which {kind} needs"):
            ClipModel.load(broken)
        edit(broken / "model_index.json", **index)


def test_each_cut_weights_file_is_named(kind, broken):
    for name in model_of(kind).parts():
        file = next((broken / name).glob("*.safetensors"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-100])
        with pytest.raises(KSGenError, match=f"{name}.*cut off"):
            ClipModel.load(broken)
        file.write_bytes(whole)


def test_unknown_classes_are_refused_with_the_known_ones(kind, broken):
    file = broken / "model_index.json"
    index = json.loads(file.read_text())
    edit(file, _class_name="MochiPipeline")
    with pytest.raises(KSGenError, match="MochiPipeline, which is not known.*Wan 2.2 14B.*CogVideoX.*SVD"):
        ClipModel.load(broken)
    edit(file, **index)
    for strange in (["transformers", "BertModel"], ["my_module", "Mine"], ["diffusers", "DiffusionPipeline"]):
        edit(file, vae=strange)
        (broken / "my_module.py").write_text("raise SystemExit('read')")
        with pytest.raises(KSGenError, match=f"names {strange[0]}.{strange[1]} as vae, which is not known"):
            ClipModel.load(broken)


def test_kinds_of_a_class_that_are_not_known_are_refused(tmp_path):
    svd = shutil.copytree(folder("SVD"), tmp_path / "svd")
    edit(svd / "unet/config.json", num_frames=99)
    with pytest.raises(KSGenError, match="of a kind that is not known"):
        ClipModel.load(svd)
    wan = shutil.copytree(folder("Wan 2.2 5B"), tmp_path / "wan")
    edit(wan / "model_index.json", _class_name="WanPipeline")
    assert ClipModel.load(wan).family.name == "Wan 2.2 5B"  # as its full-size folder is called
    edit(wan / "model_index.json", expand_timesteps=False)
    with pytest.raises(KSGenError, match="WanPipeline of a kind that is not known"):
        ClipModel.load(wan)


def test_a_sentencepiece_tokenizer_is_read_or_the_packages_for_it_are_named(tmp_path):
    """As CogVideoX's and LTX's full-size folders have it: no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = shutil.copytree(folder("CogVideoX"), tmp_path / "clips")
    shutil.rmtree(path / "tokenizer")
    (path / "tokenizer").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 10), model_prefix=str(path / "tokenizer/spiece"), vocab_size=60, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": tiny_cog_svd.LENGTH}
    (path / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    edit(path / "model_index.json", tokenizer=["transformers", "T5Tokenizer"])
    try:
        model = ClipModel.load(path)
    except KSGenError as error:
        assert "pip install" in str(error) and "protobuf" in str(error)
        return
    assert len(frames_of(model)) == 9
