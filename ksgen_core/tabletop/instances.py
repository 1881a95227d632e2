"""Instances: from a seed and a split to pictures, clips, steps and states.

Splits: `train` and `seen` share their skills but never a seed; `mixed`, for training too, puts pieces of these skills
together anew; `unseen` has skills whose composition was never trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from ..types import KeyStep, Plan
from .mixtures import mixture
from .scene import Room, Shot, frame_up, furnish
from .shots import FPS, FRAMES, LATER_START, clip, render
from .skills import SKILLS, Run, Skill, sentence, unfold

SPLITS = ("train", "mixed", "seen", "unseen")


@dataclass(frozen=True)
class Instance:
    """One skill in one room: `run` has the steps and states, `shots[k]` the camera and layout of step k."""

    run: Run
    room: Room
    shots: tuple[Shot, ...]

    def first_frame(self, step: int, size: int = 128) -> np.ndarray:
        """The key picture of step `step` (from 0), uint8 [size, size, 3]; that of step 0 is the initial picture."""
        phase = LATER_START if step else 0.0
        return render(self.room, self.shots[step], *self._states(step), phase, size)

    def film(self, step: int, frames: int = FRAMES, size: int = 128) -> np.ndarray:
        """The clip of step `step`, uint8 [frames, size, size, 3]; its first frame is `first_frame(step)`."""
        return clip(self.room, self.shots[step], *self._states(step), first=step == 0, frames=frames, size=size)

    def _states(self, step: int):
        return self.run.states[step], self.run.steps[step], self.run.states[step + 1]

    @property
    def plan(self) -> Plan:
        """The exact steps for this picture, with states in words."""
        return plan_of(self.run)


def plan_of(run: Run) -> Plan:
    """The steps of a run as a plan, with states in words."""
    steps = []
    for k, text in enumerate(run.texts):
        before, after = sentence(run.states[k], run.steps[k], run.states[k + 1])
        steps.append(KeyStep(text, before, after, seconds=FRAMES / FPS))
    return Plan(run.goal, tuple(steps), (f"tabletop:{run.skill.name}",), "tabletop")


def skills_of(split: str) -> tuple[Skill, ...]:
    """The skills of a split, or those that `mixed` puts together."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, known are {SPLITS}")
    return tuple(s for s in SKILLS if s.unseen == (split == "unseen"))


def make(split: str, seed: int, skills: Sequence[Skill] | None = None) -> Instance:
    """The instance with this number: the same one for ever. Other `skills` make a split of their own."""
    random = Random(f"{split}/{seed}")
    skill = mixture(random) if split == "mixed" and not skills else random.choice(skills or skills_of(split))
    run = unfold(skill, random)
    room = furnish(run.skill.cast, random)
    shots = tuple(frame_up(room, run.states[k], run.steps[k], random) for k in range(len(run.steps)))
    return Instance(run, room, shots)
