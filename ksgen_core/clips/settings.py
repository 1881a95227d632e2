"""With how much work clips are rendered, and how long they are. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import KSGenError


@dataclass(frozen=True)
class RenderSettings:
    """How clips are rendered: the sampler's updates, the strength of guidance, frames per clip and their rate.

    `guidance` 1.0 follows the text plainly and halves the work. `frames` is a multiple of 4, plus 1: Wan's VAE makes
    one latent of the first frame and one of every four after it. `batch` is how many clips `render_clips` renders at
    once; float sums change with it, so that a clip rendered again alone may then differ in the last bits.
    """

    updates: int = 12
    guidance: float = 1.0
    frames: int = 17
    fps: float = 8.0
    batch: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.updates, int) or isinstance(self.updates, bool) or not 1 <= self.updates <= 1000:
            raise KSGenError(f"The number of sampler updates is a whole number from 1 to 1000, got {self.updates!r}.")
        if not 1.0 <= self.guidance <= 50.0:
            raise KSGenError(f"Guidance is a number from 1 (none) to 50, got {self.guidance!r}.")
        if not isinstance(self.frames, int) or isinstance(self.frames, bool) or self.frames < 5 or self.frames % 4 != 1:
            raise KSGenError(f"A clip has 5, 9, 13, 17, ... frames, got {self.frames!r}. {_nearest(self.frames)}")
        if not 0 < self.fps <= 240:
            raise KSGenError(f"The rate of a clip is more than 0 and at most 240 frames a second, got {self.fps!r}.")
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or self.batch < 1:
            raise KSGenError(f"The number of clips rendered at once is a whole number from 1, got {self.batch!r}.")


def _nearest(frames: object) -> str:
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 5:
        return "The least is 5."
    below = (frames - 1) // 4 * 4 + 1
    return f"The nearest are {below} and {below + 4}."
