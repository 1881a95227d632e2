"""What the user sets for a loop over the steps of a plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import KSGenError

CLIPS = "clips"
KEY_IMAGES = "key images"
MAKES = (CLIPS, KEY_IMAGES)
SAME_SEED = "the same for every step"
COUNTED_SEED = "seed + step number"
SEEDS = (SAME_SEED, COUNTED_SEED)


class FrameRule(NamedTuple):
    """Which frame counts a node takes: the least, and the distance from one to the next."""

    least: int
    distance: int


ANY_COUNT = FrameRule(1, 1)
_RANGE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?")


@dataclass(frozen=True)
class LoopSettings:
    """How a loop goes through a plan.

    `makes` says what a step's result is. `name` tells several loops of one graph apart. `seconds` is the length of a
    clip whose step names none. Frame counts are `frame_step` times a number plus 1, as video models that pack time by 4
    or 8 want them; 0 means what the nodes want that the count goes to. `steps` are the steps to make, as in "2, 4-6";
    empty means all.
    """

    makes: str = CLIPS
    name: str = ""
    seed: int = 0
    seeds: str = SAME_SEED
    seconds: float = 2.0
    fps: float = 16.0
    frame_step: int = 0
    steps: str = ""

    def __post_init__(self) -> None:
        if self.makes not in MAKES:
            raise ValueError(f"makes must be one of {MAKES}, got {self.makes!r}")
        if self.seeds not in SEEDS:
            raise ValueError(f"seeds must be one of {SEEDS}, got {self.seeds!r}")
        for name, least, most in (("seconds", 0.01, 600), ("fps", 0.01, 240), ("frame_step", 0, 1000)):
            if not least <= getattr(self, name) <= most:
                raise KSGenError(
                    f"{name.replace('_', ' ')} of 'Step Loop Start' must be from {least} to {most}, got "
                    f"{getattr(self, name)}. Connect or set another number."
                )

    def frames(self, seconds: float | None, wanted: FrameRule) -> int:
        """The frame count that a clip of so many seconds comes nearest to, by `frame_step` or, if that is 0, of those
        that the nodes want."""
        least, distance = FrameRule(1, self.frame_step) if self.frame_step else wanted
        wished = (seconds or self.seconds) * self.fps
        # One frame is no clip.
        fewest = 0 if least > 1 else 1
        return least + distance * max(fewest, round((wished - least) / distance))


def chosen_steps(text: str, count: int) -> frozenset[int]:
    """The steps (from 0) that a text like "2, 4-6" names, of `count`; all for an empty text.

    Raises `KSGenError` for a text that is no such list or names steps that the plan has not.
    """
    if not text.strip():
        return frozenset(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if not found:
            raise KSGenError(f"Steps to make: {part.strip()!r} is no step. Write numbers and ranges, e.g. '2, 4-6'.")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last <= count:
            raise KSGenError(f"Steps to make: {part.strip()!r} was asked for, but the plan has the steps 1 to {count}.")
        chosen.update(range(first - 1, last))
    return frozenset(chosen)
