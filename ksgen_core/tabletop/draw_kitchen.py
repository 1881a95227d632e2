"""Drawings of the kitchen: `draw(pen, colour, state, shape, level)`, foot at (0, 0), about 34 px wide.

`state` holds the object's attributes, `level` how far its content has risen (0..1) while something is poured.
"""

from __future__ import annotations

from .draw_parts import LIQUID, STEEL, State, heap, opening
from .pen import Colour, Pen, blob, box, curve, oval, poly, tint


def kettle(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(16)
    pen.line(curve([(-10, -27), (-6, -43), (6, -43), (11, -27)]), (0.16, 0.15, 0.18), 3.4)
    body = [(-15, 0), (-19, -12), (-11, -30), (11, -30), (19, -12), (15, 0)] if shape == 0 else [(-14, 1), (-20, -4), (-17, -24), (-6, -31), (6, -31), (17, -24), (20, -4), (14, 1)]
    pen.fill(poly([(-13, -20), (-25, -27), (-26, -23), (-15, -9)]), tint(c, -0.1))
    pen.fill(blob(body), c)
    pen.fill(oval(0, -29, 9, 2.6), tint(c, 0.3))
    pen.fill(oval(0, -31.5, 2.4, 2.2), (0.2, 0.18, 0.2))
    pen.shine(blob([(-12, -8), (-13, -16), (-9, -25), (-7, -24), (-9, -14)]), 0.45)
    on = s["on"] == "yes"
    pen.fill(oval(8, -6, 3.4, 3.4), (1.0, 0.42, 0.10) if on else (0.30, 0.28, 0.30), round_=0.25)
    if on:
        pen.glow(8, -6, 9, (1.0, 0.55, 0.1), 0.8)
        for k, (x, y, r) in enumerate(((-29, -31, 3.4), (-33, -37, 4.6), (-29, -44, 5.4))):
            pen.soft(oval(x, y, r, r), (1, 1, 1), 0.85 - 0.13 * k, 1.2)


def mug(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(13)
    pen.line(curve([(11, -20), (22, -22), (21, -6), (10, -6)]), tint(c, -0.42), 4.6)
    pen.line(curve([(11, -20), (22, -22), (21, -6), (10, -6)]), tint(c, 0.05), 3.2)
    if shape == 0:
        pen.fill(blob([(-14, -26), (-14, -26), (-13, 0), (-10, 3), (10, 3), (13, 0), (14, -26), (14, -26)]), c)
    else:
        pen.fill(blob([(-14, -27), (-15, -10), (-8, 3), (8, 3), (15, -10), (14, -27)]), c)
    pen.shine(box(-10.5, -19, -8, -5, 1.2), 0.4)
    inside = s["in"]
    opening(pen, -25, 14, 6.2, tint(c, 0.25), LIQUID.get(inside), level)
    if inside == "tea_bag":
        pen.line(curve([(3, -25), (10, -28), (16, -18)]), (0.97, 0.96, 0.9), 1.0)
        pen.fill(poly([(-6, -29), (5, -29), (7, -21), (-7, -21)]), (0.93, 0.87, 0.72), round_=0.15)
        pen.fill(poly([(-4, -27), (4, -27), (5, -23), (-5, -23)]), (0.50, 0.36, 0.16), round_=0.1, edge=0)
    elif inside in ("coffee_powder", "cocoa_powder"):
        dark = (0.24, 0.14, 0.08) if inside == "coffee_powder" else (0.62, 0.33, 0.20)
        pen.fill(blob([(-9, -22), (-8, -26), (0, -32), (8, -26), (9, -22)]), dark, round_=0.25)
    if inside in ("tea", "tea_bag", "milky"):
        pen.line(curve([(9, -25), (16, -28), (17, -16)]), (0.97, 0.96, 0.9), 0.9)
    if inside in ("tea", "tea_bag"):
        pen.fill(box(13.6, -17, 20.4, -9, 1), (0.98, 0.86, 0.30), round_=0.1)
    if inside in ("tea", "coffee", "milky", "cocoa") and level >= 1:
        pen.soft(curve([(-4, -30), (-7, -36), (0, -40), (-3, -46)]), (1, 1, 1), 0.5, 1.6)


def tea(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(12)
    pen.fill(box(-12, -26, 12, 2, 2), (0.28, 0.52, 0.30))
    pen.fill(box(-9, -19, 9, -5, 1.5), (0.97, 0.93, 0.78), round_=0.08)
    pen.fill(blob([(0, -18), (6, -12), (0, -6), (-6, -12)]), (0.36, 0.62, 0.28))
    pen.fill(box(-13, -29, 13, -25, 1.4), (0.22, 0.42, 0.25))


def tea_bag(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.line(curve([(0, -10), (3, -16), (0, -22)]), (0.9, 0.88, 0.8), 1.0)
    pen.fill(box(-3.5, -27, 3.5, -20, 1), (0.98, 0.86, 0.30), round_=0.1)
    pen.fill(poly([(-5, -12), (5, -12), (8, 1), (-8, 1)]), (0.93, 0.87, 0.72), round_=0.15)
    pen.fill(poly([(-4, -8), (4, -8), (6, -1), (-6, -1)]), (0.50, 0.36, 0.16), round_=0.1, edge=0)


def _tin(pen: Pen, body: Colour, band: Colour, mark: Colour) -> None:
    pen.shadow(12)
    pen.fill(blob([(-12, -28), (-12, -28), (-12, 1), (0, 4), (12, 1), (12, -28), (12, -28)]), body)
    pen.fill(box(-12, -19, 12, -7), band, round_=0.2, edge=0.2)
    pen.fill(oval(0, -13, 4.6, 4.0), mark, round_=0.25)
    pen.line(curve([(-2.5, -10.5), (1, -13), (2.5, -15.5)]), tint(mark, 0.5), 0.9)
    pen.fill(oval(0, -28, 12, 4.2), STEEL)


def coffee(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    _tin(pen, (0.20, 0.16, 0.16), (0.86, 0.70, 0.46), (0.30, 0.16, 0.08))


def cocoa(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    _tin(pen, (0.72, 0.25, 0.30), (0.98, 0.90, 0.82), (0.55, 0.28, 0.16))


def milk(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(10)
    pen.fill(box(-10, -27, 10, 2, 1), (0.96, 0.97, 0.99), round_=0.16)
    pen.fill(poly([(-10, -27), (-5, -37), (5, -37), (10, -27)]), (0.30, 0.55, 0.86))
    pen.fill(box(-5.5, -41, 5.5, -36, 0.8), (0.26, 0.48, 0.80))
    pen.fill(blob([(-10, -12), (-4, -16), (2, -10), (10, -14), (10, 1), (-10, 1)]), (0.36, 0.62, 0.92), round_=0.15, edge=0)
    pen.fill(blob([(0, -24), (3.6, -18), (0, -15), (-3.6, -18)]), (0.36, 0.62, 0.92), round_=0.1, edge=0.1)


def spoon(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(7, y=0.5)
    with pen.at(0, 0, 1.0, 18):
        pen.fill(poly([(-1.6, -34), (1.6, -34), (1.1, -8), (-1.1, -8)]), STEEL)
        pen.fill(oval(0, -3, 5.0, 7.0), STEEL)
        pen.fill(oval(0, -2.4, 3.2, 5.0), tint(STEEL, -0.2), round_=-0.25, edge=0)


def toaster(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(18)
    if s["slot"] != "empty":
        crumb = (0.98, 0.90, 0.72) if s["slot"] == "bread" else (0.74, 0.44, 0.18)
        rise = 9 if s["slot"] == "bread" else 13
        pen.fill(blob([(-12, -24), (-13, -25 - rise), (0, -28 - rise), (13, -25 - rise), (12, -24)]), tint(crumb, -0.35))
        pen.fill(blob([(-10, -24), (-11, -23 - rise), (0, -26 - rise), (11, -23 - rise), (10, -24)]), crumb, round_=0.12, edge=0)
    pen.fill(box(-18, -26, 18, 0, 7 if shape else 4), c)
    pen.fill(box(-13, -27, 13, -23.5, 1.7), (0.16, 0.14, 0.16), round_=0)
    pen.fill(box(-18, -5, 18, 0, 2), tint(c, -0.45))
    down = s["slot"] == "bread"
    pen.fill(box(12, -18, 16, -6, 2), tint(c, -0.5), round_=0)
    pen.fill(box(10.6, -17 if not down else -11, 17.4, -13 if not down else -7, 1.5), (0.92, 0.92, 0.93))
    if s["slot"] == "toast":
        pen.soft(curve([(-3, -44), (-6, -49), (1, -52)]), (1, 1, 1), 0.7, 1.5)
    pen.shine(box(-14, -21, -12, -9, 1), 0.4)


def jam(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(12)
    pen.fill(blob([(-11, -26), (-14, -18), (-13, 1), (0, 4), (13, 1), (14, -18), (11, -26)]), (0.78, 0.10, 0.20))
    pen.fill(box(-11.5, -17, 11.5, -5, 2), (0.99, 0.95, 0.86), round_=0.08)
    pen.fill(blob([(0, -15), (5, -13), (3, -7), (0, -6), (-3, -7), (-5, -13)]), (0.90, 0.16, 0.24), round_=0.25)
    pen.fill(poly([(-3, -14), (0, -17), (3, -14)]), (0.3, 0.6, 0.25), round_=0.1)
    if s["lid"] == "on":
        pen.fill(box(-12.5, -33, 12.5, -24, 2), c, round_=0.35)
        pen.fill(oval(0, -32.5, 12.5, 3.6), tint(c, 0.25), round_=0.2)
    else:
        opening(pen, -26, 10.6, 4.4, (0.95, 0.9, 0.9), (0.66, 0.06, 0.14), 1.0)
        pen.shadow(9, x=18, y=1)
        pen.fill(oval(18, -1, 9.5, 4.4), c, round_=0.3)
        pen.fill(oval(18, -2.4, 8.6, 3.4), tint(c, 0.3), round_=0.2, edge=0.15)


def knife(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(7, y=0.5)
    with pen.at(0, 0, 1.0, 14):
        pen.fill(poly([(-1.0, -18), (4.0, -17), (3.6, -4), (0.5, 3), (-1.0, 3)]), (0.84, 0.87, 0.91))
        pen.fill(box(-2.2, -36, 2.8, -17, 2.2), (0.34, 0.20, 0.13))


def pan(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(18, y=1)
    pen.fill(poly([(14, -9), (33, -15), (34, -11), (16, -4)]), c, round_=0.25)
    dark = (0.26, 0.26, 0.30)
    pen.fill(blob([(-20, -10), (-17, 3), (0, 6), (17, 3), (20, -10), (0, -12)]), dark)
    pen.fill(oval(0, -9, 19.5, 8.6), tint(dark, 0.25), round_=0.2)
    pen.fill(oval(0, -8.4, 16.6, 6.8), tint(dark, -0.25), round_=-0.1, edge=0.1)
    inside = s["in"]
    if inside == "oil":
        pen.fill(blob([(-13, -8), (-6, -13), (7, -12), (13, -8), (6, -4), (-6, -3.6)]), LIQUID["oil"], round_=0.2, alpha=0.55 + 0.45 * level)
        pen.shine(oval(-4, -10, 3.5, 1.0), 0.7)
    elif inside == "egg":
        pen.fill(blob([(-15, -8), (-8, -15), (4, -12), (14, -13), (14, -5), (4, -2), (-8, -2.5)]), (0.99, 0.99, 0.97), round_=0.1)
        pen.fill(oval(-1, -9.5, 5.4, 4.0), (1.0, 0.74, 0.10), round_=0.3)
        pen.shine(oval(-2.6, -11, 1.5, 0.8), 0.8)
    elif inside == "omelette":
        pen.fill(blob([(-16, -8), (-8, -15), (8, -15), (16, -8), (8, -2), (-8, -2)]), (1.0, 0.83, 0.32), round_=0.2)
        pen.line(curve([(-9, -8), (0, -11), (9, -7)]), (0.80, 0.52, 0.14), 1.2)
        pen.line(curve([(-5, -5), (3, -6)]), (0.80, 0.52, 0.14), 1.2)
    elif inside in ("carrot", "tomato"):
        heap(pen, inside, -8)


def oil(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(9)
    pen.fill(blob([(-9, 2), (-10, -20), (-4, -28), (-3, -37), (3, -37), (4, -28), (10, -20), (9, 2)]), (0.93, 0.78, 0.22))
    pen.fill(box(-3.6, -42, 3.6, -35, 1), (0.28, 0.42, 0.20))
    pen.fill(box(-8, -17, 8, -5, 1.5), (0.98, 0.97, 0.90), round_=0.08)
    pen.fill(oval(0, -11, 4.6, 3.2), (0.45, 0.56, 0.22))


def bowl(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(16)
    if shape == 0:
        pen.fill(blob([(-20, -19), (-17, -4), (-7, 4), (7, 4), (17, -4), (20, -19)]), c)
    else:
        pen.fill(poly([(-20, -17), (-12, 3), (12, 3), (20, -17)]), c)
    inside = s["in"]
    opening(pen, -17, 20, 8.2, tint(c, 0.3), LIQUID.get(inside), level)
    if inside in ("egg", "milk_egg"):
        ground = (0.97, 0.96, 0.88) if inside == "egg" else LIQUID["milk"]
        pen.fill(oval(0, -16.4, 16, 6), ground, round_=0.05, edge=0.2)
        pen.fill(oval(-2, -17.4, 5.6, 3.8), (1.0, 0.70, 0.06), round_=0.3)
        if inside == "milk_egg":
            pen.fill(oval(7, -15, 5, 2), (1, 1, 1), round_=0.0, edge=0.12)
            pen.fill(oval(-10, -15, 4, 1.6), (1, 1, 1), round_=0.0, edge=0.12)
    elif inside in ("carrot", "tomato", "salad"):
        heap(pen, inside, -17)


def glass(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(11)
    top, foot = (12.5, 9.5) if shape == 0 else (11, 11)
    pen.fill(poly([(-top, -34), (top, -34), (foot, 2), (-foot, 2)]), (0.86, 0.93, 0.97), round_=0.2, alpha=0.50)
    liquid = LIQUID.get(s["in"])
    if liquid:
        h = -4 - 23 * (0.25 + 0.75 * level)
        k = foot + (top - foot) * (-h / 34)
        pen.fill(poly([(-k + 1.2, h), (k - 1.2, h), (foot - 1.2, 1), (-foot + 1.2, 1)]), liquid, round_=0.18, edge=0.2, alpha=0.95)
        pen.fill(oval(0, h, k - 1.2, 3.0), tint(liquid, 0.25), round_=0.1, edge=0.2)
    pen.line(oval(0, -34, top, 3.6), (0.55, 0.66, 0.74), 1.1)
    pen.shine(box(-foot + 2, -29, -foot + 4, -6, 1), 0.55)
    if s["lemon"] == "yes":
        pen.fill(oval(top - 1, -35, 8.0, 8.0), (0.99, 0.82, 0.10), round_=0.15)
        pen.fill(oval(top - 1, -35, 5.6, 5.6), (1.0, 0.97, 0.68), round_=0.05, edge=0.1)


def juice(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(10)
    pen.fill(blob([(-10, 2), (-11, -22), (-5, -29), (-4, -35), (4, -35), (5, -29), (11, -22), (10, 2)]), LIQUID["juice"])
    pen.fill(box(-5, -39, 5, -33, 1.2), (0.26, 0.60, 0.28))
    pen.fill(oval(0, -12, 7, 6.4), (0.99, 0.97, 0.90), round_=0.08)
    pen.fill(oval(0, -12, 4.6, 4.4), (0.98, 0.55, 0.08))


def jug(pen: Pen, c: Colour, s: State, shape: int, level: float) -> None:
    pen.shadow(13)
    pen.line(curve([(10, -26), (22, -27), (21, -8), (10, -7)]), (0.56, 0.68, 0.76), 3.4)
    pen.fill(poly([(-16, -33), (12, -33), (13, 2), (-13, 2)]), (0.84, 0.92, 0.97), round_=0.2, alpha=0.65)
    pen.fill(poly([(-13.4, -24), (11.5, -24), (12, 1), (-12, 1)]), LIQUID["water"], round_=0.25, edge=0.2, alpha=0.9)
    pen.shine(box(-9, -29, -6.5, -6, 1.2), 0.5)
