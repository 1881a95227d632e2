"""What several drawings share: liquids, materials, a vessel's mouth, slices, flames."""

from __future__ import annotations

from .pen import Colour, Pen, blob, curve, oval, poly, tint

State = dict[str, str]

LIQUID: dict[str, Colour] = {
    "water": (0.62, 0.82, 0.93),
    "tea": (0.72, 0.36, 0.10),
    "coffee": (0.25, 0.13, 0.07),
    "cocoa": (0.45, 0.26, 0.17),
    "milk": (0.99, 0.98, 0.95),
    "milky": (0.82, 0.62, 0.44),
    "juice": (1.0, 0.62, 0.10),
    "oil": (0.95, 0.80, 0.25),
    "batter": (0.98, 0.85, 0.42),
}
STEEL: Colour = (0.74, 0.77, 0.81)
WOOD: Colour = (0.72, 0.50, 0.30)


def opening(pen: Pen, y: float, rx: float, ry: float, colour: Colour, liquid: Colour | None, level: float) -> None:
    """The mouth of a vessel seen from above, with what stands in it."""
    pen.fill(oval(0, y, rx, ry), tint(colour, -0.35), round_=0.15)
    if liquid:
        k = 0.55 + 0.45 * level
        pen.fill(oval(0, y + ry * (1 - k) * 0.7, rx * 0.90 * k, ry * 0.86 * k), liquid, round_=0.12, edge=0.2)
        pen.shine(oval(-rx * 0.3 * -pen.light * -1, y - ry * 0.15, rx * 0.22 * k, ry * 0.16 * k), 0.5)


def board(pen: Pen, half: float = 21) -> None:
    pen.shadow(half - 1, y=1)
    pen.fill(poly([(-half, 2), (-half + 4, -12), (half - 4, -12), (half, 2)]), WOOD, round_=0.15)
    pen.fill(poly([(-half, 2), (half, 2), (half, 4.5), (-half, 4.5)]), tint(WOOD, -0.3), round_=0.1)
    pen.line(curve([(-half + 5, -3), (0, -4), (half - 5, -3)]), tint(WOOD, -0.18), 0.7)


def coin(pen: Pen, x: float, y: float, r: float, rim: Colour, core: Colour) -> None:
    """One slice lying flat."""
    pen.fill(oval(x, y + 1.0, r, r * 0.66), tint(rim, -0.2), round_=0.1, edge=0.2)
    pen.fill(oval(x, y, r, r * 0.66), rim, round_=0.15, edge=0.2)
    pen.fill(oval(x, y, r * 0.55, r * 0.36), core, round_=0.1, edge=0)


def heap(pen: Pen, kind: str, y: float) -> None:
    """Slices lying in a vessel."""
    looks: dict[str, tuple[Colour, Colour]] = {"carrot": ((0.98, 0.52, 0.12), (1.0, 0.72, 0.32)), "tomato": ((0.90, 0.18, 0.13), (1.0, 0.62, 0.45))}
    kinds = ["carrot", "tomato"] if kind == "salad" else [kind]
    for k, (dx, dy) in enumerate(((-9, -1), (0, -3.4), (9, -1), (-4, 1.6), (5, 1.6))):
        rim, core = looks[kinds[k % len(kinds)]]
        coin(pen, dx, y + dy, 4.9, rim, core)


def flame(pen: Pen, x: float, y: float) -> None:
    pen.glow(x, y - 4, 17, (1.0, 0.78, 0.25), 0.85)
    pen.fill(blob([(x - 3.6, y - 1), (x - 2.4, y - 7), (x, y - 13), (x + 2.4, y - 7), (x + 3.6, y - 1), (x, y + 1)]), (1.0, 0.62, 0.10), round_=0.1, edge=0)
    pen.fill(oval(x, y - 2.6, 1.7, 2.9), (1.0, 0.95, 0.60), round_=0, edge=0)
