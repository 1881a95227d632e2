"""Whether a plan is exact: its texts name the steps of one of the plans that are right, in that plan's order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Wordings = Sequence[str]
"""All the texts that name one step."""


def is_exact(texts: Sequence[str], right: Iterable[Sequence[Wordings]]) -> bool:
    """Whether `texts`, one a step, are one of the `right` plans, each a sequence of steps given by their wordings.

    Letter case and the spaces around a text do not count; everything else does.
    """
    said = [text.strip().casefold() for text in texts]
    return any(
        len(said) == len(steps)
        and all(text in {word.casefold() for word in words} for text, words in zip(said, steps, strict=True))
        for steps in right
    )
