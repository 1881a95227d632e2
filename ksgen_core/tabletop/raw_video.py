"""An instance as one raw video, as people film skills: steps in order with hard cuts, filler between, text on screen.

What curation must find again is known exactly: every segment says its frames, its step and whether text is on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import skia

from .instances import Instance, make
from .shots import FPS, render

KINDS_OF_SEGMENT = ("step", "idle", "title", "elsewhere")


@dataclass(frozen=True)
class Segment:
    """Frames `start` (included) to `end` (excluded) of the video: one of KINDS_OF_SEGMENT.

    `step` is the number of the step shown, None in filler; `text` is what stands on the picture, "" for nothing.
    """

    start: int
    end: int
    kind: str
    step: int | None
    text: str

    @property
    def seconds(self) -> tuple[float, float]:
        return self.start / FPS, self.end / FPS


@dataclass(frozen=True)
class RawVideo:
    """`frames` uint8 [F, size, size, 3] at FPS; its segments follow each other without gaps."""

    frames: np.ndarray
    segments: tuple[Segment, ...]
    goal: str


def raw_video(instance: Instance, seed: int, size: int = 128) -> RawVideo:
    """Lay the steps of an instance out as one video. The same arguments give the same video."""
    random = Random(f"raw/{seed}")
    pieces: list[np.ndarray] = []
    segments: list[Segment] = []

    def add(frames: np.ndarray, kind: str, step: int | None = None, text: str = "") -> None:
        start = segments[-1].end if segments else 0
        pieces.append(_write_on(frames, text) if text else frames)
        segments.append(Segment(start, start + len(frames), kind, step, text))

    if random.random() < 0.6:
        add(_idle(instance, 0, random.randint(6, 12), size), "title", text=instance.run.goal.upper())
    for k in range(len(instance.run.steps)):
        chance = random.random()
        if chance < 0.3:
            add(_idle(instance, k, random.randint(4, 16), size), "idle")
        elif chance < 0.5:
            other = make("train", random.randrange(1 << 20))
            add(other.film(0, random.randint(5, 17), size), "elsewhere")
        text = f"{k + 1}. {instance.run.texts[k]}" if random.random() < 0.3 else ""
        add(instance.film(k, random.choice((17, 21, 25)), size), "step", k, text)
    add(_idle(instance, len(instance.run.steps) - 1, random.randint(4, 10), size, after=True), "idle")
    return RawVideo(np.concatenate(pieces), tuple(segments), instance.run.goal)


def _idle(instance: Instance, step: int, frames: int, size: int, *, after: bool = False) -> np.ndarray:
    """Nothing happens: the table before a step, or after the last."""
    run = instance.run
    still = render(
        instance.room, instance.shots[step], run.states[step], run.steps[step], run.states[step + 1], float(after), size
    )
    return np.repeat(still[None], frames, 0)


def _write_on(frames: np.ndarray, text: str) -> np.ndarray:
    """Text in a dark band at the lower edge, as subtitles and recipes have it."""
    out = np.empty_like(frames)
    size = frames.shape[1]
    font = skia.Font(skia.Typeface(""), size / 13)
    font.setSize(font.getSize() * min(1.0, 0.92 * size / max(font.measureText(text), 1.0)))
    for k, frame in enumerate(frames):
        canvas_array = np.dstack([frame, np.full(frame.shape[:2], 255, np.uint8)])
        info = skia.ImageInfo.Make(size, size, skia.kRGBA_8888_ColorType, skia.kOpaque_AlphaType)
        surface = skia.Surface.MakeRasterDirect(info, canvas_array)
        with surface as canvas:
            canvas.drawRect(skia.Rect.MakeLTRB(0, size * 0.86, size, size), skia.Paint(Color=0xB0101018))
            x = (size - font.measureText(text)) / 2
            canvas.drawString(text, x, size * 0.955, font, skia.Paint(Color=0xFFFFFFFF, AntiAlias=True))
        out[k] = canvas_array[..., :3]
    return out
