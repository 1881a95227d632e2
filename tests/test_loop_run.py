"""Which steps of a loop run and which are remembered, with real results on disk; a host is not needed for it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from small_graph import (
    ALL,
    PLAN,
    TEXTS,
    edited,
    graph_of,
    look,
    loop_graph,
    loop_of,
    node,
    out,
    picture,
    planned,
    ran,
    run_loop,
)

from ksgen_core.cache import ResultCache
from ksgen_core.loop.settings import CLIPS, COUNTED_SEED, KEY_IMAGES


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """No power fails during these tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def cache(tmp_path):
    return ResultCache(tmp_path / "results")


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


@pytest.mark.parametrize("name", ["7", "12:3", "end.1", "step"])
def test_the_users_nodes_may_have_any_id(cache, name):
    """Prompts that programs write have words for ids."""
    body = graph_of(True).nodes
    named = {name: body["paint"], "frames": node("Repeat", image=[name, 0], amount=out("frames"))}
    ran(cache, carry=True)
    assert ran(cache, graph=loop_graph(named, ["frames", 0])) == [], "it is the same graph"


def test_counted_seeds_belong_to_places(cache):
    """With one seed for all a step can move without running again."""
    turned = planned("peel", "wash", *TEXTS[2:])
    ran(cache, seeds=COUNTED_SEED)
    assert ran(cache, turned, seeds=COUNTED_SEED) == [1, 2]


# --- key images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry, again", [(False, [4]), (True, [4, 5, 6])])
def test_the_first_key_image_is_the_initial_picture_and_does_not_run(cache, carry, again):
    graph = loop_graph({"paint": graph_of(carry).nodes["paint"]}, ["paint", 0])
    numbers, made = run_loop(graph, loop_of(makes=KEY_IMAGES), cache)
    assert numbers == [2, 3, 4, 5, 6] and made[0].equal(picture(0.5)) and all(len(one) == 1 for one in made)
    assert ran(cache, edited(PLAN, 1, text="rinse"), graph=graph, makes=KEY_IMAGES) == []
    assert ran(cache, edited(PLAN, 4, text="steam"), graph=graph, makes=KEY_IMAGES) == again


def test_another_rate_makes_clips_anew_but_no_key_images(cache):
    graph = loop_graph({"paint": graph_of().nodes["paint"]}, ["paint", 0])
    for makes, again in ((CLIPS, True), (KEY_IMAGES, False)):
        assert ran(cache, graph=graph, makes=makes)
        assert bool(ran(cache, graph=graph, makes=makes, fps=9.0)) is again


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


def test_a_run_meets_its_locks_so_that_they_are_not_taken_for_abandoned(cache):
    locked = edited(PLAN, 2, lock=True)
    ran(cache, locked)
    notes = sorted((cache.root / "steps").rglob("*.json"))
    for path in notes:
        os.utime(path, (0, 0))
    assert ran(cache, locked) == [] and len(notes) == 6
    assert all(path.stat().st_mtime > 1e9 for path in notes)


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


def test_a_lock_goes_by_the_goal_the_initial_picture_and_the_text(cache):
    locked = edited(PLAN, 2, lock=True)
    ran(cache, locked)
    rolled = edited(locked, 2, seed=9)
    assert ran(cache, rolled) == []
    assert ran(cache, replace(rolled, goal="cook carrots")) == [2]
    assert ran(cache, edited(rolled, 2, text="scrape")) == [2]
    assert ran(cache, rolled, image=0.75) == ALL


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
