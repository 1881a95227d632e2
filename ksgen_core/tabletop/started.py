"""Instances that have begun: the picture shows the state after the first steps, and what is left is the exact plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import numpy as np

from .instances import SPLITS, skills_of
from .mixtures import mixture
from .scene import Room, Shot, frame_up, furnish
from .shots import render
from .skills import Run, Skill, Step, apply, holds, unfold
from .world import State


@dataclass(frozen=True)
class Started:
    """A skill of which the steps `done` are done: `run` is the rest, from the state that the picture shows."""

    run: Run
    done: tuple[Step, ...]
    room: Room
    shot: Shot

    def picture(self, size: int = 128) -> np.ndarray:
        """What the camera sees now, uint8 [size, size, 3]."""
        now, after = self.run.states[:2]
        return render(self.room, self.shot, now, self.run.steps[0], after, 0.0, size)


def make_started(split: str, seed: int, *, begun: bool | None = None) -> Started:
    """The started instance with this number: the same one for ever. At least one step is left.

    Any number of steps is done, each as likely as any other; if `begun` at least one, if not `begun` none.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, known are {SPLITS}")
    random = Random(f"started/{split}/{seed}")
    skill = mixture(random) if split == "mixed" else random.choice(skills_of(split))
    whole = unfold(skill, random, skip=0)
    fewest, most = int(begun is True), 1 if begun is False else len(whole.steps)
    k = random.randrange(fewest, most)
    run = Run(skill, whole.goal, whole.steps[k:], whole.texts[k:], whole.states[k:])
    room = furnish(skill.cast, random)
    return Started(run, whole.steps[:k], room, frame_up(room, run.states[0], run.steps[0], random))


def whole_plans(skill: Skill) -> list[tuple[Step, ...]]:
    """Every order and choice of optional steps that `unfold` could draw, the skill's own order first."""
    found: dict[tuple[Step, ...], None] = {}
    for swaps in product((False, True), repeat=len(skill.free)):
        steps = list(skill.steps)
        for swap, (a, b) in zip(swaps, skill.free, strict=True):
            if swap:
                steps[a], steps[b] = steps[b], steps[a]
        for chosen in product((True, False), repeat=sum(step.optional for step in steps)):
            wanted = iter(chosen)
            found[tuple(step for step in steps if not step.optional or next(wanted))] = None
    return list(found)


def plans_left(skill: Skill, done: Sequence[Step], state: State) -> list[tuple[Step, ...]]:
    """Every exact plan from `state`, in which the steps `done` are done: the rest of a whole plan, never empty."""
    found: dict[tuple[Step, ...], None] = {}
    for steps in whole_plans(skill):
        left = tuple(step for step in steps if step not in done and not holds(state, step.effects))
        if left:
            found[left] = None
    return list(found)


def carried_out(state: State, steps: Sequence[Step]) -> State:
    """The state after all the steps, one after another."""
    for step in steps:
        state = apply(state, step)
    return state
