"""The planner that takes over the plan of the best example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import KSGenError
from ..types import Example, Plan, Query


def plan_of_nearest(query: Query, examples: Sequence[Example]) -> Plan:
    """The best example's steps with the query's goal; the sources name where they come from.

    The steps' seeds and locks belong to the example's own run and are dropped.
    Raises `KSGenError` if there is no example.
    """
    if not examples:
        raise KSGenError(f"No step found for the goal {query.goal!r}. Reword the goal, or give the steps yourself.")
    best = max(examples, key=lambda example: example.score)
    steps = tuple(replace(step, seed=None, lock=False) for step in best.plan.steps)
    return Plan(query.goal, steps, sources=(best.source,), planner="retrieval")
