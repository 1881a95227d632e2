"""Planning again from the middle: what is done stays, what is left is planned from what the examples have left."""

from __future__ import annotations

import pytest
import torch

from ksgen_core.errors import KSGenError
from ksgen_core.pipeline import Planned, Writing
from ksgen_core.planning.remaining import remaining, replan
from ksgen_core.types import Example, KeyStep, Plan, Query

IMAGE = torch.zeros(8, 8, 3)


def plan(*texts: str, goal: str = "make tea") -> Plan:
    return Plan(goal, tuple(KeyStep(text) for text in texts))


def words(text: str) -> list[str]:
    return text.split()


PLANS = [plan("boil water", "put a tea bag in", "pour water on", "add milk"), plan("boil water")]
EXAMPLES = tuple(Example(one, f"library:{k}", 1.0) for k, one in enumerate(PLANS))


def nearest(_query, examples):
    yield Writing("...", 1, 2)
    yield Planned(examples[0].plan)


def test_examples_are_cut_after_what_is_done_and_dropped_when_nothing_is_left():
    left = remaining(EXAMPLES, ["boil water", "put a tea bag in"], words)
    assert [[step.text for step in e.plan.steps] for e in left] == [["pour water on", "add milk"]]
    assert left[0].source == "library:0"


def test_examples_stay_whole_when_nothing_is_done():
    assert remaining(EXAMPLES, [], words) == EXAMPLES


def test_steps_before_stay_and_the_rest_is_new():
    old = Plan("have tea", (KeyStep("boil water", seed=5, lock=True), KeyStep("wait")))
    writing, planned = replan(old, 2, Query(IMAGE, "have tea"), EXAMPLES, nearest, words)
    assert isinstance(writing, Writing) and isinstance(planned, Planned)
    assert planned.plan.steps[0] == old.steps[0] and planned.plan.goal == "have tea"
    assert [step.text for step in planned.plan.steps[1:]] == ["put a tea bag in", "pour water on", "add milk"]


@pytest.mark.parametrize("number", [0, 3])
def test_a_step_that_the_plan_lacks_is_refused(number):
    with pytest.raises(KSGenError, match=f"Step {number} .* has 2"):
        list(replan(plan("a", "b"), number, Query(IMAGE, "g"), EXAMPLES, nearest, words))
