"""The planner that takes over the plan of the best example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import KSGenError
from ..pipeline import Planned
from ..types import Example, Plan, Query


def plan_of_nearest(query: Query, examples: Sequence[Example]) -> Iterator[Planned]:
    """The steps of the first example, which is the best one, with the query's goal; the source says where from.

    The steps' seeds and locks belong to the example's own run and are dropped.
    Raises `KSGenError` if there is no example.
    """
    if not examples:
        raise KSGenError(f"No step found for the goal {query.goal!r}. Reword the goal, or give the steps yourself.")
    best = examples[0]
    steps = tuple(replace(step, seed=None, lock=False) for step in best.plan.steps)
    yield Planned(Plan(query.goal, steps, sources=(best.source,), planner="retrieval"))
