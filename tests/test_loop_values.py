"""What a step of a loop gives: its numbers, its texts, its pictures; and which steps a user chooses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_graph import PLAN, edited, loop_of, picture, planned

from ksgen_core.errors import KSGenError
from ksgen_core.loop.run import Loop
from ksgen_core.loop.settings import (
    ANY_COUNT,
    CLIPS,
    COUNTED_SEED,
    KEY_IMAGES,
    SAME_SEED,
    FrameRule,
    LoopSettings,
    chosen_steps,
)
from ksgen_core.types import Clip, KeyStep, Plan

# --- which steps are chosen -----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(0, 20)), min_size=1), st.integers(0, 2), st.data())
def test_numbers_and_ranges_are_read(parts, spaces, data):
    ranges = [(first, min(first + more, 99)) for first, more in parts]
    gap = " " * spaces
    text = f"{gap},{gap}".join(
        f"{first}{gap}-{gap}{last}" if first != last or data.draw(st.booleans()) else f"{first}"
        for first, last in ranges
    )
    assert chosen_steps(f"{gap}{text}{gap}", 99) == {k - 1 for first, last in ranges for k in range(first, last + 1)}


@given(st.text(st.sampled_from("0123456789,- .x"), min_size=1, max_size=9), st.integers(1, 99))
@example("9" * 5000, 3)
def test_any_other_text_is_refused_in_words(text, count):
    try:
        chosen = chosen_steps(text, count)
    except KSGenError as error:
        assert "Steps to make: " in str(error)
    else:
        assert chosen and chosen <= set(range(count)) and not set(text) & {".", "x"}


@pytest.mark.parametrize("text", ["0", "7", "3-2", "1-7", "2,", ",", "1;2", "-1", "1-2-3", "1 2", "all", "1.0"])
def test_these_are_no_steps_of_six(text):
    with pytest.raises(KSGenError, match="Steps to make"):
        chosen_steps(text, 6)
    with pytest.raises(KSGenError, match="Steps to make"):
        loop_of(steps=text)


def test_no_text_means_all():
    assert chosen_steps("  ", 3) == {0, 1, 2}


# --- what a step gives ----------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.floats(0.01, 600), st.floats(0.1, 240), st.integers(1, 16))
def test_frame_counts_are_the_nearest_that_the_model_can_make(seconds, fps, frame_step):
    count = LoopSettings(seconds=seconds, fps=fps, frame_step=frame_step).frames(None, FrameRule(5, 17))
    assert count % frame_step == 1 % frame_step and count >= 1 + frame_step
    wished = seconds * fps
    assert abs(count - wished) <= frame_step / 2 + 1e-9 * wished or (count == 1 + frame_step and wished < count)


@given(st.floats(0.01, 600), st.floats(0.1, 240), st.integers(1, 16), st.integers(1, 20))
def test_without_a_step_of_its_own_frame_counts_are_those_of_the_node(seconds, fps, least, distance):
    count = LoopSettings(seconds=seconds, fps=fps, frame_step=0).frames(None, FrameRule(least, distance))
    fewest = least if least > 1 else 1 + distance
    wished = seconds * fps
    assert (count - least) % distance == 0 and count >= fewest > 1
    assert abs(count - wished) <= distance / 2 + 1e-9 * wished or (count == fewest and wished < count)


def test_a_step_may_have_its_own_length():
    loop = loop_of(edited(PLAN, 2, seconds=1.5), fps=16.0, seconds=5.0)
    assert [loop.constants(k, FrameRule(1, 4))["frames"] for k in (0, 1)] == [81, 25]
    assert [loop.constants(k, FrameRule(1, 4))["seconds"] for k in (0, 1)] == [5.0, 1.5]


def test_what_every_step_gives_exactly():
    steps = (KeyStep("wash", before="dirty", after="clean"), KeyStep("peel", seed=9), KeyStep("cut", before="whole"))
    loop = loop_of(Plan("cook", steps), seeds=COUNTED_SEED)
    common = {"seconds": 0.5, "frames": 5, "fps": 8.0, "count": 3}
    said = [
        {"text": "wash", "before": "dirty", "after": "clean", "previous_text": "", "seed": 3},
        {"text": "peel", "before": "clean", "after": "", "previous_text": "wash", "seed": 9},
        {"text": "cut", "before": "whole", "after": "", "previous_text": "peel", "seed": 5},
    ]
    for k in range(3):
        place = {"number": k + 1, "is_first": k == 0, "is_last": k == 2}
        assert loop.constants(k, FrameRule(1, 4)) == {**said[k], **common, **place}


@pytest.mark.parametrize("seeds, wanted", [(SAME_SEED, [3, 3, 9, 3]), (COUNTED_SEED, [3, 4, 9, 6])])
def test_seeds_are_those_of_the_plan_then_those_of_the_settings(seeds, wanted):
    plan = planned("a", "b", "c", "d")
    loop = loop_of(edited(plan, 3, seed=9), seeds=seeds)
    assert [step.seed for step in loop.plan.steps] == wanted == [loop.constants(k, ANY_COUNT)["seed"] for k in range(4)]
    zero = loop_of(edited(plan, 3, seed=0), seeds=seeds)
    assert zero.plan.steps[2].seed == 0, "0 is a seed like others"


def test_pictures_of_a_step():
    def given(loop: Loop, name: str, k: int) -> torch.Tensor:
        found = loop.picture(name, k)
        assert found is not None
        return found

    images = torch.cat([picture(0.1 * k) for k in range(1, 7)])
    loop = loop_of(key_images=images)
    for k in range(6):
        assert given(loop, "key_image", k).equal(images[k : k + 1])
        assert given(loop, "image", k).equal(picture(0.5)) and given(loop, "previous", k).equal(picture(0.5))
    for k in range(5):
        assert given(loop, "next_key_image", k).equal(images[k + 1 : k + 2])
    assert loop.picture("next_key_image", 5) is None
    alone = loop_of(image=None, key_images=images)
    assert given(alone, "image", 3).equal(images[:1]), "the first key image is the initial picture where none came in"
    assert loop_of(image=None).picture("image", 0) is None and loop_of().picture("key_image", 0) is None


def test_a_step_gives_the_frames_of_its_own_clip():
    clips = tuple(Clip.of(picture(0.1 * k).repeat(k, 1, 1, 1), 8.0) for k in range(1, 7))
    given = [loop_of(clips=clips).picture("clip_frames", k) for k in range(6)]
    assert all(one is not None and one.equal(clip.frames) for one, clip in zip(given, clips, strict=True))
    assert loop_of().picture("clip_frames", 0) is None


@pytest.mark.parametrize(
    "given, says",
    [
        ({"image": None, "makes": KEY_IMAGES}, "begins with the initial picture"),
        ({"image": torch.zeros(2, 16, 16, 3)}, "One initial picture is wanted, got 2"),
        ({"key_images": torch.zeros(5, 16, 16, 3)}, "6 steps, but 5 key image"),
        ({"key_images": torch.zeros(6, 16, 24, 3)}, "16x16 pixels, the key images are 24x16"),
        ({"clips": (Clip.of(torch.zeros(1, 16, 16, 3), 8.0),)}, "6 steps, but 1 clip"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(given, says):
    with pytest.raises(KSGenError, match=says):
        loop_of(**given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"makes": "films"}, {"seeds": "any"}, {"seconds": 0}, {"seconds": 601}, {"seconds": float("nan")}, {"fps": 0},
        {"fps": float("inf")}, {"fps": 241}, {"frame_step": -1}, {"frame_step": 1001},
    ],
)  # fmt: skip
def test_settings_refuse_nonsense(wrong):
    """What may come by a link is the user's to mend; what only a menu gives is a caller's bug."""
    with pytest.raises(ValueError if wrong.keys() & {"makes", "seeds"} else KSGenError) as refused:
        LoopSettings(**wrong)
    (name, value), text = *wrong.items(), str(refused.value)
    assert name.replace("_", " ") in text.replace("_", " ") and str(value) in text
    assert LoopSettings().makes == CLIPS


def test_settings_at_the_limits_are_taken():
    least, most = LoopSettings(seconds=0.01, fps=0.01), LoopSettings(seconds=600, fps=240, frame_step=1000)
    assert (least.frames(None, ANY_COUNT), most.frames(None, ANY_COUNT)) == (2, 144001)
