"""A record of a data set: one skill that somebody carried out, its texts, pictures and clips.

`dataset` says what its document holds and where its files lie. Legend: H, W a picture's height and width in pixels.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .. import pixels, video
from ..errors import KSGenError
from ..types import Clip, KeyStep, Plan

if TYPE_CHECKING:
    import torch

KIND = "ksgen.record/1"
SPLITS = ("train", "validation")
ID = re.compile(r"[\w-]{1,200}")
"""What an id is made of: WebDataset ends a record's key at the first full stop."""


@dataclass(frozen=True)
class RecordStep:
    """One step: its text, the names of its key image and of its clip, the state of the scene before and after."""

    text: str
    image: str
    clip: str | None = None
    before: str | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("before", self.before), ("after", self.after)):
            if value is not None and not isinstance(value, str):
                raise KSGenError(f"{name!r} is a sentence, got {value!r}.")
        KeyStep(self.text, self.before, self.after)  # the same rules as in a plan
        for name, value in (("image", self.image), ("clip", self.clip)):
            if not _inside(value) and not (name == "clip" and value is None):
                raise KSGenError(f"{name!r} is a path inside the data set, e.g. '0.png', got {value!r}.")


def _inside(name: object) -> bool:
    """Is this a path that stays in its folder, on every system?"""
    if not isinstance(name, str) or "\\" in name or PureWindowsPath(name).drive:  # as in C:/0.png
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _no_files(name: str) -> bytes:
    raise ValueError(f"this record was made without its files, wanted {name}")


@dataclass(frozen=True)
class Record:
    """One skill that was carried out.

    `read` gives the bytes of a picture or a clip by its name in `steps`, `where` says where the record stands, and
    `stamp` changes whenever its files do.
    """

    id: str
    goal: str
    steps: tuple[RecordStep, ...]
    split: str = "train"
    read: Callable[[str], bytes] = field(default=_no_files, repr=False, compare=False)
    where: str = field(default="", compare=False)
    stamp: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not ID.fullmatch(self.id):
            raise KSGenError(f"An id is made of at most 200 letters, digits, _ and -, got {self.id!r}.")
        if self.split not in SPLITS:
            raise KSGenError(f"The split is one of {', '.join(SPLITS)}, got {self.split!r}.")
        _ = self.plan

    @property
    def plan(self) -> Plan:
        steps = tuple(KeyStep(step.text, step.before, step.after) for step in self.steps)
        return Plan(self.goal, steps, (f"record:{self.id}",))

    def image(self, step: int) -> torch.Tensor:
        """The key image [H, W, 3] of a step. Raises `KSGenError`, naming the file, if it is no usable picture."""
        from PIL import Image

        name = self.steps[step].image
        try:
            with Image.open(io.BytesIO(self.read(name))) as picture:
                return pixels.one_picture(pixels.from_pil(picture))
        except (KSGenError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise KSGenError(f"The picture {name!r} of {self.where} cannot be used ({error}). Replace it.") from error

    @contextmanager
    def clip(self, step: int) -> Iterator[Clip | None]:
        """The clip of a step, or None without one. Its frames can be read inside the `with` alone.

        Raises `KSGenError`, naming the clip, if it is no video, or for one that the inside of the `with` raises.
        """
        name = self.steps[step].clip
        if name is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="ksgen-") as folder:
            try:
                path = Path(folder) / f"clip{PurePosixPath(name).suffix}"  # in a shard it is no file of its own
                path.write_bytes(self.read(name))
                yield video.open_clip(path)
            except (KSGenError, OSError) as error:
                raise KSGenError(f"The clip {name!r} of {self.where} cannot be used ({error}).") from error

    def to_json(self) -> dict[str, Any]:
        """The document; `from_json` gives an equal record back."""
        names = ("text", "image", "clip", "before", "after")
        steps = [{n: value for n in names if (value := getattr(step, n)) is not None} for step in self.steps]
        return {"kind": KIND, "id": self.id, "goal": self.goal, "split": self.split, "steps": steps}

    @classmethod
    def from_json(cls, document: Any, read: Callable[[str], bytes] = _no_files, where: str = "") -> Record:
        """Raises `KSGenError` for anything but a whole `ksgen.record/1` document."""
        given = _object(document, "A record", ("kind", "id", "goal", "steps"), ("split",))
        if given["kind"] != KIND:
            raise KSGenError(f"A record's kind is {KIND!r}, got {given['kind']!r}.")
        if not isinstance(given["steps"], list) or not given["steps"]:
            raise KSGenError(f"A record's steps are a list of at least one, got {given['steps']!r}.")
        optional = ("clip", "before", "after")
        steps = [_object(s, f"Step {k}", ("text", "image"), optional) for k, s in enumerate(given["steps"])]
        made = tuple(RecordStep(**step) for step in steps)
        return cls(given["id"], given["goal"], made, given.get("split", "train"), read, where)

    def files(self) -> Iterator[str]:
        """The names of all pictures and clips."""
        for step in self.steps:
            yield from (step.image,) if step.clip is None else (step.image, step.clip)


def _object(got: Any, what: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(got, dict):
        raise KSGenError(f"{what} is a JSON object, got {type(got).__name__}.")
    missing, unknown = [k for k in needed if k not in got], [k for k in got if k not in (*needed, *optional)]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has unknown entries: {', '.join(unknown)}"
        raise KSGenError(f"{what} {wrong}. It has {', '.join(needed)} and may have {', '.join(optional)}.")
    return got
