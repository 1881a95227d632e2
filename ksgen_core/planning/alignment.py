"""Which steps of different plans are one and the same: the nodes of the step-transition graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from ..types import KeyStep, Plan

WordsOf = Callable[[str], Sequence[str]]
"""The telling words of a text; retrieval has such a function."""


def key_of(step: KeyStep) -> str:
    """What makes two steps' texts equal: capitals and white space do not count."""
    return " ".join(step.text.casefold().split())


def aligned(plans: Sequence[Plan], weights: Sequence[float], words_of: WordsOf) -> list[tuple[int, ...]]:
    """The order of nodes of every plan; nodes count from 0, the one of the greatest weight first.

    Two texts are one node if their telling words are the same in the same order, or if somewhere both lead from the
    same state to the same state (`before` and `after`). Two texts that one plan holds are two steps, however alike
    they are. Likeness of words alone is no ground: "open the cover" and "close the cover" share most of theirs.
    """
    weight: dict[str, float] = defaultdict(float)
    together: dict[str, set[str]] = defaultdict(set)
    states: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for plan, share in zip(plans, weights, strict=True):
        texts = {key_of(step) for step in plan.steps}
        for text in texts:
            weight[text] += share
            together[text] |= texts
        for step in plan.steps:
            if step.before and step.after:
                states[key_of(step)].add((step.before, step.after))
    words = {text: tuple(words_of(text)) for text in weight}
    nodes: list[list[str]] = []
    node_of: dict[str, int] = {}
    for text in sorted(weight, key=lambda t: (-weight[t], t)):

        def is_same(other: str, text: str = text) -> bool:
            return bool(words[text] and words[text] == words[other] or states[text] & states[other])

        fitting = (n for n, node in enumerate(nodes) if together[text].isdisjoint(node) and any(map(is_same, node)))
        number = next(fitting, len(nodes))
        if number == len(nodes):
            nodes.append([])
        nodes[number].append(text)
        node_of[text] = number
    return [tuple(node_of[key_of(step)] for step in plan.steps) for plan in plans]
