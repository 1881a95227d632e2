"""Training a LoRA for clips: encoding, every family's pass, what a LoRA file gives back, resume, costs, refusals."""

from __future__ import annotations

import io
import json

import pytest
import tiny_ltx
import tiny_wan
import torch
from tiny_clips import TEXTS, clips_folder, film

from ksgen_core import pixels, video
from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.errors import KSGenError
from ksgen_core.lora_diffusers import Lora, load_loras
from ksgen_core.training.clip_flow import flow_of
from ksgen_core.training.clip_lora_stage import make_clip, train_lora
from ksgen_core.training.dataset import Record, RecordStep, read_records, write_shards
from ksgen_core.training.encoded_clips import ClipForm, encode_clips, film_of
from ksgen_core.training.loop import Recipe
from ksgen_core.training.lora_adapter import add_lora, linear_layers, save_lora

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
    flow = flow_of(ClipModel.load(folder(), dtype=dtype), expert)
    form = FORMS.get(kind, ClipForm(5, 32, 32, 8.0))
    texts = ("", flow.model.defaults.negative)
    return flow, encode_clips(flow, read_records(data), form, texts, run / "encoded"), form


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


def test_clips_are_encoded_once_and_short_ones_left_out_with_a_word(data, tmp_path):
    told: list[str] = []
    flow = flow_of(ClipModel.load(clips_folder()))
    records = [*read_records(data), record(7, tmp_path, frames=4)]
    form = ClipForm(5, 32, 32, 8.0)

    def encode():
        return encode_clips(flow, records, form, ("",), tmp_path / "encoded", told=told.append)

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
    with pytest.raises(KSGenError, match="fewer --frames"):
        encode_clips(flow, records[-1:], form, ("",), tmp_path / "encoded")


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


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
