"""Which way the key images are made, and with how much work. Needs no torch, so that a menu can list the ways."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import KSGenError

POLICIES = ("skill_transformer", "reference", "text_only", "last_frame", "initial")
"""What a key image is made from, METHOD.md's method first and its baselines after it:

skill_transformer: the step's text, the initial picture and the tokens that the Skill Transformer foresees;
reference: the step's text and the initial picture beside the noise, without the Skill Transformer;
text_only: the step's text alone;
last_frame: the last frame of the clip before it (nothing is drawn, the renderer makes these);
initial: the initial picture for every step (nothing is drawn).
"""


@dataclass(frozen=True)
class DrawSettings:
    """How key images are drawn: one of `POLICIES`, the sampler's updates, and the strength of guidance.

    `guidance` 1.0 follows the condition plainly and halves the work; higher values exaggerate it.
    `batch` is how many key images are drawn at once. More is faster, but float sums change with the batch, so that a
    step drawn again alone may then differ by one 8-bit value in some pixels; one at a time it is equal bit for bit.
    """

    policy: str = "skill_transformer"
    updates: int = 20
    guidance: float = 3.5
    batch: int = 1

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise KSGenError(f"The policy {self.policy!r} is not known. Choose one of {', '.join(POLICIES)}.")
        if not isinstance(self.updates, int) or isinstance(self.updates, bool) or not 1 <= self.updates <= 1000:
            raise KSGenError(f"The number of sampler updates is a whole number from 1 to 1000, got {self.updates!r}.")
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or self.batch < 1:
            raise KSGenError(f"The number of key images drawn at once is a whole number from 1, got {self.batch!r}.")
        if not 1.0 <= self.guidance <= 50.0:
            raise KSGenError(f"Guidance is a number from 1 (none) to 50, got {self.guidance!r}.")
