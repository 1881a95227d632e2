"""The words of a text that tell something, and how far documents hold them: BM25 over an inverted index.

Raw BM25 over whole sentences hurts (the commonest words decide), so stop words go and endings are cut.
Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, equation 3.15.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SATURATION = 1.2
"""BM25's k1: how soon a repeated word stops counting more."""
LENGTH_WEIGHT = 0.75
"""BM25's b: how much a long document is held back."""
OTHERS = 100
"""So many documents without any of the words are thought of beside the given ones: in a small library a word that all
of them hold tells something all the same."""

STOP_WORDS = frozenset(
    "a an and are as at be by can do for from get give have how i in into is it its make making me my of on onto or "
    "our out please prepare serve show some that the then there these this to up use using want we what with you "
    "your".split()
)
SAME = {"cup": "mug", "teabag": "tea", "brew": "tea", "fry": "pan", "saut": "pan", "chop": "cut", "slic": "cut"}
"""Words that people use for one thing, their endings cut."""
DIRECTIONS = {"from": "from", "to": "to", "in": "in", "into": "in", "on": "on", "onto": "on", "up": "up", "out": "out"}
"""Stop words that tell one step from another, and those that say the same."""


class Bm25:
    """The documents that hold a word, by word, with what the word adds to each one's score."""

    def __init__(self, documents: Iterable[Mapping[str, float]]) -> None:
        """`documents`: how often each holds each word."""
        import numpy as np

        self._numbers: dict[str, int] = {}
        words, owners, often, lengths = array("i"), array("i"), array("f"), array("d")
        for number, document in enumerate(documents):
            for word, times in document.items():
                words.append(self._numbers.setdefault(word, len(self._numbers)))
                owners.append(number)
                often.append(times)
            lengths.append(sum(document.values()))
        self.size = len(lengths)
        word = np.asarray(words)
        by_word = np.argsort(word, kind="stable")
        self._owners = np.asarray(owners)[by_word]
        seen_in = np.bincount(word, minlength=len(self._numbers))
        self._ends = np.cumsum(seen_in)
        self._weights = np.log1p((self.size + OTHERS - seen_in + 0.5) / (seen_in + 0.5)).astype(np.float32)
        length = np.asarray(lengths, np.float32)
        held_back = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * length / max(length.mean(), 1e-9))
        times = np.asarray(often)[by_word]
        # The factor k1 + 1 of the equation is left out: it says how much a word can add, and shares are given here.
        self._adds = self._weights[word[by_word]] * times / (times + held_back[self._owners])

    def __call__(self, words: Iterable[str]) -> np.ndarray:
        """float32 [documents], 0..1: the share of what a document could have that holds each of the words for ever.

        A word that no document holds counts among those that could be held.
        """
        import numpy as np

        scores, most = np.zeros(self.size, np.float32), 0.0
        # In one order, since a sum of floats depends on it and sets have none.
        for word in sorted(set(words)):
            number = self._numbers.get(word)
            if number is None:
                most += math.log1p((self.size + OTHERS + 0.5) / 0.5)
                continue
            most += float(self._weights[number])
            of_word = slice(self._ends[number - 1] if number else 0, self._ends[number])
            scores[self._owners[of_word]] += self._adds[of_word]
        return scores / np.float32(most) if most else scores


def words_of(text: str) -> list[str]:
    """The telling words of a text, in small letters, without their endings."""
    return _words(text, STOP_WORDS)


def step_words_of(text: str) -> list[str]:
    """The telling words of a step's text, those that say where to among them: into the car is not from the car."""
    return [DIRECTIONS.get(word, word) for word in _words(text, STOP_WORDS - DIRECTIONS.keys())]


def _words(text: str, stop_words: Set[str]) -> list[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    stems = [_stem(word) for word in words if word not in stop_words]
    return [SAME.get(stem, stem) for stem in stems]


def _stem(word: str) -> str:
    """Cut the commonest English endings: one plural, then -ing or -ed and what they doubled."""
    for ending in ("es", "s"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and not (ending == "s" and rest.endswith(("s", "u", "i"))):
            word = rest
            break
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3:
            word = rest[:-1] if len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "ls" else rest
            break
    # "slice", "slicing" and "slices" must meet.
    return word[:-1] if len(word) > 3 and word.endswith(("e", "y")) else word
