"""The planner `retrieval`: no model, but what the retrieved plans of the wanted skill agree on.

Plans of one skill differ in their order and leave out different steps, so neither the nearest nor the commonest is
the best guess. The consensus is the order whose expected similarity to the plans is highest: minimum Bayes risk
(Kumar and Byrne, Minimum Bayes-Risk Decoding for Statistical Machine Translation, HLT-NAACL 2004) with the retrieved
plans as samples. It is searched among those plans and, edit by edit, among the paths of their step-transition graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from ..errors import KSGenError
from ..orders import edit_scores, ious
from ..pipeline import Planned
from ..types import Example, KeyStep, Plan, Query
from .alignment import WordsOf, aligned, key_of
from .wording import FEWEST, MOST

if TYPE_CHECKING:
    import numpy as np

Order = tuple[int, ...]

EXACT_WEIGHT = 0.2
"""What being the very same order adds to the similarity, next to edit score and IoU with one half each: without it
the consensus is seldom a plan that anybody followed. Chosen on COIN's library part, see benchmarks/planning.py."""
RARE = 0.1
"""A step in a smaller share of the plans is not tried in an edit."""
LONGEST_EDITED = 20
"""Steps; the edits of a longer order are too many to try."""
BEAM = 2
"""How many orders are edited in a round."""
SOURCES = 8
"""How many sources a plan names, those of the most similar plans first."""
START, END = -1, -2
"""The nodes before the first step and after the last one."""


@dataclass(frozen=True)
class Voter:
    """A distinct plan of the wanted skill, how much it counts, and how many plans of the library are like it."""

    plan: Plan
    sources: tuple[str, ...]
    weight: float
    count: int


@dataclass(frozen=True)
class Consensus:
    """Makes the plan that the examples of the wanted skill agree on, of `fewest` to `most` steps.

    Only plans of one skill vote: those whose goal has the telling words of the query's goal or, where there is none,
    of the best example's. An example weighs as much as its score and its count say. Step texts, states and seconds
    are those of real examples; seeds and locks belong to the examples' own runs and are dropped.

    The plan's `planner` says "retrieval, confidence 0.72": the mean of edit score and IoU with the voting plans, times
    n / (n + 1) for n of them, since few plans that agree prove little. It is about as similar as another plan of the
    same skill is likely to be, and says nothing on whether this skill is the one that was meant. Plans that are more
    than half similar are its `sources`, or the most similar one if none is.

    Examples that all have fewer than `fewest` steps give as many as they have: nothing is made up.
    """

    words_of: WordsOf
    fewest: int = FEWEST
    most: int = MOST
    step_words_of: WordsOf | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most:
            raise KSGenError(f"A plan has at least 1 and at most `most` steps, got {self.fewest} to {self.most}.")

    def __call__(self, query: Query, examples: Sequence[Example]) -> Iterator[Planned]:
        """Raises `KSGenError` if there is no example."""
        yield Planned(self.plan(query.goal, examples))

    def plan(self, goal: str, examples: Sequence[Example]) -> Plan:
        """The plan for a goal, whatever the picture. Raises `KSGenError` if there is no example."""
        if not examples:
            raise KSGenError(f"No step found for the goal {goal!r}. Reword the goal, or give the steps yourself.")
        voters = self._voters(goal, examples)
        orders = aligned([v.plan for v in voters], [v.weight for v in voters], self.step_words_of or self.words_of)
        order = best_order(orders, [v.weight for v in voters], self.fewest, self.most)
        edit, common = edit_scores([order], orders)[0], ious([order], orders)[0]
        similarity = [round(float(s), 9) for s in (edit + common) / 2]
        ranked = sorted(range(len(voters)), key=lambda n: (-similarity[n], -voters[n].weight, n))
        agreement = sum(s * v.weight for s, v in zip(similarity, voters, strict=True)) / sum(v.weight for v in voters)
        plans = sum(v.count for v in voters)
        sources = dict.fromkeys(s for n in ranked if similarity[n] > 0.5 for s in voters[n].sources)
        return Plan(
            goal,
            _real_steps(order, [(orders[n], voters[n].plan) for n in ranked]),
            sources=(tuple(sources) or voters[ranked[0]].sources)[:SOURCES],
            planner=f"retrieval, confidence {agreement * plans / (plans + 1):.2f}",
        )

    def _voters(self, goal: str, examples: Sequence[Example]) -> list[Voter]:
        """The distinct plans of one skill; their order does not depend on that of the examples."""
        skills: dict[Hashable, list[Example]] = defaultdict(list)
        for example in examples:
            skills[self.skill_of(example.plan.goal)].append(example)

        def fit(skill: Hashable) -> tuple[bool, float, int, str]:
            found = skills[skill]
            score, count = max(e.score for e in found), sum(e.count for e in found)
            return skill == self.skill_of(goal), score, count, max(e.plan.goal for e in found)

        chosen = skills[max(skills, key=fit)]
        best = max(example.score for example in chosen)
        same: dict[tuple[str, ...], list[Example]] = defaultdict(list)
        for example in sorted(chosen, key=lambda e: (-e.score, e.source, e.plan.goal)):
            same[tuple(map(key_of, example.plan.steps))].append(example)
        return [
            Voter(
                alike[0].plan,
                tuple(dict.fromkeys(example.source for example in alike)),
                sum(example.count * _share(example.score, best) for example in alike),
                sum(example.count for example in alike),
            )
            for _, alike in sorted(same.items())
        ]

    def skill_of(self, goal: str) -> Hashable:
        """What goals of one skill have in common: their telling words, or all of the text if it has none."""
        return frozenset(self.words_of(goal)) or goal.casefold()


def _share(score: float, best: float) -> float:
    """The score as a share of the best one's, at least one hundredth; scores that are all 0 or less weigh the same."""
    return max(score / best, 0.01) if best > 0 else 1.0


def best_order(orders: Sequence[Order], weights: Sequence[float], fewest: int, most: int) -> Order:
    """The order of `fewest` to `most` nodes with the highest expected similarity to weighted orders of nodes.

    Candidates are the given orders, longer ones cut, and what single edits make of the best ones as long as they stay
    paths of the graph: every node follows one that it follows in some given order, and any two nodes stand together,
    in this order, in one of them. So two ways of doing one thing never come to stand in one plan.
    """
    fewest = min(fewest, max(map(len, orders)))
    start = {_cut(order, fewest, most) for order in orders if len(order) >= fewest}
    graph = _Graph(orders, weights)
    best = graph.ranked(start)[:BEAM]
    tried = set(start)
    while True:
        short = [order for _, order in best if len(order) <= LONGEST_EDITED]
        edits = {edit for order in short for edit in graph.edits(order) if fewest <= len(edit) <= most} - tried
        if not edits:
            return best[0][1]
        tried |= edits
        better = sorted(best + graph.ranked(edits))[:BEAM]
        if better[0] == best[0]:
            return best[0][1]
        best = better


class _Graph:
    """Step transitions of weighted orders, and how similar an order is to all of them."""

    def __init__(self, orders: Sequence[Order], weights: Sequence[float]) -> None:
        import numpy as np

        self.orders = orders
        self.weights: np.ndarray = np.array(weights) / sum(weights)
        self.next = {pair for order in orders for pair in pairwise((START, *order, END))}
        self.later = {pair for order in orders for pair in combinations(order, 2)}
        share: dict[int, float] = defaultdict(float)
        for order, weight in zip(orders, self.weights, strict=True):
            for node in set(order):
                share[node] += float(weight)
        self.nodes = [node for node in sorted(share) if share[node] >= RARE]

    def ranked(self, candidates: Iterable[Order]) -> list[tuple[float, Order]]:
        """(minus the expected similarity, order), the most similar one first."""
        listed = sorted(candidates)
        edit, common = edit_scores(listed, self.orders), ious(listed, self.orders)
        value = ((edit + common) / 2 + EXACT_WEIGHT * (edit == 1)) @ self.weights
        # Rounded, so that which of two equally good ones wins does not hang on the last bit.
        return sorted((-round(float(v), 9), order) for v, order in zip(value, listed, strict=True))

    def edits(self, order: Order) -> Iterator[Order]:
        """Every path of the graph that is one step less, more, exchanged or moved away from `order`."""
        places = range(len(order))
        without = [order[:k] + order[k + 1 :] for k in places]
        tried = set(without)
        tried |= {rest[:m] + (order[k],) + rest[m:] for k, rest in enumerate(without) for m in places}
        for node in self.nodes:
            if node not in order:
                tried |= {order[:k] + (node,) + order[k:] for k in range(len(order) + 1)}
                tried |= {order[:k] + (node,) + order[k + 1 :] for k in places}
        return (edit for edit in tried if edit and self._is_path(edit))

    def _is_path(self, order: Order) -> bool:
        return all(pair in self.next for pair in pairwise((START, *order, END))) and all(
            pair in self.later for pair in combinations(order, 2)
        )


def _cut(order: Order, fewest: int, most: int) -> Order:
    """At most `most` nodes: first what repeats goes, unless fewer than `fewest` would be left, then what lies between,
    evenly; the last one always stays."""
    if len(order) > most and len(distinct := tuple(dict.fromkeys(order))) >= fewest:
        order = distinct
    if len(order) <= most:
        return order
    if most == 1:
        return order[-1:]
    return tuple(order[round(k * (len(order) - 1) / (most - 1))] for k in range(most))


def _real_steps(order: Order, ranked: Sequence[tuple[Order, Plan]]) -> tuple[KeyStep, ...]:
    """For every node a step of a given plan: one that stands between the same nodes, of the plan that comes first.

    A step's state sentences are true where it follows the step that it followed in its own plan.
    """
    own = (START, *order, END)
    steps = []
    for k, node in enumerate(order):
        *_, step = min(
            (-((around[p] == own[k]) + (around[p + 2] == own[k + 2])), rank, abs(p - k), p, plan.steps[p])
            for rank, (other, plan) in enumerate(ranked)
            for around in ((START, *other, END),)
            for p, found in enumerate(other)
            if found == node
        )
        steps.append(replace(step, seed=None, lock=False))
    return tuple(steps)
