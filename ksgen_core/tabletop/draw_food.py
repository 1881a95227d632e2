"""Drawings of food: `draw(pen, colour, state, shape, level)`, foot at (0, 0), about 34 px wide.

`state` holds the object's attributes, `level` how far something is spread (0..1).
"""

from __future__ import annotations

import math

from .draw_parts import STEEL, State, board, coin, flame
from .pen import Colour, Pen, blob, box, curve, oval, poly, tint


def bread(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    plate(pen, (0.93, 0.94, 0.97), s, shape, level)
    if s["toast"] == "away":
        return
    with pen.at(0, 1.5):
        slice_of_bread(pen, s["toast"])
    if s["top"] != "none":
        spread = (1.0, 0.86, 0.25) if s["top"] == "butter" else (0.80, 0.10, 0.20)
        w = 0.35 + 0.65 * level
        pen.fill(blob([(-9 * w, -4), (-12 * w, -12), (-5, -17), (4 * w, -15), (12 * w, -15), (9 * w, -6), (2, -3)]), spread, round_=0.22)
        pen.shine(oval(-3, -11, 3.0 * w, 1.1), 0.55)


def slice_of_bread(pen: Pen, toast: str) -> None:
    crumb = (0.99, 0.91, 0.74) if toast == "plain" else (0.78, 0.50, 0.22)
    crust = (0.78, 0.52, 0.26) if toast == "plain" else (0.45, 0.24, 0.09)
    outline = [(-12, 1), (-12, 1), (-12, -9), (-18, -13), (-15, -21), (0, -22), (15, -21), (18, -13), (12, -9), (12, 1), (12, 1)]
    pen.fill(blob(outline), crust)
    pen.fill(blob([(x * 0.84, (y + 10) * 0.80 - 10.6) for x, y in outline]), crumb, round_=0.14, edge=0.12)


def plate(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(18, y=1)
    pen.fill(oval(0, -5, 19.5, 9.2), c, round_=0.12)
    pen.fill(oval(0, -5.4, 14, 6.2), tint(c, -0.10), round_=-0.08, edge=0.05)


def butter(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(15)
    pen.fill(oval(0, -3, 17, 5.5), c, round_=0.2)
    pen.fill(poly([(-11, -14), (9, -14), (11, -3), (-12, -3)]), (1.0, 0.86, 0.36), round_=0.15)
    pen.fill(poly([(-11, -14), (-6, -18), (13, -18), (9, -14)]), (1.0, 0.93, 0.58), round_=0.1)
    pen.fill(poly([(9, -14), (13, -18), (15, -7), (11, -3)]), (0.92, 0.73, 0.25), round_=0.1)


def carrot(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    board(pen)
    orange = (0.98, 0.52, 0.12)
    if s["cut"] == "whole":
        for dx, dy in ((-6, -9), (-1, -12), (-8, -4)):
            pen.line(curve([(9, -6), (14 - dx * 0.2, -8 + dy * 0.35), (18 - dx * 0.4, -5 + dy * 0.8)]), (0.30, 0.62, 0.24), 2.3)
        pen.fill(blob([(-19, -4), (-2, -9.5), (10, -11), (13, -6), (10, -1.5), (-2, -2.0)]), orange)
        for x in (-7, 0, 6):
            pen.line(curve([(x, -8.5), (x + 1, -6.5)]), tint(orange, -0.25), 0.8)
    else:
        for x, y in ((-14, -8), (-6, -9), (3, -8), (12, -8), (-10, -3), (-1, -3), (8, -3)):
            coin(pen, x, y, 4.8, orange, (1.0, 0.72, 0.32))


def tomato(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    board(pen)
    red = (0.90, 0.18, 0.13)
    if s["cut"] == "whole":
        pen.fill(blob([(-11, -3), (-13, -16), (0, -21), (13, -16), (11, -3), (0, 1)]), red, round_=0.4)
        for a in range(5):
            t = 2 * math.pi * a / 5
            pen.line(curve([(0, -17), (5 * math.cos(t), -17 + 2.4 * math.sin(t) - 0.5)]), (0.24, 0.52, 0.20), 1.9)
        pen.shine(oval(-5, -12, 2.2, 3.2), 0.6)
    else:
        for x, y in ((-13, -7), (-4, -8.5), (5, -8.5), (13.5, -6.5), (-8, -2), (2, -2)):
            coin(pen, x, y, 5.8, red, (1.0, 0.62, 0.45))


def lemon(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    board(pen)
    yellow = (0.99, 0.86, 0.16)
    if s["cut"] == "whole":
        pen.fill(blob([(-16, -8), (-8, -17), (5, -17), (14, -10), (17, -8), (14, -6), (5, 0), (-8, 0)]), yellow, round_=0.35)
        pen.shine(oval(-4, -12, 3.4, 1.7), 0.6)
    else:
        for x, y in ((-13, -7), (-3, -8.5), (8, -8), (-8, -2.5), (3, -2.5)):
            coin(pen, x, y, 6.0, yellow, (1.0, 0.97, 0.72))


def egg(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(9)
    pen.fill(blob([(-9, -1), (-10, -12), (-4, -23), (4, -23), (10, -12), (9, -1), (0, 2)]), (0.96, 0.84, 0.70) if shape else (0.98, 0.96, 0.92), round_=0.3)
    pen.shine(oval(-3.4, -13, 1.8, 3.6), 0.65)


def cake(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.fill(oval(0, 0, 21, 6.5), (0.93, 0.94, 0.97), round_=0.12)
    sponge = (0.92, 0.70, 0.40)
    pen.fill(blob([(-17, -18), (-17, -18), (-17, -1), (0, 6), (17, -1), (17, -18), (17, -18)]), sponge)
    pen.line(curve([(-16.5, -9), (0, -4), (16.5, -9)]), (0.98, 0.93, 0.86), 1.8)
    top = {"plain": tint(sponge, 0.18), "cream": (1.0, 0.98, 0.95), "jam": (0.82, 0.12, 0.22)}[s["top"]]
    if s["top"] != "plain":
        w = 0.35 + 0.65 * level
        for x in (-13, -5, 4, 12):
            pen.fill(blob([(x - 4, -18), (x - 3, -10 - 2 * (x % 3)), (x + 3, -10 - 2 * (x % 3)), (x + 4, -18)]), top, round_=0.15, alpha=w)
    pen.fill(oval(0, -18, 17, 6.8), top, round_=0.14)
    if s["cut"] == "sliced":
        pen.fill(poly([(0, -18), (17, -15), (17, 0), (7, 4), (0, -10)]), tint(sponge, 0.30), round_=0.1)
        pen.fill(poly([(0, -18), (7, -11.5), (7, 4), (0, -4)]), tint(sponge, -0.18), round_=0.1)
        pen.line(curve([(1, -7), (7, -3)]), (0.98, 0.93, 0.86), 1.6)
    if s["candle"] != "none":
        pen.fill(box(-6.2, -37, -2.2, -19, 1), (0.45, 0.72, 0.96), round_=0.3)
        pen.line(curve([(-6, -24), (-2.4, -27)]), (1, 1, 1), 1.1)
        pen.line(curve([(-6, -31), (-2.4, -34)]), (1, 1, 1), 1.1)
        if s["candle"] == "lit":
            flame(pen, -4.2, -38)


def cream(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(9)
    pen.fill(poly([(-9, -34), (9, -34), (2.4, -6), (-2.4, -6)]), (0.98, 0.96, 0.94), round_=0.2)
    pen.fill(blob([(-9, -34), (-5, -42), (5, -42), (9, -34)]), tint(c, 0.15))
    pen.fill(poly([(-3.2, -9), (3.2, -9), (1.3, 0), (-1.3, 0)]), STEEL)


def empty_shell(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    """Two halves of an egg shell, for the moment it opens."""
    for side in (-1, 1):
        with pen.at(side * 7, -6, 1, side * 28):
            pen.fill(poly([(-7, -2), (-4, 1), (-1, -3), (2, 1), (5, -3), (7, 0), (5, 8), (-5, 8)]), (0.97, 0.90, 0.82), round_=0.25)
