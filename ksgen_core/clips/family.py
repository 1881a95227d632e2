"""What is known of one family of image-to-video models. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family, and how its clips are made unless somebody says otherwise.

    `classes` are the names that `model_index.json` gives it, `pipeline` the class of diffusers that renders. `tells`
    are (part, key, value) that tell kinds of one class apart: a bool says whether the config of that part ("" the
    index itself) has something under that key at all, anything else is the value wanted. `parts` are the components
    that must be there, `denoisers` those that run in every update. `guidance_2` is for the low-noise expert.

    A clip has `least` to `most` frames, their number is a multiple of `every`, plus 1; 0: `frames` is the only one.
    `area` is the size (height, width) that the family was made for: larger pictures are shrunk to that many pixels.
    `unused` are components that a folder may have and that are not read, `precise` those that are read in float32,
    whatever the others are read in.
    """

    name: str
    classes: tuple[str, ...]
    pipeline: str
    tells: tuple[tuple[str, str, object], ...]
    parts: tuple[str, ...]
    denoisers: tuple[str, ...]
    updates: int
    guidance: float
    fps: float
    frames: int
    every: int
    least: int
    most: int
    area: tuple[int, int]
    guidance_2: float | None = None
    negative: str = ""
    text: bool = True
    last_frame: bool = False
    needs_last_frame: bool = False
    unused: tuple[str, ...] = ()
    precise: tuple[str, ...] = ()

    @property
    def counts(self) -> str:
        """The legal numbers of frames in words."""
        if not self.every:
            return str(self.frames)
        return f"{self.least}, {self.least + self.every}, {self.least + 2 * self.every}, ... {self.most}"
