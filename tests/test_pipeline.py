"""The pipeline passes on what the stages make, makes only what is missing, and keeps seeds with their steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_stages import PLAN, draw, make_plan, render, retrieve

from ksgen_core import pixels
from ksgen_core.pipeline import KeyImage, Made, Planned, StepClip, Update, Writing, collect, run
from ksgen_core.types import KeyStep, Query

IMAGE = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(5))


def events(**options):
    return run(Query(IMAGE, "make tea"), retrieve, make_plan, draw, render, **options)


def test_a_run_begins_with_its_plan_and_brings_every_picture_and_clip():
    before = IMAGE.clone()
    seen = list(events(seed=3, size=(32, 32)))
    assert IMAGE.equal(before)
    assert isinstance(seen[0], Planned) and [step.seed for step in seen[0].plan.steps] == [3, 4, 5]
    assert [event.step for event in seen if isinstance(event, KeyImage)] == [0, 1, 2]
    assert [event.step for event in seen if isinstance(event, StepClip)] == [0, 1, 2]
    assert sum(isinstance(event, Update) for event in seen) == 1 + 3 * 2
    board = collect(iter(seen))
    assert board.plan.goal == "make tea" and len(board.clips) == 3
    assert board.key_images[0].equal(pixels.fit(IMAGE, 32, 32)), "the first key image is the given picture"
    assert all(pixels.on_8_bit_grid(image).equal(image) for image in board.key_images)


def test_the_same_query_gives_the_same_storyboard_and_another_seed_another():
    assert collect(events(seed=1)) == collect(events(seed=1))
    assert collect(events(seed=1)) != collect(events(seed=2))


def test_without_a_size_the_picture_keeps_its_own():
    assert collect(events()).key_images[1].shape == (32, 48, 3)


def test_only_what_is_missing_is_made_and_comes_out_the_same():
    whole = collect(events(seed=1))
    made = Made({0: whole.key_images[0], 1: whole.key_images[1]}, {0: whole.clips[0]})
    seen = list(events(seed=1, made=made))
    assert [event.step for event in seen if isinstance(event, KeyImage)] == [2]
    assert [event.step for event in seen if isinstance(event, StepClip)] == [1, 2]
    assert collect(iter(seen), made) == whole


def test_redrawing_step_3_alone_gives_the_same_step_3():
    whole = collect(events(seed=1))
    made = Made(dict(enumerate(whole.key_images[:2])), dict(enumerate(whole.clips[:2])))
    assert collect(events(seed=1, made=made), made).key_images[2].equal(whole.key_images[2])


def test_a_chain_starts_every_step_where_the_last_one_ended():
    def refuse(*_):
        raise AssertionError("a chain draws nothing")

    query = Query(IMAGE, "make tea")
    seen = list(run(query, retrieve, make_plan, refuse, render, chain=True))
    board = collect(iter(seen))
    for clip, image in zip(board.clips, board.key_images[1:], strict=False):
        assert image.equal(pixels.on_8_bit_grid(clip.frames[-1]))
    # Stopped after any event and taken up again, the chain comes out the same.
    for count in range(1, len(seen)):
        images = {e.step: e.image for e in seen[:count] if isinstance(e, KeyImage)}
        made = Made(images, {e.step: e.clip for e in seen[:count] if isinstance(e, StepClip)})
        assert collect(run(query, retrieve, make_plan, refuse, render, chain=True, made=made), made) == board


def test_closing_a_run_closes_the_stage_at_work():
    closed = []

    def endless(image, plan, step, end):
        try:
            while True:
                yield Update("clip", (step,), 1, 9)
        finally:
            closed.append(step)

    going = run(Query(IMAGE, "make tea"), retrieve, make_plan, draw, endless)
    for event in going:
        if isinstance(event, Update) and event.stage == "clip":
            break
    going.close()
    assert closed == [0]


def test_a_plan_keeps_the_seeds_it_brings():
    own = replace(PLAN, steps=(KeyStep("a", seed=42), KeyStep("b")))
    first = next(run(Query(IMAGE, "g"), retrieve, lambda *_: iter((Planned(own),)), draw, render, seed=7))
    assert isinstance(first, Planned) and [step.seed for step in first.plan.steps] == [42, 8]


def test_what_the_planner_writes_comes_before_its_plan():
    def write(_query, _examples):
        yield Writing("boil", 1, 9)
        yield Planned(PLAN)

    events = run(Query(IMAGE, "g"), retrieve, write, draw, render)
    assert next(events) == Writing("boil", 1, 9)
    planned = next(events)
    assert isinstance(planned, Planned) and [step.text for step in planned.plan.steps] == [s.text for s in PLAN.steps]


def test_a_planner_that_ends_without_a_plan_is_a_callers_bug():
    with pytest.raises(ValueError, match="Planned"):
        list(run(Query(IMAGE, "g"), retrieve, lambda *_: iter(()), draw, render))


def test_events_without_a_plan_are_a_callers_bug():
    with pytest.raises(ValueError, match="Planned"):
        collect(iter(()))
