"""Memory runs out while key images are drawn and clips rendered: less is taken, it is told, nothing made is lost."""

from __future__ import annotations

import json

import pytest
import torch
from small_stages import make_plan, retrieve
from tiny_clips import picture

from ksgen_core import build, storyboard
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.policies import DrawSettings
from ksgen_core.pipeline import Fallback, KeyImage, StepClip, run
from ksgen_core.types import Query

DRAW = DrawSettings(updates=2, batch=2)
RENDER = RenderSettings(updates=2, frames=5)


def hungry(part: torch.nn.Module, when):
    """Let the component ask for more memory than any machine has, by torch's own allocator, at the calls of `when`."""
    calls = [0]

    def ask(_module, args, kwargs):
        calls[0] += 1
        if when(calls[0], args, kwargs):
            torch.empty(2**60)

    return part.register_forward_pre_hook(ask, with_kwargs=True)


class Stages(build.OneStage):
    """One stage at a time, and what happens when its model comes."""

    def __init__(self, **on_load):
        super().__init__()
        self.on_load = on_load

    def get(self, name, load):
        model = super().get(name, load)
        if name.replace(" ", "_") in self.on_load:
            self.on_load.pop(name.replace(" ", "_"))(model)
        return model


def storyboard_of(stage):
    models = build.embedded()
    return run(
        Query(picture(3, 128, 128), "make tea"),
        retrieve,
        make_plan,
        build.drawer(models, DRAW, stage=stage),
        build.renderer(models, RENDER, stage=stage),
        size=(128, 128),
    )


@pytest.fixture(scope="module")
def bare():
    events = list(storyboard_of(build.OneStage()))
    images = {event.step: event.image for event in events if isinstance(event, KeyImage)}
    return images, {event.step: event.clip.frames for event in events if isinstance(event, StepClip)}


def test_pictures_that_do_not_fit_together_are_drawn_in_halves(bare):
    # With guidance two pictures are four rows.
    stage = Stages(key_images=lambda model: hungry(model.pipe.unet, lambda _, args, __: len(args[0]) > 2))
    events = list(storyboard_of(stage))
    fallbacks = [event for event in events if isinstance(event, Fallback)]
    assert [(event.stage, event.steps, event.rung) for event in fallbacks] == [("draw", (1, 2), "batch")]
    images = {event.step: event.image for event in events if isinstance(event, KeyImage)}
    assert set(images) == set(bare[0])
    for step, image in images.items():
        assert (image - bare[0][step]).abs().max() < 1.5 / 255  # float sums change with the batch


def test_a_clip_that_does_not_fit_is_begun_again_with_less_and_the_folder_says_so(bare, tmp_path):
    stage = Stages(clips=lambda model: hungry(model.pipe.transformer, lambda call, *_: call in (2, 3)))
    for _ in storyboard.keep(storyboard_of(stage), tmp_path / "board"):
        pass
    told = json.loads((tmp_path / "board/memory.json").read_text(encoding="utf-8"))
    assert [(event["stage"], event["steps"], event["rung"]) for event in told] == [
        ("render", [0], "tiling"),
        ("render", [0], "parts"),
    ]
    assert all(event["text"] for event in told)
    events = list(storyboard_of(Stages(clips=lambda model: hungry(model.pipe.transformer, lambda call, *_: call == 2))))
    clips = {event.step: event.clip.frames for event in events if isinstance(event, StepClip)}
    assert all(clips[step].equal(frames) for step, frames in bare[1].items())  # 128 pixels are one tile


def test_what_was_made_before_the_last_rung_stays_and_is_gone_on_with(tmp_path):
    # Every call after the first clip's two.
    stage = Stages(clips=lambda model: hungry(model.pipe.transformer, lambda call, *_: call > 2))
    with pytest.raises(KSGenError, match="not enough memory.*tiling, parts, layers, fp8"):
        for _ in storyboard.keep(storyboard_of(stage), tmp_path / "board"):
            pass
    made = storyboard.StoryboardFolder(tmp_path / "board", storyboard.read_plan(tmp_path / "board/plan.json")).made()
    assert set(made.key_images) == {0, 1, 2} and set(made.clips) == {0}


def test_the_model_of_a_stage_is_gone_before_the_next_is_loaded():
    import gc
    import weakref

    seen = []

    class Watching(build.OneStage):
        def get(self, name, load):
            def loading():
                gc.collect()
                seen.append((name, [kept() is not None for _, kept in models]))
                model = load()
                models.append((name, weakref.ref(model)))
                return model

            return super().get(name, loading)

    models = []
    for _ in storyboard_of(Watching()):
        pass
    assert seen == [("key images", []), ("clips", [False])]
