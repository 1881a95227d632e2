"""Training a LoRA for clips: encoding, every family's pass, what a LoRA file gives back, resume, costs, refusals."""

from __future__ import annotations

import dataclasses
import io
import json
from fractions import Fraction

import numpy as np
import pytest
import tiny_ltx
import tiny_wan
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file
from tiny_clips import TEXTS, clips_folder, film
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel
from two_processes import launch_two

from ksgen_core import pixels, video
from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.errors import KSGenError
from ksgen_core.lora_diffusers import Lora, load_loras
from ksgen_core.training import clip_costs, clip_lora_stage, clips_lora, encoded_clips
from ksgen_core.training.clip_flow import FLOWS, WanFlow, flow_of
from ksgen_core.training.clip_lora_stage import make_clip, train_lora, validate
from ksgen_core.training.clips_lora import main
from ksgen_core.training.dataset import Record, RecordStep, read_records, write_shards
from ksgen_core.training.encoded_clips import ClipForm, encode_clips, film_of
from ksgen_core.training.loop import Recipe
from ksgen_core.training.lora_adapter import add_lora, linear_layers, save_lora, save_native

RECIPE = Recipe(iterations=4, batch=2, rate=1e-2, warm_up=1)


def clip_bytes(frames, fps, tmp):
    video.write_lossless(tmp / "clip.mkv", frames, fps)
    return (tmp / "clip.mkv").read_bytes()


def record(number, tmp, *, steps=2, frames=9, fps=8.0, side=32, split="train", clips=True):
    films = [film(10 * number + k, frames, side) for k in range(steps)]

    def read(name):
        k, _, ending = name.partition(".")
        if ending == "mkv":
            return clip_bytes(films[int(k)], fps, tmp)
        file = io.BytesIO()
        pixels.to_pil(films[int(k)][0]).save(file, "PNG")
        return file.getvalue()

    told = tuple(
        RecordStep(TEXTS[(number + k) % len(TEXTS)], f"{k}.png", f"{k}.mkv" if clips else None) for k in range(steps)
    )
    return Record(f"r{number}", "make tea", told, split, read, f"record {number}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("data")
    records = [*(record(n, tmp) for n in range(3)), record(3, tmp, clips=False), record(4, tmp, split="validation")]
    write_shards(tmp / "set", records, 3)
    return tmp / "set"


FOLDERS = {
    "embedded": (clips_folder, 1),
    "Wan 2.1": (lambda: tiny_wan.folder("Wan 2.1"), 1),
    "Wan 2.2 14B": (lambda: tiny_wan.folder("Wan 2.2 14B"), 1),
    "Wan 2.2 14B, low noise": (lambda: tiny_wan.folder("Wan 2.2 14B"), 2),
    "Wan 2.2 5B": (lambda: tiny_wan.folder("Wan 2.2 5B"), 1),
    "LTX-Video": (lambda: tiny_ltx.folder(tiny_ltx.KINDS[0]), 1),
}
FORMS = {"LTX-Video": ClipForm(9, 64, 64, 8.0)}


def prepared(kind, data, run, dtype=torch.float32):
    """A flow, its encoded clips and their form."""
    folder, expert = FOLDERS[kind]
    form = FORMS.get(kind, ClipForm(5, 32, 32, 8.0))
    flow = flow_of(ClipModel.load(folder(), dtype=dtype), expert, form.fps)
    texts = (flow.model.defaults.negative,)
    return flow, encode_clips(flow, read_records(data), form, texts, run / "encoded")[0], form


def put_lora(flow, rank=4, alpha=8.0):
    layers = linear_layers(flow.transformer, flow.targets, all_of_them=False)
    return add_lora(flow.transformer, rank, alpha, layers), layers


def words(data, run, *more, model=None):
    given = ["--data", data, "--clip-model", model or clips_folder(), "--out", run / "lora.safetensors", "--run", run]
    small = ["--frames", 5, "--rank", 2, "--iterations", 4, "--batch", 2, "--warm-up", 1, "--report-every", 1]
    often = ["--validate-every", 2, "--clips-every", 0, "--keep-every", 2]
    return [str(word) for word in (*given, *small, *often, *more)]


def log_of(run):
    return [json.loads(line) for line in (run / "lora.log.jsonl").read_text().splitlines()]


def test_a_clip_is_brought_to_rate_length_and_size(tmp_path):
    fast = record(0, tmp_path, frames=20, fps=24.0)
    got = film_of(fast, 1, ClipForm(5, 32, 32, 8.0))
    wanted = pixels.from_uint8(pixels.cut_to_uint8(film(1, 20)[::3][:5]))
    assert got is not None and torch.equal(got, wanted)
    assert film_of(fast, 0, ClipForm(8, 16, 24, 8.0)) is None
    small = film_of(fast, 0, ClipForm(5, 16, 32, 24.0))
    assert small is not None and small.shape == (5, 16, 32, 3)
    with pytest.raises(KSGenError, match=r"'0.mkv' of record 0.*24 frames a second, 30 are wanted"):
        film_of(fast, 0, ClipForm(5, 32, 32, 30.0))


@pytest.mark.parametrize(("rate", "wanted"), [(Fraction(24000, 1001), 24.0), (Fraction(30000, 1001), 30.0)])
def test_a_clip_of_television_is_one_of_the_next_whole_rate(rate, wanted, tmp_path):
    """Of a short clip every frame is used, at its place; of a long one a frame in a thousand comes twice."""
    frames = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 3), np.uint8)
    content = clip_bytes(frames, rate, tmp_path)
    television = Record("tv", "look", (RecordStep("look", "0.png", "0.mkv"),), read=lambda _: content)

    def numbers(count):
        got = film_of(television, 0, ClipForm(count, 16, 16, wanted))
        return None if got is None else [int((pixels.to_uint8(f) == frames).all((1, 2, 3)).argmax()) for f in got]

    assert numbers(49) == list(range(49))
    assert numbers(601) == [*range(501), *range(500, 600)]
    assert numbers(602) is None


def test_tabletop_has_clips_to_train_on(tmp_path):
    pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")
    from ksgen_core.tabletop.instances import make
    from ksgen_core.training import dataset_tabletop as tabletop
    from ksgen_core.training.pool import TRAIN_SPLITS

    given = ["--out", str(tmp_path / "set"), "--instances", "1", "--workers", "1", "--clips"]
    assert tabletop.main(given) == 0
    first = read_records(tmp_path / "set")[0]
    film = pixels.from_uint8(make(TRAIN_SPLITS[0], 0).film(1))
    assert torch.equal(film_of(first, 1, ClipForm(17, 128, 128, 8.0)), film)
    assert torch.equal(first.image(1), film[0])


def test_clips_are_encoded_once_and_short_ones_left_out_with_a_word(data, tmp_path):
    told: list[str] = []
    flow = flow_of(ClipModel.load(clips_folder()))
    records = [*read_records(data), record(7, tmp_path, frames=4)]
    form = ClipForm(5, 32, 32, 8.0)

    def encode():
        return encode_clips(flow, records, form, (), tmp_path / "encoded", told=told.append)[0]

    clips = encode()
    assert len(clips.steps) == 8 and [r.id for r, _ in clips.only("validation").steps] == ["r4", "r4"]
    assert any("2 of 10 clips are shorter than 5 frames" in line and "record 7" in line for line in told)
    first = clips.clips([3])
    true = film_of(*clips.steps[3], form)
    torch.testing.assert_close(first["clean"], flow.encode(true)["clean"].half()[None])
    encoded = flow.model.encode([TEXTS[0]])[TEXTS[0]]["prompt_embeds"]
    assert torch.equal(clips.text([TEXTS[0]])["prompt_embeds"], encoded)
    told.clear()
    again = encode()
    assert again.seen == clips.seen and not any("encoded" in line for line in told)
    told.clear()
    # Other held-out clips, or one in front, make no other training of the rest, and only what is new is encoded.
    more = [record(8, tmp_path, split="validation"), *(r for r in records if r.id != "r4")]
    others, unused = encode_clips(flow, more, form, (), tmp_path / "encoded", told=told.append)
    assert told[0] == "encoded 1/1 of the clips that are new" and not unused
    assert others.only("train").seen == clips.only("train").seen != clips.seen
    reworded = tuple(dataclasses.replace(step, text=TEXTS[0]) for step in records[1].steps)
    changed = [records[0], dataclasses.replace(records[1], steps=reworded), *records[2:]]
    other, _ = encode_clips(flow, changed, form, (), tmp_path / "encoded")
    assert other.seen != clips.seen and torch.equal(other.clips([3])["clean"], first["clean"])
    with pytest.raises(KSGenError, match="fewer --frames"):
        encode_clips(flow, records[-1:], form, (), tmp_path / "encoded")


@pytest.mark.parametrize("kind", FOLDERS)
def test_an_untrained_lora_changes_nothing_and_a_batch_is_learned(kind, data, tmp_path):
    flow, clips, form = prepared(kind, data, tmp_path)
    words = [record.steps[k].text for record, k in clips.steps[:2]]
    given, text = clips.clips([0, 1]), clips.text(words)
    sigma = flow.draw_sigmas(torch.tensor([0.2, 0.7]), 3.0)
    noise = torch.randn(given["clean"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare = flow.losses(given, text, sigma, noise)
    before = make_clip(flow, clips, words[0], film(0, 5, form.width)[0], form)
    lora, _ = put_lora(flow)
    assert torch.equal(flow.losses(given, text, sigma, noise), bare)
    assert torch.equal(make_clip(flow, clips, words[0], film(0, 5, form.width)[0], form), before)
    frozen = {name: p.clone() for name, p in flow.transformer.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.Adam(lora.parameters(), lr=2e-2)
    for _ in range(25):
        optimiser.zero_grad()
        flow.losses(given, text, sigma, noise).mean().backward()
        optimiser.step()
    with torch.no_grad():
        assert flow.losses(given, text, sigma, noise).mean() < 0.9 * bare.mean()
    assert all(torch.equal(frozen[name], p) for name, p in flow.transformer.named_parameters() if name in frozen)


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in FOLDERS), ("embedded", torch.bfloat16)]
)
def test_a_saved_lora_renders_as_the_model_in_training(kind, dtype, data, tmp_path):
    flow, clips, form = prepared(kind, data, tmp_path, dtype)
    lora, layers = put_lora(flow)
    image, text = film(5, 5, form.width)[0], TEXTS[1]
    untrained = make_clip(flow, clips, text, image, form)
    list(train_lora(flow, lora, clips, tmp_path, RECIPE, shift=3.0, report=4))
    lora.to(dtype)  # diffusers loads a LoRA in the precision of the layers that it goes on
    trained = make_clip(flow, clips, text, image, form)
    assert not torch.equal(trained, untrained)
    save_lora(tmp_path / "lora.safetensors", flow.transformer, torch.float32, {"rank": 4})
    fresh = flow_of(ClipModel.load(FOLDERS[kind][0](), dtype=dtype), FOLDERS[kind][1])
    load_loras(fresh.model, [Lora(tmp_path / "lora.safetensors", 1.0, FOLDERS[kind][1])])
    assert torch.equal(make_clip(fresh, clips, text, image, form), trained)


def test_experts_are_trained_on_their_own_range_of_noise():
    model = ClipModel.load(tiny_wan.folder("Wan 2.2 14B"))
    # Of evenly spread draws, shifted by 3, three in four are below 0.9: 0.9 = 3 u / (1 + 2 u) at u = 0.75.
    high, low, whole = ((torch.arange(count) + 0.5) / count for count in (250, 750, 1000))
    high, low = (flow_of(model, expert).draw_sigmas(u, 3.0) for expert, u in ((1, high), (2, low)))
    whole = flow_of(ClipModel.load(clips_folder())).draw_sigmas(whole, 3.0)
    assert high.min() >= 0.9 > low.max()
    assert (whole > 0.5).float().mean() == pytest.approx(0.75, abs=0.001)
    # Both together are the whole.
    torch.testing.assert_close(torch.cat([low, high]), whole)
    with pytest.raises(KSGenError, match="expert 2 is not there"):
        flow_of(ClipModel.load(clips_folder()), 2)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_pass_is_the_one_that_renders(kind, data, tmp_path, monkeypatch):
    """The velocity in training is what the pipeline's own loop gets of its transformer, at its first update."""
    monkeypatch.setattr(
        encoded_clips, "halved", lambda tensor: tensor
    )  # what is kept in half precision differs by that
    flow, clips, form = prepared(kind, data, tmp_path)
    text = TEXTS[0]
    image = film_of(*clips.steps[0], form)[0]
    calls = []
    hook = flow.transformer.register_forward_hook(
        lambda _, args, kwargs, out: calls.append((args, kwargs, out[0].clone())), with_kwargs=True
    )
    if flow.sigmas[0] == 0 and flow.sigmas[1] < 1:
        flow.model.pipe.register_to_config(boundary_ratio=2.0)  # the first update asks the expert for little noise
    make_clip(flow, clips, text, image, form)
    hook.remove()
    args, kwargs, out = calls[0]
    joined = kwargs.get("hidden_states", args[0] if args else None)
    timestep = kwargs["timestep"].float()
    sigma = timestep.max()[None] / 1000
    given, words = clips.clips([0]), clips.text([text])
    assert all(value.dtype == torch.float32 for value in given.values())
    if kind == "LTX-Video":
        pipe = flow.model.pipe
        size = *given["clean"].shape[2:], 1, 1
        noisy = pipe._unpack_latents(joined[-1:], *size)
        out = pipe._unpack_latents(out[-1:], *size)  # the first is that of the negative text
    else:
        noisy = joined[:1, : given["clean"].shape[1]]
    with torch.no_grad():
        got = flow.velocity(noisy, sigma, given, words)
    torch.testing.assert_close(got, out, rtol=0, atol=1e-4 * float(out.abs().max()))


def test_a_killed_training_goes_on_bit_for_bit(data, tmp_path):
    def training(run, halt=None):
        flow, clips, _ = prepared("Wan 2.2 5B", data, tmp_path)
        lora, _ = put_lora(flow)
        events = train_lora(
            flow, lora, clips.only("train"), run, RECIPE, shift=3.0, drop_text=0.5, report=1, keep=2, seen="a"
        )
        for progress in events:
            if progress.iteration == halt:
                events.close()
                return None
        held_out = validate(flow, clips.only("validation"), 3.0, 8)
        assert held_out == validate(flow, clips.only("validation"), 3.0, 8)
        return {k: v.clone() for k, v in lora.state_dict().items()}, held_out, log_of(run)

    whole = training(tmp_path / "whole")
    assert training(tmp_path / "broken", halt=3) is None  # one after the last state
    resumed = training(tmp_path / "broken")
    assert all(torch.equal(whole[0][k], v) for k, v in resumed[0].items()) and whole[1] == resumed[1]
    assert [entry["velocity"] for entry in whole[2]] == [entry["velocity"] for entry in resumed[2]]


def test_a_batch_in_parts_is_a_batch_at_once_and_checkpointing_changes_nothing(data, tmp_path):
    def trained(name, at_once, checkpointing=False):
        flow, clips, _ = prepared("embedded", data, tmp_path)
        lora, _ = put_lora(flow)
        if checkpointing:
            flow.transformer.enable_gradient_checkpointing()
        recipe = Recipe(iterations=2, batch=3, rate=1e-3, warm_up=1)
        losses = [
            progress.losses["velocity"]
            for progress in train_lora(flow, lora, clips, tmp_path / name, recipe, shift=3.0, at_once=at_once, report=1)
        ]
        return losses, torch.cat([weight.detach().flatten() for weight in lora])

    losses, weights = trained("whole", 3)
    for name, other in (("parts", trained("parts", 2)), ("again", trained("again", 3, True))):
        assert other[0] == pytest.approx(losses, rel=1e-5), name
        # AdamW's first updates are the signs of gradients, however small.
        assert (weights - other[1]).abs().gt(1e-4).float().mean() < 0.01, name


def test_frozen_weights_in_8_bits_are_trained_on_as_what_they_are_rounded_to():
    def trained(fp8):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=128, in_channels=36, out_channels=16, text_dim=64, ffn_dim=256,
            num_layers=2,
        ).to(torch.bfloat16)  # fmt: skip
        for layer in transformer.blocks.modules():
            if not fp8 and isinstance(layer, torch.nn.Linear):
                for weight in layer.parameters():
                    weight.data = weight.data.to(torch.float8_e4m3fn).to(torch.bfloat16)
        lora = add_lora(transformer, 4, 4.0, linear_layers(transformer, WanFlow.targets, all_of_them=False), fp8=fp8)
        transformer.enable_gradient_checkpointing()
        for weight in lora:
            weight.data += 0.01
        draw = torch.Generator().manual_seed(0)
        noisy = torch.randn(1, 36, 3, 8, 8, generator=draw).bfloat16()
        text = torch.randn(1, 8, 64, generator=draw).bfloat16()
        out = transformer(noisy, torch.tensor([500.0]), text, return_dict=False)[0]
        out.float().square().mean().backward()
        return transformer, out, torch.cat([weight.grad.flatten() for weight in lora])

    transformer, out, gradient = trained(True)
    assert transformer.blocks[0].attn1.to_q.base_layer.weight.dtype == torch.float8_e4m3fn
    _, rounded, its_gradient = trained(False)
    assert gradient.dtype == torch.float32 and gradient.abs().max() > 0
    assert torch.equal(out, rounded) and torch.equal(gradient, its_gradient)


def test_the_command_trains_validates_shows_and_writes_what_the_product_loads(data, tmp_path, capsys):
    run = tmp_path / "run"
    more = ("--iterations", 30, "--rate", 0.01, "--report-every", 10, "--validate-every", 10, "--clips-every", 30)
    native = tmp_path / "native.safetensors"
    assert main(words(data, run, *more, "--ema", 0.5, "--alpha", 4, "--native", native)) == 0
    out = capsys.readouterr().out
    assert "6 clips to train on, 2 to validate" in out and "24 GB" in out
    log = log_of(run)
    figures = [(e["iteration"], e["validation"]) for e in log if "validation" in e]
    assert [iteration for iteration, _ in figures] == [0, 10, 20, 30]
    trained = [e["velocity"] for e in log if "velocity" in e]
    assert len(trained) == 3 and figures[-1][1] < figures[0][1]
    picture = pixels.read_picture(run / "lora-clips/000030.png")
    assert picture.shape == (4 * 32, 5 * 32, 3)
    true = film_of(read_records(data)[-1], 0, ClipForm(5, 32, 32, 8.0))
    assert torch.equal(picture[:32], torch.cat(list(true), dim=1))
    # Both files are the same LoRA, for the same loader.
    flow, clips, form = prepared("embedded", data, tmp_path)
    films = []
    for path in (run / "lora.safetensors", native):
        model = ClipModel.load(clips_folder())
        load_loras(model, [Lora(path)])
        films.append(make_clip(flow_of(model), clips, TEXTS[0], true[0], form))
    torch.testing.assert_close(films[0], films[1], rtol=0, atol=1e-5)
    # The command's own picture shows what the file renders.
    shown = picture[32:64]
    record = clips.only("validation").steps[0][0]
    model = ClipModel.load(clips_folder())
    load_loras(model, [Lora(run / "lora.safetensors")])
    made = make_clip(flow_of(model), clips, record.steps[0].text, true[0], form)
    assert torch.equal(shown, pixels.on_8_bit_grid(torch.cat(list(made), dim=1)))
    # A finished run is not done again.
    state = (run / "lora.state").stat().st_mtime_ns
    assert main(words(data, run, *more, "--ema", 0.5, "--alpha", 4)) == 0
    assert (run / "lora.state").stat().st_mtime_ns == state and log_of(run) == log


@pytest.mark.slow
def test_two_processes_train_as_one_does(data, tmp_path):
    """float32: sums in another order differ in their last bits, and Adam makes more of them."""
    more = ("--iterations", 6, "--batch", 3, "--drop-text", 0.3, "--validate-every", 6)
    assert main(words(data, tmp_path / "one", *more)) == 0
    said = launch_two("ksgen_core.training.clips_lora", *words(data, tmp_path / "two", *more))
    assert said.count("in 2 processes") == said.count("wrote") == 1 and said.count("validation after 6") == 1
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [e["iteration"] for e in one] == [e["iteration"] for e in two]
    losses = [[e["velocity"] for e in log if "velocity" in e] for log in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 6


def test_names_for_comfyui_are_wans_own(data, tmp_path):
    flow, _, _ = prepared("Wan 2.1", data, tmp_path)
    put_lora(flow)
    save_native(tmp_path / "native.safetensors", flow.transformer, torch.float16, {})
    tensors = load_file(tmp_path / "native.safetensors")
    layers = {name.rpartition(".lora_")[0] or name.rpartition(".")[0] for name in tensors}
    block = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k")
    block += ("cross_attn.v", "cross_attn.o", "cross_attn.k_img", "cross_attn.v_img", "ffn.0", "ffn.2")
    count = flow.transformer.config.num_layers
    assert layers == {f"diffusion_model.blocks.{n}.{name}" for n in range(count) for name in block}
    for layer in layers:
        down, up, alpha = (tensors[f"{layer}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert down.shape[0] == up.shape[1] == 4 and float(alpha) == 4.0 and not up.any()


def test_what_cannot_be_trained_is_refused_in_words(data, tmp_path):
    def refused(match, *more, model=None, source=data):
        with pytest.raises(KSGenError, match=match):
            main(words(source, tmp_path / "run", *more, model=model))

    refused(f"cannot be trained here.*{', '.join(FLOWS)}", model=tiny_ltx.folder(tiny_ltx.KINDS[1]), source=data)
    refused("cannot be trained here", model=tiny_wan.folder("Wan 2.1 first/last frame"))
    refused("expert 2 is not there", "--expert", 2)
    refused("has 5, 9, 13, ... 81 frames, got 6", "--frames", 6)
    refused("multiples of 16 pixels", "--size", "40x32")
    refused("8 frames a second, 16 are wanted", "--fps", 16)
    refused("fewer --frames", "--frames", 13)
    refused("no linear layer 'to_x'.*to_q", "--target", "to_q", "to_x")
    refused("at least 1", "--rank", 0)
    refused("add --gradient-checkpointing", "--fp8")
    for option, value in (("--iterations", 0), ("--warm-up", 0), ("--ema", 1.5), ("--max-norm", 0)):
        refused("do not make a training", option, value)
    refused("--report-every is at least 1, got 0", "--report-every", 0)
    refused("--clips-every is at least 0, got -1", "--clips-every", -1)
    refused("--drop-text is a share", "--drop-text", 1.5)
    refused("does not end in .safetensors", "--native", tmp_path / "lora.pt")
    refused("--device 'abacus'", "--device", "abacus")
    native = ("--native", tmp_path / "n.safetensors", "--frames", 9)
    refused("--native is for Wan", *native, model=tiny_ltx.folder(tiny_ltx.KINDS[0]))
    write_shards(tmp_path / "none", [record(0, tmp_path, clips=False)])
    refused("no clip to train on", source=tmp_path / "none")
    assert not (tmp_path / "run" / "lora.state").exists()
    assert main(words(data, tmp_path / "run")) == 0
    refused("is of another training", "--rank", 3)


def test_a_dry_run_says_what_it_takes_and_makes_nothing(data, tmp_path, capsys):
    assert main(words(data, tmp_path, "--dry-run", "--target", "to_q")) == 0
    out = capsys.readouterr().out
    assert "Computed, not measured" in out and "24 GB" in out and "80 GB" in out and "(8 tokens)" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_computes_on_the_processor_whatever_trains(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clips_lora, "device_named", lambda _: "meta")  # a device that has no numbers
    assert main(words(data, tmp_path, "--dry-run")) == 0
    assert "Computed, not measured" in capsys.readouterr().out


def test_clips_for_which_there_is_no_memory_do_not_cost_the_training(data, tmp_path, monkeypatch, capsys):
    where = []

    def filled(flow, *_):
        where.append({str(next(part.parameters()).device) for part in flow.model.parts().values()})
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(clip_lora_stage, "make_clip", filled)
    assert main(words(data, tmp_path / "run", "--clips-every", 2)) == 0
    out = capsys.readouterr().out
    assert len(where) == out.count("no memory to show what is learned") == 3 and "--clips-every 0" in out
    assert [e["iteration"] for e in log_of(tmp_path / "run") if "velocity" in e] == [1, 2, 3, 4]
    assert (tmp_path / "run/lora.safetensors").is_file()


def test_costs_say_where_making_clips_has_no_room():
    """Wan 2.2 14B has another expert, which comes to the device for that."""
    for sizes, fp8, without in ((clip_costs.WAN_14B, True, True), (clip_costs.WAN_5B, False, False)):
        *_, small, large = clip_costs.spoken(sizes, (33, 272, 480), 32, 4, 2000, fp8=fp8).splitlines()
        assert ("fits" in small, "with --clips-every 0" in small) == (True, without)
        assert "fits" in large and "--clips-every" not in large


@pytest.mark.parametrize("times", [False, True])
def test_computed_memory_and_work_are_those_of_a_real_pass(times):
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, in_channels=36, out_channels=16, text_dim=64, ffn_dim=1024,
        num_layers=4,
    ).to(torch.bfloat16)  # fmt: skip
    lora = add_lora(transformer, 8, 8.0, linear_layers(transformer, WanFlow.targets, all_of_them=False))
    sizes = clip_costs.Sizes("tiny", 4, 256, 1024, 32, 0, times, 0, (1, 2, 2))
    tokens = sizes.tokens(3, 16, 16)
    assert tokens == 192 and clip_costs.lora_parameters(sizes, 8) == sum(weight.numel() for weight in lora)
    given = (
        torch.randn(1, 36, 3, 16, 16, dtype=torch.bfloat16),
        torch.full((1, tokens), 500.0) if times else torch.tensor([500.0]),
        torch.randn(1, 32, 64, dtype=torch.bfloat16),
    )
    weights = {p.untyped_storage().data_ptr() for p in transformer.parameters()}
    for checkpointing in (False, True):
        costs = clip_costs.costs_of(sizes, 8, tokens, 1, checkpointing, False)
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        kept: dict[int, int] = {}
        alive = []

        def keep(tensor, kept=kept, alive=alive):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = transformer(*given, return_dict=False)[0]
        block = clip_costs.block_activations(sizes, tokens, 8) if checkpointing else 0
        rope = 2 * 4 * 128 * tokens + 2 * 32 * 256  # and the texts: little at full size, not counted
        assert costs.activations - block + rope * checkpointing == pytest.approx(sum(kept.values()), rel=0.1)
        del out
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            transformer(*given, return_dict=False)[0].float().square().mean().backward()
        assert costs.flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_wans_parts_have_the_stated_sizes():
    def size(part):
        return sum(p.numel() for p in part.parameters())

    with torch.device("meta"):
        texts = UMT5Config(
            vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        encoder = size(UMT5EncoderModel(texts))
        large = WanTransformer3DModel(num_attention_heads=40, in_channels=36, text_dim=4096, ffn_dim=13824)
        small = WanTransformer3DModel(
            num_attention_heads=24, in_channels=48, out_channels=48, text_dim=4096, ffn_dim=14336, num_layers=30
        )
        vae = AutoencoderKLWan(
            base_dim=160, decoder_base_dim=256, z_dim=48, patch_size=2, temperal_downsample=[False, True, True],
            is_residual=True, in_channels=12, out_channels=12, scale_factor_spatial=16, latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        )  # fmt: skip
        parts = [(large, AutoencoderKLWan(), clip_costs.WAN_14B), (small, vae, clip_costs.WAN_5B)]
    for transformer, vae, sizes in parts:
        c = transformer.config
        assert (size(transformer), encoder + size(vae)) == (sizes.parameters, sizes.others)
        assert sizes.shown == size(vae) + (size(transformer) if sizes is clip_costs.WAN_14B else 0)
        assert (c.num_layers, 128 * c.num_attention_heads, c.ffn_dim) == (sizes.layers, sizes.width, sizes.ff_width)
