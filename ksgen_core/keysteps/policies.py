"""Which way the key images are made, and with how much work. Needs no torch, so that a menu can list the ways."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import read_json
from ..errors import KSGenError
from ..types import check_fields

POLICIES = (
    "auto",
    "skill_transformer",
    "reference",
    "image_prompt",
    "edit_chain",
    "text_only",
    "last_frame",
    "initial",
)
"""What a key image is made from, METHOD.md's method first and its baselines after it:

auto: the best of these that the model has the parts for, see `resolve_policy`;
skill_transformer: the step's text, the initial picture and the tokens that the Skill Transformer foresees;
reference: the step's text and the initial picture beside the noise, without the Skill Transformer;
image_prompt: the step's text and the initial picture as IP-Adapter tokens, the same for every step;
edit_chain: the step's text as an instruction to an edit model that sees the initial and the former key image;
text_only: the step's text alone;
last_frame: the last frame of the clip before it (nothing is drawn, the renderer makes these);
initial: the initial picture for every step (nothing is drawn).
"""

DEFAULTS_FILE = "ksgen.json"
"""What a model folder may hold: the settings that suit this very model."""


@dataclass(frozen=True)
class DrawSettings:
    """How key images are drawn: one of `POLICIES`, the sampler's updates, and the strength of guidance.

    `guidance` 1.0 follows the condition plainly and halves the work; higher values exaggerate it.
    `batch` is how many key images are drawn at once: at most so many, or 0 for all that do not depend on each other.
    More is faster, but float sums change with the batch, so that a step drawn again alone may then differ by one 8-bit
    value in some pixels; one at a time it is equal bit for bit.
    `negative` says what guidance leads away from, `size` is (height, width) in pixels. What is None, and an empty
    `negative`, is the folder's own (`ksgen.json`) or else its family's.
    """

    policy: str = "auto"
    updates: int | None = None
    guidance: float | None = None
    batch: int = 0
    negative: str = ""
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise KSGenError(f"The policy {self.policy!r} is not known. Choose one of {', '.join(POLICIES)}.")
        if self.updates is not None and not (_is_whole(self.updates) and 1 <= self.updates <= 1000):
            raise KSGenError(f"The number of sampler updates is a whole number from 1 to 1000, got {self.updates!r}.")
        if not _is_whole(self.batch) or self.batch < 0:
            raise KSGenError(f"The number of key images drawn at once is a whole number from 0, got {self.batch!r}.")
        if self.guidance is not None and not 1.0 <= self.guidance <= 50.0:
            raise KSGenError(f"Guidance is a number from 1 (none) to 50, got {self.guidance!r}.")
        if self.size is not None and not (len(self.size) == 2 and all(_is_whole(n) and n > 0 for n in self.size)):
            raise KSGenError(f"The size of key images is a height and a width in pixels, got {self.size!r}.")

    def filled(self, *defaults: Mapping[str, Any]) -> DrawSettings:
        """With what is None, and an empty negative prompt, from the first of `defaults` that has it."""
        known = ChainMap(*map(dict, defaults))
        left = [name for name in ("updates", "guidance", "negative", "size") if not getattr(self, name)]
        return replace(self, **{name: known[name] for name in left if name in known})


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def read_defaults(folder: Path) -> dict[str, Any]:
    """The settings in the folder's `ksgen.json`, none without one. Raises `KSGenError`, naming the file."""
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return {}
    known = {"updates": int, "guidance": float, "negative": str, "size": list}
    defaults = check_fields(read_json(path), str(path), {}, known)
    if "size" in defaults:
        defaults["size"] = tuple(defaults["size"])
    try:
        DrawSettings().filled(defaults)
    except KSGenError as error:
        raise KSGenError(f"{path}: {error}") from error
    return defaults


def resolve_policy(model: Any, policy: str) -> str:
    """`policy` itself, or for "auto" the best that the model has the parts for: the Skill Transformer with the
    IP-Adapter that reads its tokens, else that adapter alone, else the text. A model that draws by itself edits.
    """
    if policy != "auto":
        return policy
    if hasattr(model, "draw"):
        return "edit_chain"
    if model.resampler is None or model.image_encoder is None:
        return "text_only"
    return "image_prompt" if model.skill_transformer is None else "skill_transformer"
