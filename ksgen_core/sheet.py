"""Sheets: all steps of a storyboard in one picture, each a card with its number, text and pictures; frames of one film.

Legend: F frames, H, W height and width in pixels of one picture; lengths are in pixels of the sheet.
"""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from . import pixels
from .errors import KSGenError
from .types import Clip, Plan
from .video import frames, measure

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont

PICTURE = 224
"""The longer side of a picture on the sheet."""
GAP = 12
MARGIN = 28
PAPER = (244, 240, 232)
CARD = (255, 254, 251)
EDGE = (225, 217, 203)
INK = (52, 45, 40)
FAINT = (142, 130, 118)
ACCENT = (206, 92, 52)

OWN_FONT = Path(__file__).parent / "fonts" / "DejaVuSans-subset.ttf"
"""Latin with all its accents, Greek, Cyrillic, Vietnamese, and the signs of instructions. Pillow's font has ASCII."""
FONT_VARIABLE = "KSGEN_FONT"
SYSTEM_FONTS = (
    ("/usr/share/fonts/truetype/dejavu", "DejaVuSans.ttf"),
    ("/usr/share/fonts/opentype/noto", "NotoSansCJK-Regular.ttc"),
    ("/usr/share/fonts/noto-cjk", "NotoSansCJK-Regular.ttc"),
    ("/usr/share/fonts/google-noto-cjk", "NotoSansCJK-Regular.ttc"),
    ("/usr/share/fonts/google-noto-sans-cjk-fonts", "NotoSansCJK-Regular.ttc"),
    ("/usr/share/fonts/truetype/wqy", "wqy-microhei.ttc, wqy-zenhei.ttc"),
    (
        "/usr/share/fonts/truetype/noto",
        "NotoSansArabic-Regular.ttf, NotoSansDevanagari-Regular.ttf, NotoSansHebrew-Regular.ttf, "
        "NotoSansThai-Regular.ttf",
    ),
    ("/usr/share/fonts/truetype/freefont", "FreeSans.ttf"),
    (
        "/System/Library/Fonts",
        "PingFang.ttc, Hiragino Sans GB.ttc, AppleSDGothicNeo.ttc, Supplemental/Arial Unicode.ttf",
    ),
    ("/Library/Fonts", "Arial Unicode.ttf"),
    ("${WINDIR}/Fonts", "segoeui.ttf, msyh.ttc, YuGothR.ttc, malgun.ttf, Nirmala.ttc, Nirmala.ttf, seguisym.ttf"),
)
"""Where Linux, macOS and Windows keep fonts with Chinese, Japanese, Korean, Arabic, Hindi and other letters."""
SELECTORS = {chr(code) for code in range(0xFE00, 0xFE10)}
"""They choose between forms of the character before them and are not seen themselves."""


def sheet(plan: Plan, images: Sequence[torch.Tensor], clips: Sequence[Clip] | None = None) -> torch.Tensor:
    """One key image `[H, W, 3]` per step and, if given, one clip -> the sheet, float32 0..1 `[H', W', 3]`.

    A step's card shows the key image and, of its clip, the middle and the last frame. Clips in files are read frame by
    frame, and what is shown is made small at once. Raises `KSGenError`, naming the file, if one cannot be read.
    """
    from PIL import Image, ImageDraw

    if len(images) != len(plan.steps) or (clips is not None and len(clips) != len(images)):
        raise ValueError(f"a sheet needs a picture and a clip for each of {len(plan.steps)} steps, got {len(images)}")
    rows = [[_small(pixels.to_uint8(image))] for image in images]
    for row, clip in zip(rows, clips or (), strict=False):
        row += _middle_and_end(clip)

    count = len(rows)
    if clips:
        columns = 1 if count <= 3 else 2
    else:
        columns = count if count <= 4 else 3 if count in (5, 6, 9) else 4
    card_width = GAP + max(168, sum(picture.width + GAP for picture in rows[0]))
    text = [lines_of(step.text, font_of(step.text, 19), card_width - 2 * GAP - 44) for step in plan.steps]
    large = font_of(plan.goal, 34)
    title = lines_of(plan.goal[:1].upper() + plan.goal[1:], large, columns * (card_width + GAP) - GAP)
    bands = [range(k, min(k + columns, count)) for k in range(0, count, columns)]
    heads = [max(34, *(4 + 26 * len(text[k]) for k in band)) for band in bands]
    picture_height = rows[0][0].height
    top = MARGIN + 42 * len(title) + 44

    width = 2 * MARGIN + columns * (card_width + GAP) - GAP
    height = top + sum(head + picture_height + 4 * GAP for head in heads) - GAP + MARGIN
    paper = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(paper)
    for k, line in enumerate(title):
        draw.text((MARGIN, MARGIN + 42 * k), line, INK, large, stroke_width=0.6)
    steps = f"{count} key steps" if count > 1 else "1 key step"
    shown = ": first picture, then the middle and the end of its clip" if clips else ""
    draw.text((MARGIN + 1, MARGIN + 42 * len(title) + 6), steps + shown, FAINT, font_of("", 17))

    y = top
    for band, head in zip(bands, heads, strict=True):
        for column, k in enumerate(band):
            x = MARGIN + column * (card_width + GAP)
            bottom = y + head + picture_height + 3 * GAP
            draw.rounded_rectangle((x, y, x + card_width, bottom), 14, CARD, EDGE)
            _badge(paper, x + GAP, y + GAP, k + 1)
            for n, line in enumerate(text[k]):
                draw.text((x + GAP + 44, y + GAP + 5 + 26 * n), line, INK, font_of(plan.steps[k].text, 19))
            left = x + GAP
            for n, picture in enumerate(rows[k]):
                paper.paste(picture, (left, y + head + 2 * GAP), _rounded(picture.size, 9))
                left += picture.width + GAP
                if n + 1 < len(rows[k]):
                    _arrow(draw, left - GAP // 2, y + head + 2 * GAP + picture.height // 2)
        y = bottom + GAP
    return pixels.from_pil(paper)


def frame_sheet(frames: torch.Tensor, count: int, columns: int = 0) -> torch.Tensor:
    """Frames `[F, H, W, 3]` -> `count` of them, evenly spread, side by side `[H', W', 3]`, in their size, without gaps.

    The first and the last are among them; a `count` of 1 is the last. Of fewer frames all are shown. At most `columns`
    stand in a row; with 0 the sheet fits into the smallest square and has the fewest empty cells, which are black.
    """
    if frames.ndim != 4 or not len(frames) or count < 1 or columns < 0:
        raise ValueError(f"frames {tuple(frames.shape)}, count {count} and columns {columns} make no sheet")
    last, (height, width) = len(frames) - 1, frames.shape[1:3]
    count = min(count, len(frames))
    chosen = [(2 * k * last + count - 1) // (2 * (count - 1)) for k in range(count)] if count > 1 else [last]

    def size(across: int) -> tuple[int, int]:
        """The longer side and the number of cells with `across` frames in a row."""
        down = -(-count // across)
        return max(across * width, down * height), across * down

    across = min(columns, count) or min(range(1, count + 1), key=size)
    paper = frames.new_zeros(-(-count // across) * height, across * width, frames.shape[3])
    for k, number in enumerate(chosen):
        y, x = k // across * height, k % across * width
        paper[y : y + height, x : x + width] = frames[number]
    return paper


def _middle_and_end(clip: Clip) -> list[Image.Image]:
    """Two frames of a clip as they are on the sheet."""
    if clip.path is None:
        film = clip.frames
        return [_small(pixels.cut_to_uint8(film[number])) for number in (len(film) // 2, -1)]
    middle = last = None
    half = measure(clip)[0] // 2
    for number, picture in enumerate(frames(clip)):
        middle, last = picture if number <= half else middle, picture
    return [_small(picture) for picture in (middle, last) if picture is not None]


def _small(picture: np.ndarray) -> Image.Image:
    """A picture uint8 `[H, W, 3]` in its size on the sheet."""
    from PIL import Image

    height, width = picture.shape[:2]
    scale = PICTURE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)


def font_of(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first of the fonts that has all letters of a text, or else the one that lacks the fewest.

    Raises `KSGenError` if the environment names a font that cannot be read.
    """
    best, fewest = None, len(text) + 1
    for path in font_files():
        lacks = len(lacking(text, path))
        if lacks < fewest:
            best, fewest = path, lacks
        if not lacks:
            break
    return _font(best or str(OWN_FONT), size)


def font_files() -> list[str]:
    """The fonts that are there, in the order in which they are asked: the one that the environment names, the pack's
    own, so that a sheet looks the same everywhere, and those of the system.

    Raises `KSGenError` if the environment names a font that cannot be read.
    """
    named = os.environ.get(FONT_VARIABLE)
    if named:
        try:
            _font(named, 20)
        except OSError as error:
            raise KSGenError(
                f"The environment variable {FONT_VARIABLE} is {named!r}, which cannot be read as a font ({error}). "
                "Give the path of a .ttf, .otf or .ttc file, or unset it."
            ) from error
    return [*([named] if named else []), str(OWN_FONT), *_system_fonts()]


@lru_cache(maxsize=256)
def lacking(text: str, font: str) -> str:
    """The characters of a text that the font in a file cannot draw, each once."""
    from PIL import features

    shown = {char: None for char in text if unicodedata.category(char)[0] not in "ZC" and char not in SELECTORS}
    empty = _drawn("\uffff", font)  # no character, so that every font draws its box
    shaped = features.check("raqm")
    return "".join(char for char in shown if _drawn(char, font) == empty or (not shaped and _needs_shaping(char)))


def _needs_shaping(char: str) -> bool:
    """Whether letters change with their neighbours or run from right to left, which Pillow leaves to Raqm: Hebrew,
    Arabic, the scripts of India and South-East Asia."""
    return (
        unicodedata.bidirectional(char) in ("R", "AL") or "\u0900" <= char <= "\u109f" or "\u1780" <= char <= "\u17ff"
    )


def _drawn(char: str, font: str) -> bytes:
    from PIL import Image, ImageDraw

    picture = Image.new("L", (64, 48))
    ImageDraw.Draw(picture).text((16, 8), char, 255, _font(font, 20))
    return picture.tobytes()


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    """Those of `SYSTEM_FONTS` that are there and can be read."""
    found = []
    for folder, names in SYSTEM_FONTS:
        for name in names.split(", "):
            path = os.path.join(os.path.expandvars(folder), name)
            try:
                _font(path, 20)
            except OSError:
                continue  # another system, or a font that is not installed
            found.append(path)
    return tuple(found)


def lines_of(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; a word that is longer is cut."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        while len(word) > 1 and font.getlength(word) > width:
            cut = max(1, bisect_right(range(1, len(word)), width, key=lambda n: font.getlength(word[:n])))
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return [line for line in lines if line] or [""]


@lru_cache(maxsize=8)
def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask with round corners, drawn four times as large so that the corners are smooth."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (size[0] * 4, size[1] * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] * 4 - 1, size[1] * 4 - 1), radius * 4, 255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def _badge(paper: Image.Image, x: int, y: int, number: int) -> None:
    """The step's number in a filled circle 34 pixels wide."""
    from PIL import ImageDraw

    paper.paste(ACCENT, (x, y, x + 34, y + 34), _rounded((34, 34), 17))
    ImageDraw.Draw(paper).text(
        (x + 17, y + 17), str(number), (255, 255, 255), font_of("", 19), anchor="mm", stroke_width=0.4
    )


def _arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """A small triangle that points to the next picture."""
    draw.polygon([(x - 3, y - 6), (x + 4, y), (x - 3, y + 6)], ACCENT)
