"""What a step's result is on disk: one picture, frames and sound without loss, or a video file taken over as it is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import pixels
from ..cache import Result, ResultCache
from ..errors import KSGenError
from ..types import Clip
from ..video import open_clip, write_lossless
from .sound import add_sound

if TYPE_CHECKING:
    import torch

PICTURE, FRAMES, VIDEO = "picture", "frames", "video"


def write_picture(folder: Path, picture: torch.Tensor) -> dict[str, Any]:
    """Write a picture float 0..1 `[H, W, 3]` as the host's SaveImage would; the facts about it."""
    from PIL import Image

    Image.fromarray(pixels.cut_to_uint8(picture)).save(folder / "picture.png")
    return {"kind": PICTURE, "file": "picture.png", "height": picture.shape[0], "width": picture.shape[1]}


def write_frames(
    folder: Path, frames: torch.Tensor, fps: float, sound: tuple[torch.Tensor, int] | None = None
) -> dict[str, Any]:
    """Write frames float 0..1 `[F, H, W, 3]` and a sound `[C, N]` with its rate without loss; the facts about them."""
    path = folder / "clip.mkv"
    write_lossless(path, frames, fps)
    if sound is not None:
        silent = path.rename(folder / "silent.mkv")
        add_sound(silent, path, *sound)
        silent.unlink()
    count, height, width = frames.shape[:3]
    return {"kind": FRAMES, "file": path.name, "fps": fps, "frames": count, "height": height, "width": width}


def take_file(folder: Path, path: Path) -> dict[str, Any]:
    """Take over a video file as it is; the facts about it. Raises `KSGenError` if it cannot be read as a video."""
    clip = open_clip(path)
    name = f"clip{path.suffix.lower() or '.mp4'}"
    shutil.copyfile(path, folder / name)
    return {"kind": VIDEO, "file": name, "fps": clip.fps}


def clip_of(result: Result) -> Clip:
    """The clip that a result is. Its file is looked at again whenever it is read: a host may hold on to the clip long
    after it was found. Raises `KSGenError` if the result is a picture."""
    if result.facts["kind"] == PICTURE:
        raise KSGenError("A picture is no clip. Let 'Step Loop Start' make key images, or give frames as the result.")
    clip = open_clip(result.folder / result.facts["file"])

    def read() -> torch.Tensor:
        _check(result)
        return clip.frames

    return replace(clip, read=read, check=lambda: _check(result))


def frames_of(result: Result) -> torch.Tensor:
    """All frames of a result, float32 0..1 `[F, H, W, 3]`; one for a picture.

    Raises `KSGenError` if its file is not what was once made.
    """
    if result.facts["kind"] == PICTURE:
        _check(result)
        return pixels.read_picture(result.folder / result.facts["file"])[None]
    return clip_of(result).frames


def _check(result: Result) -> None:
    if ResultCache(result.folder.parents[1]).find(result.key) is None:
        step = result.about.get("step", "?")
        raise KSGenError(f"The result of step {step} is damaged or gone from {result.folder}. Queue again to make it.")
