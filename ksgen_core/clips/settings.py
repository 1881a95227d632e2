"""With how much work clips are rendered, and how long and large they are. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..checkpoints import read_json
from ..errors import KSGenError
from ..types import check_fields
from .families import Family

DEFAULTS_FILE = "ksgen.json"


@dataclass(frozen=True)
class RenderSettings:
    """How clips are rendered: the sampler's updates, the strength of guidance, frames per clip and their rate.

    What is None is taken from the `ksgen.json` of the model's folder, else from its family. `guidance` 1.0 follows the
    text plainly and halves the work. A step's own `seconds` win over `frames`. `negative` is the text to stay away
    from. `size` (height, width) is that of the clips; without it they have their key image's, see `render.clip_size`.
    With `to_next` each clip ends in the key image of the step after it, which not every family can.
    """

    updates: int | None = None
    guidance: float | None = None
    frames: int | None = None
    fps: float | None = None
    negative: str | None = None
    size: tuple[int, int] | None = None
    to_next: bool = False

    def __post_init__(self) -> None:
        if self.updates is not None and not (_is_whole(self.updates) and 1 <= self.updates <= 1000):
            raise KSGenError(f"The number of sampler updates is a whole number from 1 to 1000, got {self.updates!r}.")
        if self.guidance is not None and not 1.0 <= self.guidance <= 50.0:
            raise KSGenError(f"Guidance is a number from 1 (none) to 50, got {self.guidance!r}.")
        if self.frames is not None and not (_is_whole(self.frames) and self.frames >= 1):
            raise KSGenError(f"The number of frames is a whole number from 1, got {self.frames!r}.")
        if self.fps is not None and not 0 < self.fps <= 240:
            raise KSGenError(f"The rate of a clip is more than 0 and at most 240 frames a second, got {self.fps!r}.")
        if self.size is not None and not (len(self.size) == 2 and all(_is_whole(n) and n >= 1 for n in self.size)):
            raise KSGenError(f"The size of a clip is height and width in whole pixels, got {self.size!r}.")


@dataclass(frozen=True)
class Defaults:
    """What is not said otherwise for one model. `guidance_2` is for a second expert, None: as `guidance`."""

    updates: int
    guidance: float
    frames: int
    fps: float
    negative: str
    guidance_2: float | None = None

    def over(self, settings: RenderSettings) -> Defaults:
        """These, with what the settings say in their place. A guidance that is said goes for both experts."""
        said = {f.name: value for f in fields(self) if (value := getattr(settings, f.name, None)) is not None}
        if "guidance" in said:
            said["guidance_2"] = None
        return replace(self, **said)


def defaults(family: Family, own: Mapping[str, Any]) -> Defaults:
    """The family's, with a folder's `own` in their place."""
    values = {f.name: getattr(family, f.name) for f in fields(Defaults)}
    if "guidance" in own:
        values["guidance_2"] = None
    return Defaults(**{**values, **own})


def read_own(folder: Path) -> dict[str, Any]:
    """What the folder's `ksgen.json` says of this very model, nothing if there is none.

    Raises `KSGenError` if it cannot be read or says something that is not known.
    """
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return {}
    known = {"updates": int, "guidance": float, "guidance_2": float, "frames": int, "fps": float, "negative": str}
    own = check_fields(read_json(path), str(path), {}, known)
    RenderSettings(**{name: value for name, value in own.items() if name != "guidance_2"})  # refuses nonsense
    return own


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
