"""Plans as lines: what is written is read back, what is not touched stays."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksgen_core.errors import KSGenError
from ksgen_core.planning.lines import edit_plan, read_lines, write_lines
from ksgen_core.types import KeyStep, Plan

PLAN = Plan(
    "make tea",
    (
        KeyStep("boil water", "The kettle is off.", "The kettle steams.", 4.0, seed=7),
        KeyStep("stir", "Tea is in the mug.", "The tea turns."),
        KeyStep("add milk", lock=True),
        KeyStep("stir", after="The tea is light."),
    ),
    ("library:tea",),
    "retrieval",
)
WORDS = st.lists(
    st.sampled_from("boil pour the water 2 cups mug .) - seed a|b | 3. c\n".split()), min_size=1, max_size=5
)
STEPS = st.builds(
    KeyStep,
    WORDS.map(lambda words: "do " + " ".join(words)),
    before=st.none() | st.just("It is empty."),
    seconds=st.none() | st.floats(0, 600, exclude_min=True),
    seed=st.none() | st.integers(0, 2**64 - 1),
    lock=st.booleans(),
)


@given(st.lists(STEPS, min_size=1, max_size=8, unique_by=lambda step: step.text))
def test_lines_give_the_plan_back(steps):
    plan = replace(PLAN, steps=tuple(steps))
    assert edit_plan(plan, write_lines(plan)) == plan


def test_repeated_texts_keep_their_own_states():
    assert edit_plan(PLAN, write_lines(PLAN)) == PLAN


def test_an_empty_text_changes_nothing():
    assert edit_plan(PLAN, " \n ") == PLAN


def test_steps_are_added_left_out_and_moved():
    edited = edit_plan(PLAN, "add milk | lock\n- warm the mug\n3) Boil  water | 2.5 s")
    assert [step.text for step in edited.steps] == ["add milk", "warm the mug", "Boil  water"]
    assert edited.steps[0].lock and edited.steps[1] == KeyStep("warm the mug")
    assert (edited.steps[2].after, edited.steps[2].seconds, edited.steps[2].seed) == ("The kettle steams.", 2.5, None)
    assert (edited.goal, edited.sources) == (PLAN.goal, PLAN.sources)


def test_what_a_line_leaves_out_is_not_set():
    milk, water = edit_plan(PLAN, "add milk\nboil water").steps
    assert not milk.lock and water.seed is None and water.seconds is None


def test_json_takes_the_plans_place():
    other = Plan("make toast", (KeyStep("toast the bread"),))
    assert edit_plan(PLAN, json.dumps(other.to_json())) == other


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("boil | quickly", "Line 1 has 'quickly'"),
        ("boil\n | 4 s", "Line 2 has no text"),
        ("boil | seed -1", "'seed -1'"),
        ("boil | 601 s", "at most 600 seconds"),
        ("{", "not valid JSON"),
        ("{" * 100_000, "not valid JSON"),
        ('{"seed": ' + "1" * 5000 + "}", "not valid JSON"),
        ('{"kind": "other"}', "lacks"),
    ],
)
def test_what_cannot_be_read_is_named(text, says):
    with pytest.raises(KSGenError, match=says):
        edit_plan(PLAN, text)


def test_numbers_that_are_no_list_stay():
    assert [step.text for step in read_lines("2 eggs go into the bowl\n3.5 cups of flour follow")] == [
        "2 eggs go into the bowl",
        "3.5 cups of flour follow",
    ]


@pytest.mark.parametrize("text", ["heat to 180. Then wait", "add salt - and stir", "turn it 2) times * more"])
def test_only_what_begins_a_line_is_a_list_mark(text):
    assert read_lines(f"1. {text}")[0].text == read_lines(text)[0].text == text
