"""A step's title over a picture: its number and text on a dark band at the bottom.

Legend: H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..errors import KSGenError
from ..sheet import FONT_VARIABLE, font_files, font_of, lacking, lines_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SMALLEST = 9
"""Pixels of the font below which nobody reads it."""
BAND = (20, 17, 15, 176)
INK = (255, 255, 255, 255)
ACCENT = (255, 176, 128, 255)


def check_titles(texts: Sequence[str]) -> None:
    """Raise `KSGenError` if there is no font here that can draw a text."""
    fonts = font_files()
    for number, text in enumerate(texts, 1):
        lacks = min((lacking(text, font) for font in fonts), key=len)
        if lacks:
            raise KSGenError(
                f"The title of step {number} needs letters that no font here can draw: {lacks[:20]}. Set the "
                f"environment variable {FONT_VARIABLE} to the path of a font that has them, or turn titles off."
            )


def with_title(picture: np.ndarray, number: int, text: str) -> np.ndarray:
    """uint8 `[H, W, 3]` -> a copy with the title of step `number` (from 1), whatever the size."""
    import numpy as np
    from PIL import Image

    height, width = picture.shape[:2]
    band = _band(number, text, height, width)
    shown = Image.fromarray(picture)
    shown.paste(band, (0, height - band.height), band)
    return np.asarray(shown)


@lru_cache(maxsize=4)
def _band(number: int, text: str, height: int, width: int) -> Image.Image:
    """The band, in RGBA, at most half as high as the picture: in a smaller font, or cut, if the text is long."""
    from PIL import Image, ImageDraw

    size = max(SMALLEST, round(min(height, width) / 16))
    while True:
        font, line, pad = font_of(text, size), round(size * 1.3), max(1, size // 2)
        label, of_label = f"{number} ", font_of(str(number), size)  # a font of Arabic may have no digits
        indent = pad + int(of_label.getlength(label))
        lines = lines_of(" ".join(text.split()), font, max(1, width - indent - pad))
        most = max(1, (height // 2 - 2 * pad) // line)
        if len(lines) <= most or size == SMALLEST:
            break
        size = max(SMALLEST, round(size * 0.85))
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][:-1].rstrip() + "…"]
    band = Image.new("RGBA", (width, min(height // 2, len(lines) * line + 2 * pad)), BAND)
    draw = ImageDraw.Draw(band)
    draw.text((pad, pad), label, ACCENT, of_label)
    for k, shown in enumerate(lines):
        draw.text((indent, pad + k * line), shown, INK, font)
    return band
