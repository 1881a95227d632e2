"""The pictures of a film: which frames of which clips are on at a time, fitted into the film, titled and mixed.

Legend: H, W height and width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import KSGenError
from ..types import Clip
from ..video import Facts, frames
from .titles import with_title

if TYPE_CHECKING:
    import numpy as np

TITLE_SECONDS = 2
"""How long a title is shown; a shorter clip shows it to its end."""


@dataclass(frozen=True)
class Part:
    """A clip's place in a film: its first frame there is on at `start` seconds.

    The `skip` frames that the clip has before it, and the sound of their time, are not in the film.
    """

    clip: Clip
    facts: Facts
    rate: Fraction
    start: Fraction
    skip: int = 0

    @property
    def count(self) -> int:
        return self.facts.count - self.skip

    @property
    def seconds(self) -> Fraction:
        return self.count / self.rate

    @property
    def end(self) -> Fraction:
        return self.start + self.seconds


def pictures(
    parts: Sequence[Part],
    rate: Fraction,
    total: int,
    size: tuple[int, int],
    titles: Sequence[str] | None,
    aspect: Fraction = Fraction(1),
) -> Generator[np.ndarray, None, None]:
    """The `total` pictures uint8 `[H, W, 3]` of `size` (H, W) of a film at `rate`, a pixel of which is shown `aspect`
    times as wide as high.

    A clip overlaps with its neighbours for at most half of its time, so no more than two are on at once.
    """
    texts = titles or [None] * len(parts)
    with ExitStack() as opened:
        shown = [
            opened.enter_context(
                closing(_shown(part, number, rate, size, part.facts.aspect / aspect, texts[number - 1]))
            )
            for number, part in enumerate(parts, 1)
        ]
        first = 0
        for number in range(total):
            time = number / rate
            while first + 1 < len(parts) and time >= parts[first].end:
                shown[first].close()
                first += 1
            picture = next(shown[first])
            if first + 1 < len(parts) and time >= parts[first + 1].start:
                share = _share(parts[first], parts[first + 1], time + 1 / rate / 2)
                picture = _mix(picture, next(shown[first + 1]), share)
            yield picture


def _shown(
    part: Part, number: int, rate: Fraction, size: tuple[int, int], stretch: Fraction, title: str | None
) -> Generator[np.ndarray, None, None]:
    """What clip `number` (from 1) shows in every frame of the film in which it is on: uint8 `[H, W, 3]` of `size`."""
    index, picture = -1, None
    with closing(frames(part.clip)) as source:
        for time in (n / rate for n in range(math.ceil(part.start * rate), math.ceil(part.end * rate))):
            wanted, raw = part.skip + math.floor((time - part.start) * part.rate), None
            while index < wanted:
                raw = next(source, None)
                if raw is None:
                    raise KSGenError(
                        f"Clip {number} ({part.clip.path or 'in memory'}) should have {part.skip + part.count} "
                        f"frames, but only {index + 1} can be read. Make that clip again."
                    )
                index += 1
            if raw is not None:
                picture = fitted(raw, size, stretch)
                if title is not None and time - part.start < TITLE_SECONDS:
                    picture = with_title(picture, number, title)
            if picture is not None:
                yield picture


def _share(one: Part, other: Part, time: Fraction) -> float:
    """How much of the other clip is seen at `time` of a cross-fade between them: 0 to 1."""
    return float(min(Fraction(1), (time - other.start) / (one.end - other.start)))


def _mix(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """uint8 `[H, W, 3]` twice -> one (1 - share) + other share, rounded to the nearest."""
    import numpy as np

    return (one * np.float32(1 - share) + other * np.float32(share) + np.float32(0.5)).astype(np.uint8)


def fitted(picture: np.ndarray, size: tuple[int, int], stretch: Fraction = Fraction(1)) -> np.ndarray:
    """uint8 `[H, W, 3]` -> the whole picture, as large as `size` (H, W) lets it be, in the middle of black.

    Its pixels are taken for `stretch` times as wide for their height as those of the result.
    """
    import numpy as np
    from PIL import Image

    if picture.shape[:2] == size and stretch == 1:
        return picture
    height, width = size
    shape = stretch * picture.shape[1] / picture.shape[0]
    high, wide = min(height, max(1, round(width / shape))), min(width, max(1, round(height * shape)))
    resized = Image.fromarray(picture).resize((wide, high), Image.Resampling.LANCZOS)
    top, left = round((height - high) / 2), round((width - wide) / 2)
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top : top + high, left : left + wide] = np.asarray(resized)
    return padded
