"""Which steps of a loop run and which are remembered, with real results on disk; a host is not needed for it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from small_graph import SmallGraph, look, loop_graph, node, out, picture, run_loop

from ksgen_core.cache import ResultCache
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
from ksgen_core.types import KeyStep, Plan

TEXTS = ["wash", "peel", "cut", "boil", "season", "serve"]
PLAN = Plan("cook potatoes", tuple(map(KeyStep, TEXTS)))
SHORT = LoopSettings(seconds=0.5, fps=8.0, seed=3)
"""Clips of 5 frames."""


def graph_of(carry: bool = False, **changes: Any) -> SmallGraph:
    """A body that paints each step's text and seed on the initial picture, or on what the step before left."""
    inputs = {"image": out("previous" if carry else "image"), "text": out("text"), "seed": out("seed"), **changes}
    body = {
        "paint": node("Paint", **inputs),
        "frames": node("Repeat", image=["paint", 0], amount=out("frames")),
    }
    return loop_graph(body, ["frames", 0])


def loop_of(
    plan: Plan = PLAN, settings: LoopSettings = SHORT, image: Any = 0.5, key_images: Any = None, **more
) -> Loop:
    given = picture(image) if isinstance(image, float) else image
    return Loop.of(plan, replace(settings, **more), given, key_images)


def edited(plan: Plan, number: int, **changed: Any) -> Plan:
    """The plan with something else in step `number` (from 1)."""
    steps = list(plan.steps)
    steps[number - 1] = replace(steps[number - 1], **changed)
    return replace(plan, steps=tuple(steps))


def planned(*texts: str) -> Plan:
    return Plan("cook potatoes", tuple(map(KeyStep, texts)))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """No power fails during these tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def cache(tmp_path):
    return ResultCache(tmp_path / "results")


def ran(
    cache: ResultCache, plan: Plan = PLAN, carry: bool = False, graph: SmallGraph | None = None, **more
) -> list[int]:
    """The steps (from 1) that ran."""
    return run_loop(graph or graph_of(carry), loop_of(plan, **more), cache)[0]


ALL = [1, 2, 3, 4, 5, 6]


# --- what runs after a change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry", [False, True])
def test_all_steps_run_once_and_never_again(cache, carry):
    assert ran(cache, carry=carry) == ALL
    assert ran(cache, carry=carry) == []
    assert ran(ResultCache(cache.root), carry=carry) == [], "nothing is remembered but on disk"


@pytest.mark.parametrize("carry, again", [(False, [4]), (True, [4, 5, 6])])
@pytest.mark.parametrize("change", [{"text": "steam"}, {"seed": 99}, {"seconds": 1.0}])
def test_a_step_that_was_changed_runs_with_those_that_carry_from_it(cache, carry, again, change):
    ran(cache, carry=carry)
    assert ran(cache, edited(PLAN, 4, **change), carry) == again
    assert ran(cache, PLAN, carry) == [], "the old results are still there"


def test_what_a_body_does_not_use_of_a_step_makes_nothing_run(cache):
    ran(cache)
    assert ran(cache, edited(edited(PLAN, 2, after="peeled"), 3, before="whole")) == []
    assert ran(cache, graph=graph_of(state=out("before")), plan=edited(PLAN, 2, after="peeled")) == ALL
    assert ran(cache, graph=graph_of(state=out("before")), plan=edited(PLAN, 2, after="raw")) == [3]


@pytest.mark.parametrize("carry", [False, True])
def test_a_step_that_is_appended_runs_alone(cache, carry):
    ran(cache, carry=carry)
    assert ran(cache, planned(*TEXTS, "eat"), carry) == [7]


@pytest.mark.parametrize("carry, again", [(False, []), (True, [2, 3, 4, 5])])
def test_without_a_deleted_step_only_those_that_carried_from_it_run(cache, carry, again):
    ran(cache, carry=carry)
    assert ran(cache, planned("wash", *TEXTS[2:]), carry) == again


@pytest.mark.parametrize("carry, again", [(False, []), (True, [2, 3, 4, 5, 6])])
def test_steps_in_another_order(cache, carry, again):
    ran(cache, carry=carry)
    assert ran(cache, planned("wash", "cut", "peel", *TEXTS[3:]), carry) == again


@pytest.mark.parametrize("carry, again", [(False, [3]), (True, [3, 4, 5, 6, 7])])
def test_a_step_that_is_inserted(cache, carry, again):
    ran(cache, carry=carry)
    assert ran(cache, planned("wash", "peel", "rinse", *TEXTS[2:]), carry) == again


@pytest.mark.parametrize("carry", [False, True])
def test_a_run_that_stopped_goes_on_where_it_stopped(cache, carry):
    loop = loop_of()
    assert run_loop(graph_of(carry), loop, cache, stop_after=4)[0] == [1, 2, 3, 4]
    assert ran(cache, carry=carry) == [5, 6]


@pytest.mark.parametrize("carry, again", [(False, [3]), (True, [3])])
def test_a_result_that_is_damaged_is_made_again_and_what_carries_from_it_stays(cache, carry, again):
    """It is made from the same, so it has the same name."""
    ran(cache, carry=carry)
    clip = cache.find(look(graph_of(carry), loop_of(), cache)[2].key).folder / "clip.mkv"
    clip.write_bytes(clip.read_bytes()[:-9])
    assert ran(cache, carry=carry) == again


@pytest.mark.parametrize(
    "graph", [graph_of(strength=0.4), graph_of(model="m"), graph_of().changed("paint", "Tint")], ids=["1", "2", "3"]
)
def test_a_change_of_the_body_makes_all_run(cache, graph):
    ran(cache)
    assert ran(cache, graph=graph) == ALL


def test_another_picture_rate_or_seed_makes_all_run_and_an_equal_picture_nothing(cache):
    ran(cache)
    assert ran(cache, image=picture(0.5).clone()) == []
    assert ran(cache, image=0.6) == ALL
    assert ran(cache, fps=8.001) == ALL, "the frames are as many, but the clips last another time"
    assert ran(cache, seed=4) == ALL
    assert ran(cache, name="other") == [], "the name of a loop finds locked steps; what makes a result is elsewhere"


def test_equal_steps_share_one_result(cache):
    assert ran(cache, planned("stir", "wait", "stir")) == [1, 2]
    assert ran(cache, planned("stir", "stir", "wait"), carry=True) == [2, 3], (
        "the second one is carried on from the first"
    )


def test_nothing_is_remembered_behind_a_node_that_always_changes(cache):
    graph = graph_of().changed("paint", "Dice")
    assert ran(cache, graph=graph) == ALL and ran(cache, graph=graph) == ALL


def test_two_plans_in_turn_keep_both_results(cache):
    other = planned("draw", "paint")
    assert ran(cache) == ALL and ran(cache, other) == [1, 2]
    assert ran(cache) == [] and ran(cache, other) == []


def test_a_key_image_that_changed_makes_the_steps_run_that_use_it(cache):
    graph = graph_of(image=out("key_image"), model=out("next_key_image"))
    graph.nodes["paint"]["inputs"].pop("model")
    images = torch.cat([picture(0.1 * k) for k in range(1, 7)])
    assert ran(cache, graph=graph, key_images=images) == ALL
    other = images.clone()
    other[2] = 0
    assert ran(cache, graph=graph, key_images=other) == [3]
    both = loop_graph({"blend": node("Blend", a=out("key_image"), b=out("next_key_image"))}, ["blend", 0])
    assert ran(cache, graph=both, key_images=images) == ALL
    assert ran(cache, graph=both, key_images=other) == [2, 3], "step 2 leads to the key image of step 3"


# --- key images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry, again", [(False, [4]), (True, [4, 5, 6])])
def test_the_first_key_image_is_the_initial_picture_and_does_not_run(cache, carry, again):
    graph = loop_graph({"paint": graph_of(carry).nodes["paint"]}, ["paint", 0])
    numbers, made = run_loop(graph, loop_of(makes=KEY_IMAGES), cache)
    assert numbers == [2, 3, 4, 5, 6] and made[0].equal(picture(0.5)) and all(len(one) == 1 for one in made)
    assert ran(cache, edited(PLAN, 1, text="rinse"), graph=graph, makes=KEY_IMAGES) == []
    assert ran(cache, edited(PLAN, 4, text="steam"), graph=graph, makes=KEY_IMAGES) == again


def test_key_images_and_clips_of_the_same_body_are_not_mixed_up(cache):
    graph = loop_graph({"paint": graph_of().nodes["paint"]}, ["paint", 0])
    ran(cache, graph=graph, makes=KEY_IMAGES)
    assert ran(cache, graph=graph) == ALL


# --- locked steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry", [False, True])
def test_a_locked_step_keeps_its_result_and_so_do_those_that_carry_from_it(cache, carry):
    _, before = run_loop(graph_of(carry), loop_of(), cache)
    locked = edited(PLAN, 3, lock=True)
    assert ran(cache, locked, carry) == []
    rolled = edited(locked, 3, seed=99)
    numbers, after = run_loop(graph_of(carry), loop_of(rolled), cache)
    assert numbers == [] and all(map(torch.equal, after, before))
    assert ran(cache, edited(rolled, 3, lock=False), carry) == ([3, 4, 5, 6] if carry else [3])


@pytest.mark.parametrize("carry, again", [(False, [1, 2, 4, 5, 6]), (True, [1, 2, 4, 5, 6])])
def test_a_locked_step_keeps_its_result_when_the_body_changes(cache, carry, again):
    locked = edited(PLAN, 3, lock=True)
    _, before = run_loop(graph_of(carry), loop_of(locked), cache)
    changed = graph_of(carry, strength=0.25)
    numbers, after = run_loop(changed, loop_of(locked), cache)
    assert numbers == again and [k for k in range(6) if after[k].equal(before[k])] == [2]
    assert ran(cache, locked, graph=changed) == []
    first_three = replace(locked, steps=locked.steps[:3])
    assert ran(cache, first_three, graph=graph_of(carry, strength=0.75)) == [1, 2]
    assert ran(cache, edited(locked, 3, lock=False), graph=changed) == ([3, 4, 5, 6] if carry else [3])


def test_what_carries_from_a_locked_step_begins_where_that_one_ended(cache):
    locked = edited(PLAN, 1, lock=True)
    run_loop(graph_of(True), loop_of(edited(locked, 1, seed=1)), cache)
    _, rolled = run_loop(graph_of(True), loop_of(locked), cache)
    _, fresh = run_loop(graph_of(True), loop_of(edited(PLAN, 1, seed=1)), ResultCache(cache.root.parent / "fresh"))
    assert all(map(torch.equal, rolled, fresh))


def test_a_step_that_was_locked_before_it_ran_runs(cache):
    assert ran(cache, edited(PLAN, 2, lock=True)) == ALL
    assert len(cache.locked_keys()) == 1
    assert ran(cache, edited(PLAN, 2, lock=True, seed=9)) == []


def test_a_lock_holds_the_result_of_the_last_run_not_of_the_first(cache):
    ran(cache)
    _, second = run_loop(graph_of(), loop_of(edited(PLAN, 2, seed=5)), cache)
    _, locked = run_loop(graph_of(strength=0.1), loop_of(edited(PLAN, 2, lock=True)), cache)
    assert locked[1].equal(second[1])
    ran(cache)  # back to the first one: its result is remembered again
    _, locked = run_loop(graph_of(strength=0.1), loop_of(edited(PLAN, 2, lock=True)), cache)
    assert not locked[1].equal(second[1])


def test_a_locked_step_whose_result_is_gone_is_made_again(cache):
    locked = edited(PLAN, 2, lock=True)
    ran(cache, locked)
    cache.clear(cache.locked_keys(), locked=True)
    assert ran(cache, edited(locked, 2, seed=9)) == [2]


def test_locks_of_loops_with_different_names_are_apart(cache):
    locked = edited(PLAN, 2, lock=True)
    ran(cache, locked, name="a")
    assert ran(cache, edited(locked, 2, seed=9), name="a") == []
    assert ran(cache, edited(locked, 2, seed=9), name="b") == [2]


def test_equal_texts_have_locks_of_their_own(cache):
    plan = edited(edited(planned("stir", "stir", "stir"), 1, seed=1), 3, seed=3)
    _, before = run_loop(graph_of(), loop_of(plan), cache)
    plan = edited(edited(plan, 1, lock=True), 3, lock=True)
    _, after = run_loop(graph_of(strength=0.1), loop_of(plan), cache)
    assert [one.equal(other) for one, other in zip(before, after, strict=True)] == [True, False, True]


# --- chosen steps ---------------------------------------------------------------------------------------------------


def test_only_chosen_steps_run_and_the_others_are_there_if_they_were_made(cache):
    numbers, made = run_loop(graph_of(), loop_of(steps="2, 5"), cache)
    assert numbers == [2, 5] and [one is not None for one in made] == [False, True, False, False, True, False]
    numbers, made = run_loop(graph_of(), loop_of(steps="1"), cache)
    assert numbers == [1] and [one is not None for one in made] == [True, True, False, False, True, False]
    assert ran(cache) == [3, 4, 6]


def test_a_chosen_step_carries_from_the_last_one_that_is_there(cache):
    _, made = run_loop(graph_of(True), loop_of(steps="1, 4"), cache)
    _, short = run_loop(graph_of(True), loop_of(planned("wash", "boil")), ResultCache(cache.root.parent / "other"))
    assert made[0].equal(short[0]) and made[3].equal(short[1])
    assert ran(cache, carry=True, steps="4") == []
    assert ran(cache, carry=True) == [2, 3, 4, 5, 6]


def test_a_step_that_is_not_chosen_is_not_run_but_still_carried_from(cache):
    ran(cache, carry=True)
    assert ran(cache, edited(PLAN, 2, text="scrape"), carry=True, steps="2") == [2]
    assert ran(cache, edited(PLAN, 2, text="scrape"), carry=True, steps="3-6") == [3, 4, 5, 6]


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


def test_counted_seeds_belong_to_places(cache):
    """With one seed for all a step can move without running again."""
    turned = planned("peel", "wash", *TEXTS[2:])
    ran(cache, seeds=COUNTED_SEED)
    assert ran(cache, turned, seeds=COUNTED_SEED) == [1, 2]


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


@pytest.mark.parametrize(
    "given, says",
    [
        ({"image": None, "makes": KEY_IMAGES}, "begins with the initial picture"),
        ({"image": torch.zeros(2, 16, 16, 3)}, "One initial picture is wanted, got 2"),
        ({"key_images": torch.zeros(5, 16, 16, 3)}, "6 steps, but 5 key image"),
        ({"key_images": torch.zeros(6, 16, 24, 3)}, "16x16 pixels, the key images are 24x16"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(given, says):
    with pytest.raises(KSGenError, match=says):
        loop_of(**given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"makes": "films"}, {"seeds": "any"}, {"seconds": 0}, {"seconds": 601}, {"seconds": float("nan")}, {"fps": 0},
        {"fps": float("inf")}, {"frame_step": -1},
    ],
)  # fmt: skip
def test_settings_refuse_nonsense(wrong):
    with pytest.raises(ValueError):
        LoopSettings(**wrong)
    assert LoopSettings().makes == CLIPS


def test_a_step_that_lacks_a_picture_that_the_result_needs_is_refused_before_anything_runs(cache):
    graph = graph_of(image=out("next_key_image"))
    with pytest.raises(KSGenError, match="Step 6 has no next key image"):
        ran(cache, graph=graph, key_images=torch.zeros(6, 16, 16, 3))
    assert cache.entries() == []


@pytest.mark.parametrize("name", ["7", "12:3", "end.1", "step"])
def test_the_users_nodes_may_have_any_id(cache, name):
    """Prompts that programs write have words for ids."""
    body = graph_of(True).nodes
    named = {name: body["paint"], "frames": node("Repeat", image=[name, 0], amount=out("frames"))}
    ran(cache, carry=True)
    assert ran(cache, graph=loop_graph(named, ["frames", 0])) == [], "it is the same graph"


# --- any edits ------------------------------------------------------------------------------------------------------


class Edits(RuleBasedStateMachine):
    """Whatever was edited and run before: what is served is what a run from nothing makes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="ksgen-edits-")
        self.cache = ResultCache(Path(self.folder.name) / "kept")
        self.plan, self.carry, self.strength, self.shade = planned("a", "b", "c"), True, 0.5, 0.5
        self.fresh = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    def loop(self) -> tuple[SmallGraph, Loop]:
        more = {"state": out("before"), "was": out("previous_text")}
        return graph_of(self.carry, strength=self.strength, **more), loop_of(self.plan, image=self.shade)

    def swap(self, steps: list[KeyStep]) -> None:
        self.plan = replace(self.plan, steps=tuple(steps))

    @rule(
        at=st.integers(0, 3), text=st.sampled_from("abcd"), after=st.sampled_from([None, "x"]), seed=st.integers(0, 1)
    )
    def edit(self, at, text, after, seed):
        steps = list(self.plan.steps)
        steps[at % len(steps)] = KeyStep(text, after=after, seed=seed)
        self.swap(steps)

    @rule(text=st.sampled_from("abcd"))
    def append(self, text):
        self.swap([*self.plan.steps[:4], KeyStep(text)])

    @rule(at=st.integers(0, 3))
    def delete(self, at):
        steps = list(self.plan.steps)
        del steps[at % len(steps)]
        self.swap(steps or [KeyStep("a")])

    @rule(at=st.integers(0, 3))
    def move_to_the_front(self, at):
        steps = list(self.plan.steps)
        self.swap([steps.pop(at % len(steps)), *steps])

    @rule(carry=st.booleans(), strength=st.sampled_from([0.5, 0.25]), shade=st.sampled_from([0.5, 0.75]))
    def change_the_graph(self, carry, strength, shade):
        self.carry, self.strength, self.shade = carry, strength, shade

    @rule(steps=st.integers(1, 2))
    def run_and_stop(self, steps):
        run_loop(*self.loop(), self.cache, stop_after=steps)

    @invariant()
    def what_is_served_is_what_would_be_made(self):
        self.fresh += 1
        fresh = ResultCache(Path(self.folder.name) / f"fresh {self.fresh}")
        _, wanted = run_loop(*self.loop(), fresh)
        _, served = run_loop(*self.loop(), self.cache)
        assert all(map(torch.equal, served, wanted))
        assert run_loop(*self.loop(), self.cache)[0] == []


TestEdits = Edits.TestCase
TestEdits.settings = settings(max_examples=5, stateful_step_count=6, deadline=None)
