"""A place to film: room, light, colours, the order of things on the table, the camera; and how a still is drawn.

Coordinates are pixels of a 128-pixel picture whatever the size drawn at.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import skia

from . import draw_food, draw_kitchen, draw_workshop
from .pen import PALETTE, Colour, Pen, box, curve, hsv, oval, poly, tint
from .skills import Step
from .world import KINDS, State

_SHEETS = (draw_kitchen, draw_food, draw_workshop)
DRAW = {
    name: next(getattr(m, name.replace(" ", "_")) for m in _SHEETS if hasattr(m, name.replace(" ", "_")))
    for name in KINDS
}
COLOURS = tuple(PALETTE)
TABLES = ((0.075, 0.50, 0.62), (0.06, 0.62, 0.40), (0.10, 0.32, 0.86), (0.58, 0.18, 0.80), (0.95, 0.16, 0.88), (0.42, 0.20, 0.70))
WALLS = (0.55, 0.10, 0.13, 0.40, 0.93, 0.72, 0.0)
SKINS: tuple[Colour, ...] = ((0.96, 0.80, 0.68), (0.88, 0.66, 0.50), (0.68, 0.46, 0.32), (0.45, 0.29, 0.20))
BACK = ((25.0, 79.0), (64.0, 77.0), (103.0, 79.0))
CENTRE, SIDE = (64.0, 114.0), (24.0, 113.0)
BACK_SCALE, SIDE_SCALE, CENTRE_SCALE = 0.80, 0.95, 1.12


@dataclass(frozen=True)
class Look:
    """Colour (a name of the palette) and shape number of one object."""

    colour: str
    shape: int


@dataclass(frozen=True)
class Room:
    """What stays the same through all the steps of one instance."""

    wall: tuple[float, float, float]
    pattern: int
    table: tuple[float, float, float]
    planks: bool
    decor: int
    light: float
    skin: Colour
    sleeve: Colour
    side: float
    looks: dict[str, Look]
    bystanders: tuple[str, ...]
    order: tuple[str, ...]


@dataclass(frozen=True)
class Shot:
    """Camera and places of one key step: `places[object]` is (x, y, scale)."""

    zoom: float
    pan: tuple[float, float]
    roll: float
    places: dict[str, tuple[float, float, float]]


def furnish(cast: tuple[str, ...], random: Random) -> Room:
    """Draw a room for these objects. Colours of the cast differ from each other, so that they can be told apart."""
    hues = random.sample(COLOURS, len(COLOURS))
    others = [n for n in KINDS if n not in cast]
    bystanders = tuple(random.sample(others, random.choice((0, 1, 1, 2)) if len(cast) < 5 else random.choice((0, 1))))
    looks = {}
    for k, name in enumerate((*cast, *bystanders)):
        looks[name] = Look(hues[k % len(hues)], random.randrange(KINDS[name].shapes))
    base = random.choice(TABLES)
    order = random.sample((*cast, *bystanders), len(cast) + len(bystanders))
    return Room(
        wall=(random.choice(WALLS) + random.uniform(-0.03, 0.03), random.uniform(0.08, 0.30), random.uniform(0.80, 0.97)),
        pattern=random.randrange(4),
        table=(base[0] + random.uniform(-0.015, 0.015), base[1], base[2] + random.uniform(-0.06, 0.05)),
        planks=random.random() < 0.6,
        decor=random.randrange(4),
        light=random.choice((-1.0, 1.0)),
        skin=random.choice(SKINS),
        sleeve=hsv(random.random(), random.uniform(0.35, 0.7), random.uniform(0.5, 0.9)),
        side=random.choice((-1.0, 1.0)),
        looks=looks,
        bystanders=bystanders,
        order=tuple(order),
    )


def frame_up(room: Room, state: State, step: Step, random: Random) -> Shot:
    """Film one step: its target in the middle, its tool at the hand's side, everything else behind; camera at random.

    Between the shots of an instance the layout and the camera jump, as they do between the key steps of real videos.
    """
    present = [n for n in room.order if n in state or n in room.bystanders]
    rest = [n for n in present if n not in (step.obj, step.target)]
    if random.random() < 0.25:
        random.shuffle(rest)
    places: dict[str, tuple[float, float, float]] = {}

    def put(name: str, spot: tuple[float, float], scale: float) -> None:
        places[name] = (spot[0] + random.uniform(-2, 2), spot[1] + random.uniform(-1.5, 1.5), scale * random.uniform(0.97, 1.03))

    put(step.target, CENTRE, CENTRE_SCALE)
    near = (64 + room.side * (64 - SIDE[0]), SIDE[1])
    far = (64 - room.side * (64 - SIDE[0]), SIDE[1])
    if step.obj:
        put(step.obj, near, SIDE_SCALE)
    # the middle of the back row last: a tall target would stand in front of it
    spots = ((BACK[0], BACK_SCALE), (BACK[2], BACK_SCALE), (far, SIDE_SCALE), (BACK[1], BACK_SCALE))
    for name, (spot, scale) in zip(rest, spots, strict=False):
        put(name, spot, scale)
    return Shot(
        zoom=random.uniform(0.97, 1.08),
        pan=(random.uniform(-4, 4), random.uniform(-3, 3)),
        roll=random.uniform(-1.5, 1.5),
        places=places,
    )


def aim(canvas: skia.Canvas, shot: Shot) -> None:
    """Point the camera: everything drawn afterwards is seen through it."""
    canvas.translate(64 + shot.pan[0], 90 + shot.pan[1])
    canvas.rotate(shot.roll)
    canvas.scale(shot.zoom, shot.zoom)
    canvas.translate(-64, -90)


def draw_object(pen: Pen, room: Room, name: str, values: dict[str, str], x: float, y: float, scale: float, *, level: float = 1.0) -> None:
    look = room.looks[name]
    with pen.at(x, y, scale):
        DRAW[name](pen, hsv(*PALETTE[look.colour]), values, look.shape, level)


def default_values(name: str) -> dict[str, str]:
    return {a: values[0] for a, values in KINDS[name].attributes.items()}


def draw_room(pen: Pen, room: Room) -> None:
    wall = hsv(*room.wall)
    pen.fill(box(-40, -40, 168, 62), wall, round_=0.14, edge=0)
    if room.pattern == 1:
        for x in range(-36, 168, 12):
            pen.line(curve([(x, -40), (x, 60)]), tint(wall, -0.08), 3.0, alpha=0.5)
    elif room.pattern == 2:
        for x in range(-36, 168, 16):
            pen.line(curve([(x, -40), (x, 60)]), tint(wall, 0.35), 0.8, alpha=0.8)
        for y in range(-34, 60, 12):
            pen.line(curve([(-40, y), (168, y)]), tint(wall, 0.35), 0.8, alpha=0.8)
    elif room.pattern == 3:
        for k in range(60):
            pen.fill(oval(-36 + 14 * (k % 15) + 7 * (k // 15 % 2), -8 + 16 * (k // 15), 1.3, 1.3), tint(wall, -0.12), round_=0, edge=0)
    _decor(pen, room, wall)
    pen.soft(box(-40, 50, 168, 62), (0.1, 0.05, 0.1), 0.20, 4.0)
    top = hsv(*room.table)
    pen.fill(poly([(-2, 58), (130, 58), (156, 150), (-28, 150)]), top, round_=0.16, edge=0.2)
    if room.planks:
        for k in range(-3, 8):
            a, b = 64 + (k - 2.5) * 22, 64 + (k - 2.5) * 33
            pen.line(curve([(a, 58.5), (b, 150)]), tint(top, -0.22), 0.8, alpha=0.6)
        for k in range(14):
            y, x = 64 + (k * 37 % 64), (k * 53) % 128
            pen.line(curve([(x, y), (x + 8, y + 0.8), (x + 15, y)]), tint(top, -0.15), 0.6, alpha=0.55)
    else:
        pen.line(poly([(6, 62), (122, 62), (140, 140), (-12, 140)]), tint(top, 0.35), 1.6, alpha=0.7)
    spot = 36 if room.light < 0 else 92
    pen.glow(spot, 86, 78, (1.0, 0.97, 0.88), 0.30)
    pen.line(curve([(-4, 58), (132, 58)]), tint(top, 0.4), 1.2, alpha=0.8)


def _decor(pen: Pen, room: Room, wall: Colour) -> None:
    x = 30 if room.light < 0 else 98
    if room.decor == 1:
        pen.fill(box(x - 20, 2, x + 20, 40, 1), (0.98, 0.98, 0.97), round_=0.05)
        pen.fill(box(x - 17, 5, x + 17, 37), (0.72, 0.88, 0.98), round_=0.25, edge=0.1)
        pen.fill(oval(x - 5, 32, 9, 5), (0.60, 0.80, 0.55), round_=0.1, edge=0)
        pen.line(curve([(x, 4), (x, 38)]), (0.98, 0.98, 0.97), 2.0)
        pen.line(curve([(x - 18, 21), (x + 18, 21)]), (0.98, 0.98, 0.97), 2.0)
    elif room.decor == 2:
        pen.fill(box(x - 15, 10, x + 15, 34, 1), tint(wall, -0.5), round_=0.1)
        pen.fill(box(x - 12.5, 12.5, x + 12.5, 31.5), (0.96, 0.93, 0.86), round_=0.05, edge=0)
        pen.fill(poly([(x - 12.5, 31.5), (x - 3, 19), (x + 4, 27), (x + 7, 23), (x + 12.5, 31.5)]), tint(wall, -0.25), round_=0.1, edge=0)
        pen.fill(oval(x + 6, 18, 2.6, 2.6), (0.97, 0.70, 0.35), round_=0, edge=0)
    elif room.decor == 3:
        pen.fill(box(x - 26, 34, x + 26, 37.5, 1), (0.66, 0.46, 0.30))
        for dx, h, shade in ((-19, 15, 0.1), (-12, 18, -0.25), (-6, 13, 0.35), (10, 9, -0.4)):
            pen.fill(box(x + dx - 2.8, 34 - h, x + dx + 2.8, 34, 0.8), tint(wall, shade - 0.25), round_=0.2)
