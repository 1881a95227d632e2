"""Drawings of garden, desk and workshop: `draw(pen, colour, state, shape, level)`, foot at (0, 0), about 34 px wide."""

from __future__ import annotations

from .draw_parts import STEEL, WOOD, State, flame
from .pen import Colour, Pen, blob, box, curve, oval, poly, tint

SOIL: Colour = (0.34, 0.22, 0.15)
LEAF: Colour = (0.36, 0.68, 0.26)
PAPER: Colour = (0.97, 0.97, 0.99)
CARDBOARD: Colour = (0.86, 0.74, 0.55)


def pot(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(14)
    inside = s["in"]
    if shape == 0:
        pen.fill(poly([(-15, -18), (15, -18), (10, 3), (-10, 3)]), c)
        pen.fill(box(-17.5, -23, 17.5, -15.5, 2), tint(c, 0.06))
    else:
        pen.fill(blob([(-15, -22), (-17, -8), (-9, 4), (9, 4), (17, -8), (15, -22)]), c)
    pen.fill(oval(0, -22, 16, 5.6), tint(c, -0.4), round_=0.1)
    if inside != "empty":
        wet = inside in ("sprout", "fresh")
        k = 0.5 + 0.5 * level
        pen.fill(oval(0, -21.6, 14.2 * k, 4.6 * k), tint(SOIL, -0.25 if wet else 0.18), round_=0.15, edge=0.2)
    if inside == "seed":
        for x, y in ((-6, -22), (0, -23.4), (6, -22), (1, -20.4)):
            pen.fill(oval(x, y, 2.5, 1.7), (0.98, 0.88, 0.52), round_=0.2)
    elif inside == "sprout":
        pen.line(curve([(0, -22), (1, -30), (0, -37)]), LEAF, 2.2)
        pen.fill(blob([(0, -34), (-6, -43), (-13, -40), (-8, -33)]), LEAF)
        pen.fill(blob([(0, -35), (5, -45), (13, -42), (8, -34)]), tint(LEAF, 0.15))
    elif inside == "wilted":
        for end, bend in (((-19, -21), (-10, -42)), ((18, -19), (9, -44)), ((7, -26), (5, -40))):
            pen.line(curve([(0, -22), bend, end]), (0.62, 0.55, 0.24), 2.0)
            pen.fill(oval(end[0], end[1] + 2, 2.8, 5.0), (0.72, 0.60, 0.25))
    elif inside == "fresh":
        for end in ((-13, -44), (13, -45), (0, -52)):
            pen.line(curve([(0, -22), (end[0] * 0.3, -36), end]), tint(LEAF, -0.2), 2.0)
            pen.fill(oval(end[0], end[1], 5.6, 5.6), (0.96, 0.44, 0.58))
            pen.fill(oval(end[0], end[1], 2.1, 2.1), (1.0, 0.86, 0.30), round_=0.1)
        pen.fill(blob([(0, -28), (-8, -37), (-15, -33), (-9, -26)]), LEAF)
        pen.fill(blob([(0, -28), (8, -38), (15, -34), (9, -27)]), LEAF)


def soil(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(13)
    pen.fill(blob([(-13, 2), (-13, -24), (-11, -33), (11, -33), (13, -24), (13, 2)]), (0.58, 0.47, 0.30))
    pen.fill(oval(0, -31, 9.6, 3.0), SOIL, round_=0.2)
    pen.fill(box(-9, -21, 9, -7, 2), (0.94, 0.91, 0.80), round_=0.08)
    pen.fill(blob([(0, -19), (5, -14), (0, -9), (-5, -14)]), LEAF)


def seeds(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(10)
    pen.fill(box(-10, -27, 10, 1, 1.5), (0.98, 0.84, 0.52), round_=0.2)
    pen.fill(box(-10, -27, 10, -21, 1.5), (0.34, 0.60, 0.32), round_=0.15)
    for dx, dy in ((-4, -13), (4, -13), (0, -17), (0, -9)):
        pen.fill(oval(dx, dy, 3.4, 3.0), (0.95, 0.45, 0.56), round_=0.15, edge=0.2)
    pen.fill(oval(0, -13, 2.2, 2.0), (1.0, 0.9, 0.4), round_=0.1, edge=0.1)


def watering_can(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(16)
    pen.line(curve([(-9, -22), (0, -41), (15, -34), (15, -8)]), tint(c, -0.3), 3.2)
    pen.fill(poly([(-12, -6), (-27, -28), (-24, -30), (-10, -14)]), tint(c, -0.08))
    pen.fill(poly([(-30, -26), (-22, -33), (-20.5, -31), (-28, -24)]), tint(c, 0.2))
    pen.fill(box(-14, -23, 14, 2, 4 if shape else 1.5), c)
    pen.fill(oval(0, -23, 13.6, 4), tint(c, -0.3), round_=0.1)
    pen.shine(box(-10, -18, -8, -4, 1), 0.4)


def candle(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(14)
    pen.fill(oval(0, -1, 16, 5.4), STEEL, round_=0.25)
    wide = 8.5 if shape else 6.5
    pen.fill(blob([(-wide, -31), (-wide, -31), (-wide, -3), (0, 0), (wide, -3), (wide, -31), (wide, -31)]), c)
    pen.fill(oval(0, -30, wide, 2.7), tint(c, 0.4), round_=0.1)
    pen.line(curve([(0, -30), (0.6, -35)]), (0.15, 0.12, 0.12), 1.3)
    if s["lit"] == "yes":
        flame(pen, 0.6, -35)


def lighter(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(7)
    pen.fill(box(-6.5, -19, 6.5, 1, 2), (0.93, 0.28, 0.36))
    pen.fill(box(-6, -25, 6, -18, 1), STEEL)
    pen.fill(oval(2.6, -25, 2.4, 2.4), (0.35, 0.35, 0.4))
    if s.get("lit") == "yes":
        flame(pen, -1.5, -26)


def paper(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(17, y=1)
    sheet = tint(c, 0.55)
    if s["fold"] == "flat":
        pen.fill(poly([(-19, 3), (-14, -17), (14, -17), (19, 3)]), sheet, round_=0.1)
        for k, y in enumerate((-13, -9.5, -6, -2.5)):
            pen.line(curve([(-10 - k, y), (9 + k * 0.6, y)]), tint(c, -0.35), 0.9)
    elif s["fold"] == "half":
        pen.fill(poly([(-18, 3), (-15.5, -7), (15.5, -7), (18, 3)]), sheet, round_=0.1)
        pen.fill(poly([(-18, 3), (-16, -9.5), (16, -9.5), (18, 3)]), tint(c, 0.35), round_=0.2)
        pen.line(curve([(-18, 3.4), (18, 3.4)]), tint(c, -0.4), 1.8)
    else:
        pen.fill(poly([(-22, -15), (20, -20), (-3, -7)]), sheet, round_=0.1)
        pen.fill(poly([(-3, -7), (20, -20), (2, 3)]), tint(c, 0.1), round_=0.2)
        pen.fill(poly([(-22, -15), (20, -20), (-11, -4)]), tint(c, 0.75), round_=0.05)


def scissors(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(8, y=0.5)
    with pen.at(0, 0, 1, 10):
        pen.fill(poly([(-2, -17), (2, -17), (4.6, 3), (2.6, 2)]), (0.84, 0.87, 0.91))
        pen.fill(poly([(-2, -17), (2, -17), (-2.6, 2), (-4.6, 3)]), (0.74, 0.78, 0.83))
        for x in (-5, 5):
            pen.line(oval(x, -25, 4.0, 6.0), (0.20, 0.45, 0.78), 2.8)
        pen.fill(oval(0, -15, 1.6, 1.6), (0.4, 0.42, 0.46))


def heart_path(x: float, y: float, r: float):
    return blob([(x, y - r * 0.45), (x + r * 0.65, y - r * 1.15), (x + r * 1.25, y - r * 0.25), (x + r * 0.1, y + r * 1.05), (x - r * 0.1, y + r * 1.05), (x - r * 1.25, y - r * 0.25), (x - r * 0.65, y - r * 1.15)])


RED_PAPER: Colour = (0.92, 0.22, 0.34)


def red_paper(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(15, y=1)
    if s["cut"] == "whole":
        pen.fill(poly([(-16, 3), (-12, -15), (12, -15), (16, 3)]), RED_PAPER, round_=0.15)
        pen.line(heart_path(0, -6, 7.5), tint(RED_PAPER, 0.6), 0.9)
    else:
        pen.fill(heart_path(0, -8, 11), RED_PAPER, round_=0.2)


def heart(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.fill(heart_path(0, -8, 11), RED_PAPER, round_=0.2)


def card(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(17, y=1)
    pen.fill(poly([(-19, 4), (-15, -21), (15, -21), (19, 4)]), tint(c, 0.25), round_=0.12)
    pen.line(poly([(-15.5, 1.6), (-12.5, -18.4), (12.5, -18.4), (15.5, 1.6)]), tint(c, -0.1), 1.0)
    if s["front"] == "glue":
        for k in range(4):
            pen.line(curve([(-8 + k, -13 + 4 * k), (0, -15 + 4 * k), (8, -13 + 4 * k)]), (1, 1, 1), 2.0)
            pen.line(curve([(-8 + k, -12.4 + 4 * k), (0, -14.4 + 4 * k), (8, -12.4 + 4 * k)]), (0.72, 0.76, 0.86), 0.6)
    elif s["front"] == "heart":
        pen.fill(heart_path(0, -8.5, 9), RED_PAPER, round_=0.2)


def glue(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(8)
    pen.fill(box(-7.5, -27, 7.5, 2, 3), (0.98, 0.98, 0.96))
    pen.fill(box(-7.5, -18, 7.5, -7), (0.22, 0.45, 0.80), round_=0.2)
    pen.fill(poly([(-5, -27), (5, -27), (1.6, -37), (-1.6, -37)]), (0.95, 0.58, 0.12))


def envelope(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(19, y=1)
    cover = tint(c, 0.35)
    if s["flap"] == "open":
        pen.fill(poly([(-19, -20), (0, -37), (19, -20)]), tint(c, 0.15), round_=0.15)
        if s["letter"] == "yes":
            pen.fill(box(-15, -31, 15, -8, 1), PAPER, round_=0.08)
            for y in (-28, -25, -22):
                pen.line(curve([(-11, y), (11, y)]), (0.45, 0.48, 0.6), 0.9)
    pen.fill(box(-20, -21, 20, 4, 1.2), cover, round_=0.12)
    pen.line(curve([(-20, 4), (-3, -9)]), tint(c, -0.25), 0.9)
    pen.line(curve([(20, 4), (3, -9)]), tint(c, -0.25), 0.9)
    if s["flap"] == "closed":
        pen.fill(poly([(-20, -21), (20, -21), (0, -5)]), tint(c, 0.12), round_=0.15)
        pen.fill(oval(0, -7, 3.4, 3.2), (0.80, 0.16, 0.18), round_=0.3)
    if s["stamp"] == "yes":
        stamp_mark(pen, 13, -14)


def stamp_mark(pen: Pen, x: float, y: float) -> None:
    pen.fill(box(x - 5.6, y - 6.2, x + 5.6, y + 6.2, 0.8), (1, 1, 1), round_=0.05)
    pen.fill(box(x - 4.2, y - 4.8, x + 4.2, y + 4.8), (0.20, 0.62, 0.58), round_=0.2, edge=0)
    pen.fill(oval(x, y, 2.4, 2.6), (1.0, 0.85, 0.35), round_=0.1, edge=0)


def stamp(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(9)
    pen.fill(poly([(-12, 3), (-10, -12), (10, -12), (12, 3)]), (0.90, 0.88, 0.94), round_=0.1)
    with pen.at(0, -5, 1.15):
        stamp_mark(pen, 0, 0)


def plank(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(21, y=1)
    pen.fill(poly([(-22, 3), (-18, -15), (18, -15), (22, 3)]), WOOD, round_=0.2)
    pen.fill(poly([(-22, 3), (22, 3), (22, 7), (-22, 7)]), tint(WOOD, -0.3), round_=0.1)
    for y in (-10.5, -1.5):
        pen.line(curve([(-17, y), (-4, y - 1.5), (17, y)]), tint(WOOD, -0.2), 0.8)
    pen.fill(oval(0, -6, 3.4, 2.4), (0.22, 0.14, 0.10), round_=0, edge=0)
    if s["screw"] == "loose":
        screw_body(pen, 0, -6, 17)
    elif s["screw"] == "tight":
        pen.fill(oval(0, -6.6, 6.0, 4.2), (0.70, 0.73, 0.78), round_=0.3)
        pen.line(curve([(-3.6, -7), (3.6, -6)]), (0.25, 0.26, 0.3), 1.3)
        pen.line(curve([(0.8, -9.6), (-0.8, -3.6)]), (0.25, 0.26, 0.3), 1.3)


def screw_body(pen: Pen, x: float, y: float, height: float) -> None:
    pen.fill(poly([(x - 2.6, y - height), (x + 2.6, y - height), (x + 0.8, y), (x - 0.8, y)]), STEEL)
    for k in range(4):
        yy = y - height * (0.18 + 0.2 * k)
        pen.line(curve([(x - 2.4, yy), (x + 2.4, yy - 1.4)]), tint(STEEL, -0.45), 0.9)
    pen.fill(oval(x, y - height, 5.6, 2.6), tint(STEEL, 0.1))
    pen.line(curve([(x - 3, y - height), (x + 3, y - height)]), (0.25, 0.26, 0.3), 1.0)


def screw(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(5)
    screw_body(pen, 0, 0, 20)


def screwdriver(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(6, y=0.5)
    pen.fill(box(-1.3, -18, 1.3, 2, 0.5), STEEL)
    pen.fill(box(-4.6, -39, 4.6, -17, 3.4), (0.95, 0.70, 0.10))
    pen.fill(box(-1.2, -37, 1.2, -20, 1), (0.25, 0.22, 0.20), round_=0, edge=0)


def lamp(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(14)
    on = s["on"] == "yes" and s["bulb"] == "yes"
    if on:
        pen.glow(0, -36, 34, (1.0, 0.90, 0.45), 0.75)
    pen.fill(oval(0, -1, 14, 4.8), c)
    pen.fill(box(-1.8, -26, 1.8, -2, 1), STEEL)
    pen.fill(oval(7, -2.4, 2.6, 1.5), (0.95, 0.35, 0.2) if not on else (0.35, 0.85, 0.35), round_=0.1)
    pen.fill(poly([(-5, -27), (5, -27), (4, -21), (-4, -21)]), (0.26, 0.25, 0.28))
    if s["bulb"] == "yes":
        bulb_shape(pen, 0, -27, on)
    pen.line(curve([(-15, -26), (-15, -50), (15, -50), (15, -26)]), tint(c, -0.1), 2.4)
    pen.line(curve([(-4, -22), (-15, -26)]), tint(c, -0.1), 1.8)
    pen.line(curve([(4, -22), (15, -26)]), tint(c, -0.1), 1.8)


def bulb_shape(pen: Pen, x: float, y: float, on: bool) -> None:
    glassy = (1.0, 0.90, 0.35) if on else (0.88, 0.92, 0.96)
    pen.fill(blob([(x - 3.2, y), (x - 8, y - 9), (x - 5, y - 18), (x + 5, y - 18), (x + 8, y - 9), (x + 3.2, y)]), glassy, round_=0.12)
    pen.line(curve([(x - 2, y - 2), (x - 3, y - 9), (x, y - 7), (x + 3, y - 9), (x + 2, y - 2)]), (0.45, 0.35, 0.25), 0.8)
    pen.shine(oval(x - 3, y - 12, 1.4, 2.4), 0.8)


def bulb(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(8)
    pen.fill(box(-3.6, -8, 3.6, 0, 1), (0.62, 0.60, 0.56))
    bulb_shape(pen, 0, -7, False)


def gift(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(18)
    if s["lid"] == "open":
        pen.fill(box(-17, -20, 17, 2, 1), c)
        pen.fill(oval(0, -20, 17, 5.4), tint(c, -0.45), round_=0.1)
        if s["toy"] == "yes":
            bear(pen, 0, -13, 0.72)
            pen.fill(poly([(-17, -19), (-10, -15.6), (10, -15.6), (17, -19), (17, -8), (-17, -8)]), c, round_=0.1, edge=0)
        with pen.at(22, 1, 1, -62):
            pen.fill(box(-15, -6, 15, 0, 1), tint(c, 0.15))
    else:
        pen.fill(box(-17, -20, 17, 2, 1), c)
        pen.fill(box(-19, -27, 19, -19, 1.5), tint(c, 0.12))
        if s["ribbon"] == "yes":
            gold = (1.0, 0.83, 0.25)
            pen.fill(box(-3, -27, 3, 2), gold, round_=0.15, edge=0.2)
            pen.fill(blob([(0, -27), (-12, -40), (-17, -32), (-8, -27)]), gold)
            pen.fill(blob([(0, -27), (12, -40), (17, -32), (8, -27)]), gold)
            pen.fill(oval(0, -28.4, 3.6, 3.2), tint(gold, -0.15))


def bear(pen: Pen, x: float, y: float, scale: float) -> None:
    fur = (0.66, 0.44, 0.25)
    with pen.at(x, y, scale):
        pen.fill(oval(-8, -25, 4.2, 4.2), fur)
        pen.fill(oval(8, -25, 4.2, 4.2), fur)
        pen.fill(blob([(-9, 1), (-11, -10), (0, -15), (11, -10), (9, 1)]), fur)
        pen.fill(oval(0, -17, 11, 10), fur)
        pen.fill(oval(0, -14, 5, 4), tint(fur, 0.45), round_=0.1, edge=0.1)
        pen.fill(oval(0, -16, 1.7, 1.3), (0.15, 0.1, 0.1), round_=0, edge=0)
        pen.fill(oval(-4.4, -20, 1.3, 1.5), (0.12, 0.1, 0.1), round_=0, edge=0)
        pen.fill(oval(4.4, -20, 1.3, 1.5), (0.12, 0.1, 0.1), round_=0, edge=0)


def toy(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(10)
    bear(pen, 0, 0, 1.05)


def ribbon(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(10)
    gold = (1.0, 0.83, 0.25)
    pen.fill(oval(0, -8, 11, 11), gold)
    pen.fill(oval(0, -8, 6.6, 6.6), tint(gold, -0.12), round_=-0.2)
    pen.fill(oval(0, -8, 3, 3), (0.98, 0.98, 0.98), round_=0.1)
    pen.line(curve([(8, -1), (16, 0), (20, -5)]), gold, 3.0)


