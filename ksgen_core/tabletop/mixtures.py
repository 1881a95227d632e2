"""Skills put together from pieces of trained ones, so that what is trained does not know its skills by heart.

Two steps that only an unseen skill has together never meet in a mixture: what `unseen` asks for stays untrained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from random import Random

from .skills import SKILLS, Skill, Step

MOST_STEPS = 7
TRAINED = tuple(skill for skill in SKILLS if not skill.unseen)


def _pairs(programs: Iterable[Sequence[Step]]) -> set[frozenset]:
    """The pairs of steps that one of these programs has together."""
    return {frozenset(_key(step) for step in pair) for steps in programs for pair in combinations(steps, 2)}


def _key(step: Step) -> tuple:
    # By effect as well: butter and jam are both spread with a knife on bread.
    return step.action, step.obj, step.target, step.effects


HELD_OUT = _pairs(skill.steps for skill in SKILLS if skill.unseen) - _pairs(skill.steps for skill in TRAINED)
"""Pairs of steps that are the business of the split `unseen` alone."""


def held_out(steps: Sequence[Step]) -> bool:
    """Whether two of these steps are together in unseen skills alone."""
    return bool(_pairs([steps]) & HELD_OUT)


def mixture(random: Random) -> Skill:
    """Two or three trained skills at once, or beginnings of them: each in its own order, their steps in turn."""
    while True:
        parts = random.sample(TRAINED, random.choice((2, 2, 3)))
        pieces = [list(skill.steps[: random.randint(1, len(skill.steps))]) for skill in parts]
        steps = [step for piece in pieces for step in piece]
        names = [name for skill in parts for name in skill.cast]
        if len(names) == len(set(names)) and len(steps) <= MOST_STEPS and not held_out(steps):
            break
    order = random.sample([k for k, piece in enumerate(pieces) for _ in piece], len(steps))
    return Skill(
        " + ".join(skill.name for skill in parts),
        (" and ".join(random.choice(skill.goals) for skill in parts),),
        tuple(pieces[k].pop(0) for k in order),
        tuple(fact for skill in parts for fact in skill.start if any(fact[0] == s.target for s in steps)),
    )
