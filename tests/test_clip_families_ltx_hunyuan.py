"""LTX-Video, LTX-2 and HunyuanVideo 1.5: tiny folders read by the code that reads every family, compared with the bare
pipelines' own calls."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import diffusers
import pytest
import tiny_hunyuan
import tiny_ltx
import tiny_ltx2
import torch
from tiny_clips import PLAN, TEXTS, picture, weights

from ksgen_core import pixels
from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.clips.checks import check_settings, own_size, side_multiple
from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.clips.files_diffusers import check_clip_folder
from ksgen_core.clips.render import clip_size, render_clip, render_clips
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.errors import KSGenError
from ksgen_core.pipeline import StepClip, Update
from ksgen_core.sampling_diffusers import run_pipeline
from ksgen_core.types import Plan

BLURRED = "worst quality, inconsistent motion, blurry, jittery, distorted"


@dataclass(frozen=True)
class Case:
    """A folder, its family's name, a short clip's frames and those of one latent more, transformer passes an update."""

    folder: Path
    family: str
    frames: int = 9
    more: int = 17
    passes: int = 1

    @property
    def kind(self) -> str:
        return json.loads((self.folder / "model_index.json").read_text())["_class_name"]


CASES = {
    "ltx": lambda: Case(tiny_ltx.folder(), "LTX-Video"),
    "ltx noisy": lambda: Case(tiny_ltx.folder(noisy=True), "LTX-Video"),
    "ltx condition": lambda: Case(tiny_ltx.folder(tiny_ltx.KINDS[1]), "LTX-Video 0.9.5"),
    "ltx2": lambda: Case(tiny_ltx2.folder(), "LTX-2"),
    "ltx2.3": lambda: Case(tiny_ltx2.folder(newer=True), "LTX-2.3", passes=3),
    "hunyuan": lambda: Case(tiny_hunyuan.folder(), "HunyuanVideo 1.5", 5, 9, passes=2),
}
ENDING = ["ltx condition", "ltx2", "ltx2.3"]


@cache
def case(name: str) -> Case:
    return CASES[name]()


@cache
def model_of(name: str) -> ClipModel:
    """Read once; it is only ever read from."""
    return ClipModel.load(case(name).folder)


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def image(seed: int = 0, height: int = 64, width: int = 64):
    return picture(seed, height, width)


def fast(name: str, **more) -> RenderSettings:
    return RenderSettings(**{"updates": 2, "frames": case(name).frames, "guidance": 1.0, **more})


def events(model, k=1, first=None, plan=PLAN, settings=None, **more):
    return list(render_clips(model, [image(4) if first is None else first], plan, [k], settings, **more))


def frames(*args, **more):
    return events(*args, **more)[-1].clip.frames


def bare(name: str, guidance: float, first, last=None, text=TEXTS[1], negative="low", seed=PLAN.steps[1].seed, **more):
    """What the family's own pipeline makes of the same texts and pictures: [F, H, W, 3]."""
    kind = "LTX2ConditionPipeline" if name.startswith("ltx2") and last is not None else case(name).kind
    with quietly():
        pipe = getattr(diffusers, kind).from_pretrained(case(name).folder)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": text, "negative_prompt": negative, "num_frames": case(name).frames, "num_inference_steps": 2}
    call |= {"generator": torch.Generator().manual_seed(seed), "output_type": "pt"}
    if name != "hunyuan":
        call |= {"height": 64, "width": 64, "guidance_scale": guidance, "frame_rate": more.pop("fps")}
    as_tensor, as_pil = (lambda p: p.movedim(-1, 0)[None]), pixels.to_pil
    if name == "hunyuan":
        call["image"] = as_pil(first)
        pipe.guider = pipe.guider.new(guidance_scale=guidance)
    elif name.startswith("ltx2"):
        call |= ltx2_guidance(name, guidance)
        if last is None:
            call["image"] = as_pil(first)
        else:
            from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

            call["conditions"] = [LTX2VideoCondition(as_pil(first), 0), LTX2VideoCondition(as_pil(last), -1)]
    elif name == "ltx condition":
        from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

        call["conditions"] = [LTXVideoCondition(image=as_tensor(first))]
        if last is not None:
            call["conditions"].append(LTXVideoCondition(image=as_tensor(last), frame_index=case(name).frames - 1))
        call |= {"guidance_rescale": 0.7, "image_cond_noise_scale": 0.0}
        call |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
    else:
        call["image"] = as_tensor(first)
        if name == "ltx noisy":
            call |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
    return pipe(**call).frames[0].movedim(1, -1)


def ltx2_guidance(name: str, guidance: float) -> dict[str, object]:
    full = name == "ltx2.3" and guidance > 1
    values = {"audio_guidance_scale": 7.0 if full else guidance, "spatio_temporal_guidance_blocks": [28]}
    values["use_cross_timestep"] = name == "ltx2.3"
    for of in ("", "audio_"):
        values |= {f"{of}stg_scale": 1.0 * full, f"{of}modality_scale": 3.0 if full else 1.0}
        values |= {f"{of}guidance_rescale": 0.7 * full}
    return values


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_it_is_the_pipelines_own_call(name, guidance):
    model = model_of(name)
    assert model.family.name == case(name).family
    ours = frames(model, settings=fast(name, guidance=guidance, negative="low"))
    theirs = bare(name, guidance, image(4), fps=model.family.fps)
    assert ours.shape == (case(name).frames, 64, 64, 3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENDING, indirect=True)
def test_a_clip_ends_in_a_picture_as_in_the_pipelines_own_call(name):
    model, end = model_of(name), image(9)
    settings = fast(name, guidance=3.0, negative="low", to_next=True)
    ours = frames(model, settings=settings, ends={1: end})
    theirs = bare(name, 3.0, image(4), end, fps=model.family.fps)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not ours.equal(frames(model, settings=settings, ends={1: image(10)}))
    assert not ours.equal(frames(model, settings=replace(settings, to_next=False)))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("to_next", [False, True])
@pytest.mark.parametrize("name", ["ltx2", "ltx2.3"], indirect=True)
def test_picture_and_sound_look_at_each_other_as_each_ltx2_was_trained(name, to_next, guidance):
    """By the other's own timestep since 2.3 (diffusers' `use_cross_timestep`); LTX-2 by the one that looks."""
    model, seen = ClipModel.load(case(name).folder), []
    model.pipe.transformer.register_forward_pre_hook(
        lambda _, args, given: seen.append(given.get("use_cross_timestep", False)), with_kwargs=True
    )
    frames(model, settings=fast(name, guidance=guidance, to_next=to_next), ends={1: image(9)})
    assert seen and set(seen) == {name == "ltx2.3"}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ENDING], indirect=True)
def test_the_others_refuse_a_last_frame(name):
    with pytest.raises(KSGenError, match="cannot end a clip in a given picture"):
        events(model_of(name), settings=fast(name, to_next=True), ends={1: image(9)})


def test_saved_and_read_again_it_is_the_same(name, tmp_path):
    model = model_of(name)
    model.save(tmp_path / "clips", torch.float32)
    again = ClipModel.load(tmp_path / "clips")
    before, after = weights(model), weights(again)
    assert before.keys() == after.keys() and all(tensor.equal(after[key]) for key, tensor in before.items())
    settings = fast(name, guidance=2.0)
    assert again.family == model.family and again.defaults == model.defaults
    assert frames(again, settings=settings).equal(frames(model, settings=settings))


def test_updates_come_in_order_with_previews(name):
    found = list(render_clips(model_of(name), [image(0), image(1)], PLAN, [0, 2], fast(name, updates=3)))
    updates = [event for event in found if isinstance(event, Update)]
    counted = [((0,), 1), ((0,), 2), ((0,), 3), ((2,), 4), ((2,), 5), ((2,), 6)]
    assert [(e.steps, e.number, e.total) for e in updates] == [(*count, 6) for count in counted]
    assert [type(e) for e in found] == ([Update] * 3 + [StepClip]) * 2
    for event in updates:
        assert event.preview.shape == (64, 64, 3) and 0 <= event.preview.min() and event.preview.max() <= 1
    assert not updates[0].preview.equal(updates[2].preview)


@pytest.mark.parametrize("name", ENDING, indirect=True)
def test_previews_are_of_the_clip_and_not_of_the_picture_that_it_ends_in(name):
    model = model_of(name)
    latents, given = torch.randn(1, 8, 3, 2, 2), torch.randn(1, 4, 8)
    tokens = model.pipe._pack_latents(latents)
    joined = [given, tokens] if name == "ltx condition" else [tokens, given]  # as the pipelines do it
    assert model.way.last(model, torch.cat(joined, 1), image()).equal(latents[0, :, -1])


@pytest.mark.parametrize("name", ["ltx condition"], indirect=True)
def test_what_is_foreseen_with_a_timestep_for_each_token_is_what_comes_out(name):
    model = model_of(name)
    kept = model.encode(["stir"])["stir"]
    call = {"image": [image().movedim(-1, 0)[None]], "video": [None], "frame_index": [0], "strength": [1.0], **kept}
    call |= {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 3, "guidance_scale": 1.0}
    states = list(run_pipeline(model.pipe, output_type="latent", generator=torch.Generator().manual_seed(0), **call))
    given = model.pipe.vae_spatial_compression_ratio and 4  # 2 x 2 tokens of the first frame, which has no noise
    last = states[-1]
    torch.testing.assert_close(last.foreseen[:, given:], last.latents[:, given:], atol=1e-5, rtol=0)
    assert not torch.allclose(states[0].foreseen[:, given:], states[0].latents[:, given:], atol=1e-2)


def test_the_pipelines_remarks_do_not_stand_between_the_bars(name, monkeypatch):
    from diffusers.utils import logging as of_diffusers

    model, said, before = model_of(name), [], of_diffusers.get_verbosity()
    keeper = logging.Handler()
    keeper.emit = lambda record: said.append(record.getMessage())
    of_diffusers.add_handler(keeper)
    try:
        for _ in render_clip(model, image(4), PLAN, 1, fast(name)):
            assert of_diffusers.get_verbosity() == before  # nor is the caller hushed
        assert said == []
        monkeypatch.setattr(model.pipe, "check_inputs", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            frames(model, settings=fast(name))
        assert of_diffusers.get_verbosity() == before
    finally:
        of_diffusers.remove_handler(keeper)


def test_stopping_ends_the_pipeline_within_one_update(name):
    model, passes = ClipModel.load(case(name).folder), []
    whole = frames(model, settings=fast(name))
    model.pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    running = render_clip(model, image(4), PLAN, 1, fast(name, updates=50, guidance=3.0))
    next(running)
    next(running)
    running.close()
    assert len(passes) == 2 * case(name).passes
    assert frames(model, settings=fast(name)).equal(whole)


def test_text_seed_and_picture_all_matter_and_nothing_else(name):
    model, settings = model_of(name), fast(name)
    plain = frames(model, settings=settings)
    assert frames(model, settings=settings).equal(plain)
    for step in ({"text": "crack the egg"}, {"seed": 99}):
        other = Plan(PLAN.goal, (PLAN.steps[0], replace(PLAN.steps[1], **step)))
        assert not frames(model, plan=other, settings=settings).equal(plain), step
    assert not frames(model, first=image(5), settings=settings).equal(plain)
    assert not frames(model, settings=fast(name, guidance=5.0)).equal(plain)


def test_texts_are_encoded_once_and_only_where_they_are_wanted(name):
    model, asked = ClipModel.load(case(name).folder), []
    model.pipe.text_encoder.register_forward_hook(lambda *_: asked.append(1))
    images, steps = [image(k) for k in range(3)], [0, 1, 2]
    list(render_clips(model, images, PLAN, steps, fast(name)))
    assert len(asked) == 3
    list(render_clips(model, images, PLAN, steps, fast(name, guidance=2.0)))
    assert len(asked) == 4  # the negative text


def test_frames_are_legal(name):
    model, every = model_of(name), model_of(name).family.every
    assert every == (4 if name == "hunyuan" else 8)
    with pytest.raises(KSGenError, match=rf"got {case(name).frames + 1}\b.*{case(name).frames} and {case(name).more}"):
        events(model, settings=fast(name, frames=case(name).frames + 1))
    wished = Plan(PLAN.goal, (replace(PLAN.steps[0], seconds=(case(name).more - 1) / 8),))
    assert len(frames(model, 0, plan=wished, settings=fast(name, fps=8.0))) == case(name).more


def test_it_renders_in_half_precision(name):
    rough = frames(ClipModel.load(case(name).folder, dtype=torch.bfloat16), settings=fast(name))
    assert rough.dtype == torch.float32
    assert (rough - frames(model_of(name), settings=fast(name))).abs().mean() < 0.03


def test_a_missing_or_broken_part_is_named(name, tmp_path):
    parts = model_of(name).family.parts
    for number, part in enumerate(parts):
        folder = shutil.copytree(case(name).folder, tmp_path / str(number))
        shutil.rmtree(folder / part)
        with pytest.raises(KSGenError, match=rf"{part}\b"):
            ClipModel.load(folder)
        index = json.loads((folder / "model_index.json").read_text())
        del index[part]
        (folder / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(KSGenError, match=rf"{part}\b.*is missing"):
            ClipModel.load(folder)
    for part in model_of(name).parts():
        folder = shutil.copytree(case(name).folder, tmp_path / part)
        file = next((folder / part).glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(KSGenError, match=f"{part}.{file.name}"):
            ClipModel.load(folder)


@pytest.mark.parametrize(
    ("name", "other"),
    [("ltx", "LTXPipeline"), ("ltx2", "LTX2Pipeline"), ("ltx2", "LTX2ConditionPipeline")],
    indirect=["name"],
)
def test_folders_that_name_another_pipeline_of_the_family_are_read(name, other, tmp_path):
    """The published folders name the one for texts alone, and components that render nothing."""
    folder = shutil.copytree(case(name).folder, tmp_path / "clips")
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": other}
    if name == "ltx2":
        index["prompt_enhancer"] = ["transformers", "Gemma4ForConditionalGeneration"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = ClipModel.load(folder)
    assert model.family == model_of(name).family
    assert frames(model, settings=fast(name)).equal(frames(model_of(name), settings=fast(name)))


@pytest.mark.parametrize("name", ["ltx"], indirect=True)
def test_noise_of_every_update_goes_by_the_seed(name, tmp_path):
    """As distilled LTX-Video has it; the pipeline would draw it from torch's global numbers."""
    folder = shutil.copytree(case(name).folder, tmp_path / "clips")
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config | {"stochastic_sampling": True}))
    model = ClipModel.load(folder)
    once = frames(model, settings=fast(name, updates=3))
    assert frames(model, settings=fast(name, updates=3)).equal(once)
    assert not frames(model_of(name), settings=fast(name, updates=3)).equal(once)


def test_what_cannot_be_rendered_is_said_before_loading(name):
    model = model_of(name)
    family, folder, unit = model.family, case(name).folder, model.side_multiple
    assert check_clip_folder(folder) == family
    assert side_multiple(family, folder) == unit and own_size(family, folder) is None
    check_settings(family, folder, fast(name, size=(2 * unit, unit), to_next=family.last_frame))
    for wish, says in (({"size": (unit, unit + 1)}, f"multiples of {unit} pixels"), ({"frames": 3}, "got 3")):
        with pytest.raises(KSGenError, match=says):
            check_settings(family, folder, fast(name, **wish))
    if not family.last_frame:
        with pytest.raises(KSGenError, match="cannot end a clip"):
            check_settings(family, folder, fast(name, to_next=True))


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (40, 200), (300, 300), (96, 51), (80, 48)])
def test_hunyuans_clips_have_the_size_that_its_pipeline_chooses(size):
    model, first = model_of("hunyuan"), image(4, *size)
    pipe = model.pipe
    wanted = pipe.video_processor.calculate_default_height_width(height=size[0], width=size[1], target_size=64)
    assert clip_size(model, first) == wanted
    assert clip_size(model, first, wanted) == wanted
    made = frames(model, first=first, settings=fast("hunyuan"))
    assert made.shape == (5, *wanted, 3)
    with pytest.raises(KSGenError, match=f"is {wanted[1]}x{wanted[0]}, got 16x16"):
        clip_size(model, first, (16, 16))


def test_hunyuans_defaults_go_by_its_parts(tmp_path):
    assert model_of("hunyuan").defaults.guidance == 6.0 and model_of("hunyuan").defaults.updates == 50
    folder = shutil.copytree(case("hunyuan").folder, tmp_path / "clips")
    for file, change in (
        ("guider/guider_config.json", {"guidance_scale": 1.0}),
        ("transformer/config.json", {"use_meanflow": True}),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(KSGenError, match="transformer"):
        ClipModel.load(folder)  # that one has weights for it
    (folder / "transformer/config.json").write_bytes((case("hunyuan").folder / "transformer/config.json").read_bytes())
    assert ClipModel.load(folder).defaults.guidance == 1.0
    (folder / "ksgen.json").write_text(json.dumps({"guidance": 2.0, "updates": 7}))
    model = ClipModel.load(folder)
    assert (model.defaults.guidance, model.defaults.updates) == (2.0, 7)
    assert model.pipe.guider.config.guidance_scale == 1.0
