"""Find the skills that a goal means, by words alone or by words and meaning.

Score by words: 1 if the goal has a name's very words, else the share of what a skill could have that is all about the
goal's words (`lexical.Bm25` over names and step texts). With vectors: their cosine, from 0 for unlike goals to 1 for
the same, with the score by words at a low weight. Fused by ranks or at equal weights words hurt: they lift what the
vectors know to be wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from ..errors import KSGenError
from ..types import Example, Query
from .lexical import Bm25, words_of
from .library import Skill

if TYPE_CHECKING:
    import numpy as np

    from .index import VectorIndex

NAME_WEIGHT = 4
"""A name (the goal or an alias) says in few words what the skill is; each counts as often as this in a step text."""
WORDS_WEIGHT = 0.2
"""Of the score by words beside that of the vectors."""
LEAST_BY_WORDS, LEAST_BY_BOTH = 0.35, 0.5
"""From this score on a skill fits the goal. Of the paraphrases of `benchmarks/queries.tsv` they refuse one in a
hundred; of goals from a domain that the library lacks, nine in ten, by words alone eight."""


class NoSkill(KSGenError):
    """No skill of the library fits the goal."""


class SkillSearch:
    """The best plans of a library for a goal, best first, no two of the same steps in the same order.

    Of plans that fit equally well the one that the library holds most often comes first. `Example.count` says how many
    plans have its steps. `by` says what is compared.
    """

    def __init__(self, skills: Sequence[Skill], vectors: VectorIndex | None = None, count: int = 8) -> None:
        """Embeds what `vectors` has not kept. Raises `KSGenError` if there is no skill or the embedding is broken."""
        import numpy as np

        if not skills:
            raise KSGenError("The library of skills is empty. Give a .jsonl file with skills in it.")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.skills, self.vectors, self.count = tuple(skills), vectors, count
        self.by = "words" if vectors is None else "words and meaning"
        self.sources = [skill.source or f"skill {number} of the library" for number, skill in enumerate(self.skills, 1)]
        self._words = Bm25(map(_words, self.skills))
        self._named: dict[str, list[int]] = {}
        for n, skill in enumerate(self.skills):
            for key in {_key(name) for name in (skill.goal, *skill.aliases)}:
                self._named.setdefault(key, []).append(n)
        orders: dict[tuple[str, ...], int] = {}
        self._order = np.array([orders.setdefault(_steps(skill), len(orders)) for skill in self.skills])
        if vectors is not None:
            # A library with many plans of one skill has few names.
            names: dict[tuple[str, ...], int] = {}
            self._row = np.array([names.setdefault((s.goal, *s.aliases), len(names)) for s in self.skills])
            self._directions = vectors.of_library(list(names))

    def __call__(self, query: Query, /) -> tuple[Example, ...]:
        """The examples for the query's goal. Raises `KSGenError` as `find` does."""
        return self.find(query.goal)

    def find(self, goal: str, count: int | None = None, without: Container[str] | None = None) -> tuple[Example, ...]:
        """At most `count` examples for a goal, none from the sources in `without`.

        Raises `NoSkill` naming the nearest skills if none fits, and `KSGenError` if no skill is left.
        """
        import numpy as np

        count = self.count if count is None else count
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        kept = np.arange(len(self.skills))
        if without is not None:
            kept = np.array([n for n, source in enumerate(self.sources) if source not in without], int)
        if not len(kept):
            raise KSGenError("Every skill of the library is left out. Leave out fewer sources.")
        scores = self.scores(goal)
        often = np.bincount(self._order[kept])
        # Rounded, so that sums of the same parts in another order are the same.
        fit = np.round(scores[kept].astype(np.float64), 5)
        ranked = kept[np.lexsort((kept, -often[self._order[kept]], -fit))]
        least = LEAST_BY_WORDS if self.vectors is None else LEAST_BY_BOTH
        if scores[ranked[0]] < least:
            near = list(dict.fromkeys(self.skills[n].goal for n in ranked[:50]))[:3]
            raise NoSkill(
                f"No step found for the goal {goal!r}: the library of skills has none such, only others like "
                f"{', '.join(map(repr, near))}. Reword the goal, or give the steps yourself."
            )
        distinct: dict[int, int] = {}
        for n in ranked:
            if scores[n] < least or len(distinct) == count:
                break
            distinct.setdefault(int(self._order[n]), int(n))
        return tuple(
            Example(self.skills[n].plan(), self.sources[n], float(scores[n]), int(often[order]))
            for order, n in distinct.items()
        )

    def scores(self, goal: str) -> np.ndarray:
        """float32 [skills]: how well each fits the goal."""
        by_words = self._words(words_of(goal))
        by_words[self._named.get(_key(goal), [])] = 1
        if self.vectors is None:
            return by_words
        cosine = (self._directions @ self.vectors.of_query(goal))[self._row]
        meaning = (cosine - self.vectors.unlike) / (1 - self.vectors.unlike)
        return (meaning + WORDS_WEIGHT * by_words) / (1 + WORDS_WEIGHT)


def _words(skill: Skill) -> Counter[str]:
    words = Counter(word for step in skill.steps for word in words_of(step.text))
    for name in (skill.goal, *skill.aliases):
        for word in words_of(name):
            words[word] += NAME_WEIGHT
    return words


def _key(name: str) -> str:
    """The same for names of the same telling words, or, where there is none, of the same characters."""
    return " ".join(sorted(set(words_of(name)))) or name


def _steps(skill: Skill) -> tuple[str, ...]:
    return tuple(step.text.casefold() for step in skill.steps)
