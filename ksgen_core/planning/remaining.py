"""Planning again from the middle: what of the examples is still to be done once some steps are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ..errors import KSGenError
from ..pipeline import Planned, Planner, Writing
from ..types import Example, KeyStep, Plan, Query

SAME = 0.6
"""The share of words that a step and a step already done must have in common to count as one."""


def replan(
    plan: Plan,
    number: int,
    query: Query,
    examples: Sequence[Example],
    make_plan: Planner,
    words_of: Callable[[str], Iterable[str]],
) -> Iterator[Writing | Planned]:
    """The plan with its steps from `number` (counted from 1) on planned anew, for the later picture of `query`.

    Steps before it stay as they are. `make_plan` gets what is left of the examples after those steps.
    Raises `KSGenError` if the plan has no such step.
    """
    kept = kept_steps(plan, number)
    left = remaining(examples, [step.text for step in kept], words_of)
    for event in make_plan(query, left):
        if isinstance(event, Planned):
            new = event.plan
            event = Planned(replace(new, goal=plan.goal, steps=(*kept, *new.steps)))
        yield event


def kept_steps(plan: Plan, number: int) -> tuple[KeyStep, ...]:
    """The steps before step `number` (counted from 1). Raises `KSGenError` if the plan has no such step."""
    if not 1 <= number <= len(plan.steps):
        raise KSGenError(
            f"Step {number} is to be planned anew, but the plan has {len(plan.steps)}. Give a number from 1 to it."
        )
    return plan.steps[: number - 1]


def remaining(
    examples: Sequence[Example], done: Sequence[str], words_of: Callable[[str], Iterable[str]]
) -> tuple[Example, ...]:
    """The examples, each cut after its last step that is done already; those with nothing left are dropped."""
    finished = [frozenset(words_of(text)) for text in done]
    cut = []
    for example in examples:
        steps = example.plan.steps
        marks = [k for k, step in enumerate(steps, 1) if _is_done(frozenset(words_of(step.text)), finished)]
        left = steps[max(marks, default=0) :]
        if left:
            cut.append(replace(example, plan=replace(example.plan, steps=left)))
    return tuple(cut)


def _is_done(step: frozenset[str], finished: Sequence[frozenset[str]]) -> bool:
    return any(len(step & one) >= SAME * max(1, len(step | one)) for one in finished)
