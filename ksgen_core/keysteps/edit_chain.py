"""The chain of edits: from which pictures, and by which words, a key image is made. Needs no torch.

Key image 0, the hero, is the initial picture. Each following one is an edit of the one before it, with the hero beside
it where the model takes two. Errors of editing add up, so no key image is more than `HOPS` edits away from the hero:
the one after those is made from the hero anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import KSGenError
from ..types import Plan

HOPS = 4
KEEP = "Keep the objects, the place, the light and the camera as they are, except for what these steps change."


def references(k: int, at_once: int = 2) -> tuple[int, ...]:
    """The numbers of the key images that key image `k` is made from, the hero first; of at most `at_once` pictures.

    A model of one picture edits the key image before.
    """
    if k < 0 or at_once < 1:
        raise ValueError(f"key images are counted from 0 and made from at least 1 picture, got {k} and {at_once}")
    if k == 0:
        return ()
    if k % HOPS == 1:
        return (0,)
    return (0, k - 1)[-at_once:]


def check_order(steps: Sequence[int], made: Collection[int]) -> None:
    """Raise `KSGenError` if a step's key image would be made from one that is neither there nor among `steps`."""
    there = {0, *made, *steps}
    for k in steps:
        if lacking := [r for r in references(k) if r not in there]:
            raise KSGenError(
                f"The key image of step {k + 1} is an edit of that of step {lacking[0] + 1}, which is neither there "
                f"nor to be drawn. Draw step {lacking[0] + 1} too, or give its key image."
            )


def instruction(plan: Plan, k: int, at_once: int = 2) -> str:
    """What to make of the references of key image `k`: the scene at the moment when its step begins.

    The step's own words come first: Flux Kontext's smaller text encoder reads no more than 77 tokens. Of the plan's
    other steps only those count that lie between the latest reference and this one.
    """
    used = references(k, at_once)
    if not used:
        raise ValueError("key image 0 is the initial picture, nothing is made of it")
    step, since = plan.steps[k], plan.steps[used[-1] : k]
    parts = [f"Show the same scene at the moment when this begins: {_sentence(step.text)}"]
    if state := step.before or plan.steps[k - 1].after:
        parts.append(f"The scene then: {_sentence(state)}")
    parts.append(f"Done in the meantime: {'; '.join(_phrase(one.text) for one in since)}.")
    if len(used) > 1:
        parts.append("Picture 1 is the scene at the very beginning, picture 2 the latest one: change picture 2.")
    parts += [KEEP, f"The whole task: {_sentence(plan.goal)}"]
    return " ".join(parts)


def _phrase(text: str) -> str:
    return " ".join(text.split()).rstrip(".;,")


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."
