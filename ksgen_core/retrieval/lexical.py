"""Find plans by the words they share with the goal: BM25 over goal and step texts.

Raw BM25 over whole sentences hurts (the commonest words decide), so stop words go, endings are cut, and the score
counts only as far as the query and a plan's goal cover each other.
Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, equation 3.15.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from ..errors import KSGenError
from ..types import Example, Plan, Query

SATURATION = 1.2
"""BM25's k1: how soon a repeated word stops counting more."""
LENGTH_WEIGHT = 0.75
"""BM25's b: how much a long plan is held back."""
GOAL_WEIGHT = 3
"""The goal names the skill in few words; each counts as often as this in a step text."""
CONFIDENCE = 0.5
"""The share of the query's words that an example must hold; a word found only in its steps counts half."""

STOP_WORDS = frozenset(
    "a an and are as at be by can do for from get give have how i in into is it its make making me my of on onto or "
    "our out please prepare serve show some that the then there these this to up use using want we what with you "
    "your".split()
)
SAME = {"cup": "mug", "teabag": "tea", "brew": "tea", "fry": "pan", "saute": "pan", "chop": "cut", "slic": "cut"}
"""Words that people use for one thing, their endings cut."""


class LexicalRetriever:
    """The `count` best distinct plans of a library for a query, best first.

    Plans that differ only in goal words or seeds count as one if their steps are the same; of plans that fit equally
    well the one that the library holds most often comes first.
    """

    def __init__(self, library: Sequence[Plan], count: int = 4) -> None:
        if not library:
            raise KSGenError("The library of plans is empty. Choose a models folder with a library.jsonl in it.")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.library = tuple(library)
        self.count = count
        self._words = [_plan_words(plan) for plan in self.library]
        self._often = Counter(_steps(plan) for plan in self.library)
        seen_in = Counter(word for words in self._words for word in words)
        total = len(self.library)
        self._weight = {word: math.log(1 + (total - n + 0.5) / (n + 0.5)) for word, n in seen_in.items()}
        self._mean_length = sum(sum(words.values()) for words in self._words) / total

    def __call__(self, query: Query) -> tuple[Example, ...]:
        """Raises `KSGenError` naming the nearest skills if no plan fits the query's goal."""
        return self.find(query.goal)

    def find(self, goal: str) -> tuple[Example, ...]:
        """The examples for a goal, whatever the picture. Raises `KSGenError` as above."""
        wanted = set(words_of(goal))
        fits = [self._fit(wanted, n) for n in range(len(self.library))]
        scores = [fit * self._score(wanted, words) for fit, words in zip(fits, self._words, strict=True)]
        order = sorted(
            range(len(scores)), key=lambda n: (-round(scores[n], 9), -self._often[_steps(self.library[n])], n)
        )
        distinct: dict[tuple[str, ...], int] = {}
        for n in order:
            distinct.setdefault(_steps(self.library[n]), n)
        fitting = [n for n in distinct.values() if fits[n] > 0]
        if not fitting:
            by_words = sorted(distinct.values(), key=lambda n: -self._score(wanted, self._words[n]))
            near = list(dict.fromkeys(self.library[n].goal for n in by_words))[:3]
            raise KSGenError(
                f"No step found for the goal {goal!r}: the library of plans has no such skill, only others like "
                f"{', '.join(map(repr, near))}. Reword the goal, or give the steps yourself."
            )
        return tuple(Example(self.library[n], _source(self.library[n], n), scores[n]) for n in fitting[: self.count])

    def _score(self, wanted: set[str], words: Counter[str]) -> float:
        length = LENGTH_WEIGHT * sum(words.values()) / self._mean_length + 1 - LENGTH_WEIGHT
        # Sorted, since a sum of floats depends on its order and sets have none.
        return sum(
            self._weight[word] * words[word] * (SATURATION + 1) / (words[word] + SATURATION * length)
            for word in sorted(wanted)
            if word in words
        )

    def _fit(self, wanted: set[str], number: int) -> float:
        """How far the query's words and those of the plan's goal cover each other, 0..1; 0 if too little."""
        goal = set(words_of(self.library[number].goal))
        found = sum(1.0 if word in goal else 0.5 for word in wanted if word in self._words[number])
        if not found or found < CONFIDENCE * len(wanted):
            return 0.0
        return (found / len(wanted) + len(goal & wanted) / max(1, len(goal))) / 2


def words_of(text: str) -> list[str]:
    """The telling words of a text, in small letters, without their endings."""
    words = re.findall(r"[^\W_]+", text.lower())
    stems = [_stem(word) for word in words if word not in STOP_WORDS]
    return [SAME.get(stem, stem) for stem in stems]


def _stem(word: str) -> str:
    """Cut the commonest English endings: one plural, -ing or -ed, and what they doubled."""
    for ending in ("ing", "ed", "es", "s"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and not (ending == "s" and rest.endswith(("s", "u", "i"))):
            word = rest
            if ending in ("ing", "ed") and len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]
            break
    # "slice", "slicing" and "slices" must meet.
    return word[:-1] if len(word) > 3 and word.endswith(("e", "y")) else word


def _plan_words(plan: Plan) -> Counter[str]:
    words = Counter(word for step in plan.steps for word in words_of(step.text))
    for word in words_of(plan.goal):
        words[word] += GOAL_WEIGHT
    return words


def _steps(plan: Plan) -> tuple[str, ...]:
    return tuple(step.text.casefold() for step in plan.steps)


def _source(plan: Plan, number: int) -> str:
    return plan.sources[0] if plan.sources else f"library, line {number + 1}"
