"""A grid of pictures with words at its side and head, for reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (250, 248, 244), (60, 52, 46)
GAP, SIDE, HEAD = 6, 122, 20


def grid(rows: Sequence[tuple[str, Sequence[np.ndarray]]], title: str) -> Image.Image:
    """rows: (words, uint8 pictures [S, S, 3], all of one size) -> the grid under its title."""
    size = rows[0][1][0].shape[0]
    columns = max(len(pictures) for _, pictures in rows)
    font = ImageFont.load_default(13)
    width = max(SIDE + columns * (size + GAP), 2 * GAP + round(font.getlength(title)))
    paper = Image.new("RGB", (width, HEAD + len(rows) * (size + GAP)), PAPER)
    pen = ImageDraw.Draw(paper)
    pen.text((GAP, 3), title, INK, font)
    for y, (words, pictures) in enumerate(rows):
        top = HEAD + y * (size + GAP)
        pen.text((GAP, top + size // 2 - 8), words.replace("_", " "), INK, font)
        for x, picture in enumerate(pictures):
            paper.paste(Image.fromarray(picture), (SIDE + x * (size + GAP), top))
    return paper


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """One under the other."""
    paper = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        paper.paste(picture, (0, top))
        top += picture.height
    return paper
