"""Filming a step: hand, tool and target over 17 frames.

The phase runs from 0 to 1: the hand comes in, takes the tool over, acts, brings the tool back and leaves. The first step
starts at 0 with no hand in the picture (its first frame is the initial picture), every later one where the tool is in the hand.
"""

from __future__ import annotations

import math

import numpy as np
import skia

from .draw_food import empty_shell, slice_of_bread
from .draw_kitchen import tea_bag
from .draw_parts import LIQUID, coin
from .draw_workshop import SOIL, heart
from .pen import Colour, Pen, blob, curve, oval, poly, smooth, tint
from .scene import Room, Shot, aim, default_values, draw_object, draw_room
from .skills import Step
from .world import KINDS, State

FRAMES, FPS = 17, 8.0
LATER_START = 0.20
GRIPPED, ARRIVED, CHANGED, DONE, BACK, GONE = 0.12, 0.42, 0.62, 0.78, 0.92, 1.0

# where a thing pours from (local coordinates, tool at the right hand) and how far it tips, in degrees
_POUR: dict[str, tuple[tuple[float, float], float]] = {
    "kettle": ((-26, -25), -36), "milk": ((0, -40), -104), "jug": ((-16, -33), -58), "juice": ((0, -39), -108),
    "oil": ((0, -41), -112), "soil": ((-9, -31), -104), "watering can": ((-26, -29), -26), "bowl": ((-19, -17), -62),
}
_STREAM: dict[str, Colour] = {
    "kettle": LIQUID["water"], "milk": LIQUID["milk"], "jug": LIQUID["water"], "juice": LIQUID["juice"], "oil": LIQUID["oil"],
    "soil": SOIL, "watering can": LIQUID["water"], "bowl": LIQUID["batter"],
}
_SWITCH = {"kettle": (8.0, -6.0), "toaster": (14.0, -16.0), "lamp": (7.0, -3.0)}
_WICK = {"candle": -35.0, "cake": -38.0}
_WITH_STAND = ("mug", "glass", "pan", "bowl", "pot")


def render(room: Room, shot: Shot, before: State, step: Step, after: State, phase: float, size: int = 128) -> np.ndarray:
    """One picture, uint8 [size, size, 3]."""
    return _film(room, shot, before, step, after, [phase], size)[0]


def clip(room: Room, shot: Shot, before: State, step: Step, after: State, *, first: bool, frames: int = FRAMES, size: int = 128) -> np.ndarray:
    """The film of a step, uint8 [frames, size, size, 3]."""
    start = 0.0 if first else LATER_START
    return _film(room, shot, before, step, after, [start + (1 - start) * k / (frames - 1) for k in range(frames)], size)


def _film(room: Room, shot: Shot, before: State, step: Step, after: State, phases: list[float], size: int) -> np.ndarray:
    array = np.zeros((size, size, 4), np.uint8)
    surface = skia.Surface.MakeRasterDirect(skia.ImageInfo.Make(size, size, skia.kRGBA_8888_ColorType, skia.kOpaque_AlphaType), array)
    canvas = surface.getCanvas()
    canvas.scale(size / 128, size / 128)
    pen = Pen(canvas, room.light)

    def still() -> None:
        canvas.save()
        aim(canvas, shot)
        draw_room(pen, room)
        for name in sorted(shot.places, key=lambda n: shot.places[n][1]):
            if name not in (step.obj, step.target):
                draw_object(pen, room, name, before.get(name) or default_values(name), *shot.places[name])
        canvas.restore()

    still()
    backdrop = surface.makeImageSnapshot() if len(phases) > 1 else None
    out = np.empty((len(phases), size, size, 3), np.uint8)
    for k, phase in enumerate(phases):
        if backdrop is not None and k:
            canvas.save()
            canvas.resetMatrix()
            canvas.drawImage(backdrop, 0, 0)
            canvas.restore()
        canvas.save()
        aim(canvas, shot)
        _act(pen, room, shot, before, step, after, phase)
        canvas.restore()
        surface.flushAndSubmit()
        out[k] = array[..., :3]
    return out


def _act(pen: Pen, room: Room, shot: Shot, before: State, step: Step, after: State, phase: float) -> None:
    """Draw target, tool and hand at this phase."""
    side = room.side
    tx, ty, ts = shot.places[step.target]
    height = KINDS[step.target].height * ts
    changed = phase >= CHANGED
    state = after if changed else before
    act = min(max((phase - ARRIVED) / (DONE - ARRIVED), 0.0), 1.0)
    level = smooth((phase - CHANGED) / (DONE - CHANGED)) if changed and step.action in ("pour", "spread") else 1.0
    values = dict(state[step.target])
    if step.obj == "toaster":  # the toast is on its way from the toaster to the plate
        values = dict(after["bread"] if changed else before["bread"])
    draw_object(pen, room, step.target, values, tx, ty, ts, level=level)
    if not step.obj:
        _bare_hand(pen, room, step, phase, act, tx, ty, ts, height)
        return
    ox, oy, os = shot.places[step.obj]
    carried = _CARRIED.get(step.obj) if step.action == "place" else None
    gone = step.uses_up and changed
    if carried and step.obj in before:
        there = dict(before[step.obj])
        if step.obj == "toaster" and phase > GRIPPED:
            there = dict(after["toaster"])
        draw_object(pen, room, step.obj, there, ox, oy, os)
    if step.obj == "bread" and phase > GRIPPED:  # the plate stays
        draw_object(pen, room, "bread", {"toast": "away", "top": "none"}, ox, oy, os)
    x, y, angle = _tool_pose(step, side, act, (ox, oy, os), (tx, ty, ts), height)
    lift = smooth((phase - GRIPPED) / (ARRIVED - GRIPPED)) if phase < DONE else 1 - smooth((phase - DONE) / (BACK - DONE))
    released = gone or ((carried or step.obj == "bread") and changed)
    arc = 10 * math.sin(math.pi * lift)
    if released:  # the hand alone goes back
        hx, hy, angle = x + (ox - x) * (1 - lift), y + (oy - y) * (1 - lift) - arc, 0.0
    else:
        hx, hy, angle = ox + (x - ox) * lift, oy + (y - oy) * lift - arc, angle * lift
    if step.action == "pour" and 0.25 < act < 0.95:
        _stream(pen, step, tx, ty - height * 0.72, x, y, angle, os, side)
    grip = _grip(step, carried is not None)
    if step.action == "crack" and changed and act < 1:
        with pen.at(x, y, os):
            empty_shell(pen, (1, 1, 1), {}, 0, 1)
    if not released:
        with pen.at(hx, hy, os, angle):
            if side < 0:
                pen.canvas.scale(-1, 1)
            if carried:
                carried(pen)
            else:
                held = dict(before.get(step.obj, {}))
                if step.obj == "bowl" and changed:
                    held = dict(after["bowl"])
                if step.obj == "lighter" and 0.15 < act < 0.95:
                    held["lit"] = "yes"
                _draw_held(pen, room, step.obj, held)
    if GRIPPED * 0.2 < phase:
        a = math.radians(angle)
        gx, gy = grip[0] * side * os, grip[1] * os
        away = 1 - smooth(phase / GRIPPED) if phase < GRIPPED else smooth((phase - BACK) / (GONE - BACK))
        px = hx + gx * math.cos(a) - gy * math.sin(a) + side * 62 * away
        py = hy + gx * math.sin(a) + gy * math.cos(a) + 30 * away
        if away < 1:
            hand(pen, room, px, py, fist=True)


def _draw_held(pen: Pen, room: Room, name: str, values: dict[str, str]) -> None:
    if name == "bread":
        slice_of_bread(pen, "plain")
        return
    if name == "red paper":
        heart(pen, (1, 1, 1), values, 0, 1)
        return
    draw_object(pen, room, name, values or default_values(name), 0, 0, 1.0)


def _scoop(powder: Colour):
    def draw(pen: Pen) -> None:
        pen.fill(poly([(-1.5, -22), (1.5, -22), (1.2, -3), (-1.2, -3)]), (0.74, 0.77, 0.81))
        pen.fill(oval(0, 0, 6, 4.4), (0.74, 0.77, 0.81))
        pen.fill(blob([(-5, 0), (-3, -6), (3, -6), (5, 0)]), powder)

    return draw


def _seed_packet(pen: Pen) -> None:
    for dx, dy in ((-3, 4), (1, 8), (4, 3)):
        pen.fill(oval(dx, dy, 2.2, 1.5), (0.98, 0.88, 0.52), round_=0.2)


def _bow(pen: Pen) -> None:
    gold = (1.0, 0.83, 0.25)
    pen.fill(blob([(0, 0), (-12, -12), (-16, -4), (-8, 2)]), gold)
    pen.fill(blob([(0, 0), (12, -12), (16, -4), (8, 2)]), gold)


_CARRIED = {
    "tea": lambda pen: tea_bag(pen, (1, 1, 1), {}, 0, 1),
    "coffee": _scoop((0.24, 0.14, 0.08)),
    "cocoa": _scoop((0.62, 0.33, 0.20)),
    "lemon": lambda pen: coin(pen, 0, -4, 7.0, (0.99, 0.82, 0.10), (1.0, 0.97, 0.68)),
    "toaster": lambda pen: slice_of_bread(pen, "toasted"),
    "seeds": _seed_packet,
    "ribbon": _bow,
}


def _grip(step: Step, carried: bool) -> tuple[float, float]:
    """Where the hand holds the tool, local coordinates at the right hand."""
    if carried:
        return (3.0, -20.0) if step.obj in ("coffee", "cocoa", "tea") else (4.0, -9.0)
    high = {"knife": -31, "spoon": -31, "screwdriver": -31, "scissors": -25, "cream": -30, "kettle": -38, "watering can": -34, "glue": -15}
    wide = {"milk": 9, "juice": 9, "oil": 9, "jug": 18, "soil": 12, "bowl": 18, "carrot": 19, "tomato": 19, "lighter": 3, "toy": 8, "paper": 16, "red paper": 8}
    return float(wide.get(step.obj, 2)), float(high.get(step.obj, -KINDS[step.obj].height * 0.42))


def _tool_pose(step: Step, side: float, act: float, tool: tuple[float, float, float], target: tuple[float, float, float], height: float) -> tuple[float, float, float]:
    """Foot and tilt of the tool while it acts."""
    tx, ty, ts = target
    scale = tool[2]
    if step.action == "pour":
        mouth, tip = _POUR[step.obj]
        angle = side * tip * smooth(act * 4) * (1 - smooth((act - 0.9) * 10))
        a, mx, my = math.radians(side * tip), mouth[0] * side * scale, mouth[1] * scale
        top = max(ty - height - 9, 36)
        return tx + side * 3 - (mx * math.cos(a) - my * math.sin(a)), top - (mx * math.sin(a) + my * math.cos(a)), angle
    if step.action == "cut":
        base = ty - (18 if step.target == "cake" else 4) * ts
        chop = abs(math.sin(3 * math.pi * act))
        return tx + side * (12 - 22 * act), base - 9 * chop, side * (24 + 8 * chop)
    if step.action == "stir":
        turn = 2 * math.pi * 2 * act
        return tx + 7 * math.cos(turn), ty - height * 0.66 + 2.6 * math.sin(turn), side * (14 + 7 * math.cos(turn))
    if step.action == "crack":
        return tx + side * (6 - 4 * act), ty - height - 10 + 5 * abs(math.sin(2 * math.pi * min(act * 1.8, 1))), side * 18
    if step.action == "spread":
        top = ty - (19 if step.target == "cake" else 10) * ts
        stroke = math.sin(2 * math.pi * 2 * act)
        if step.obj == "glue":
            a = math.radians(side * -150)
            return tx + 9 * stroke - (37 * scale * math.sin(a)), top - 2 + 37 * scale * math.cos(a), side * -150
        return tx + side * 2 + 10 * stroke, top, side * (16 if step.obj == "cream" else 48)
    if step.action == "light":
        return tx + side * 10, ty + (_WICK[step.target] + 25) * ts - 3 * math.sin(math.pi * act), side * -16
    if step.action == "screw":
        wiggle = 14 * math.sin(2 * math.pi * 3 * act)
        if step.obj == "bulb":
            return tx, ty - 22 * ts - 5 * (1 - act), wiggle * 0.7
        return tx, ty - 6 * ts - 16 * ts * (1 - smooth(act)), side * 6 + wiggle * 0.5
    if step.target in _WITH_STAND:
        return tx + side * 2, ty - height * (1.12 - 0.45 * smooth(act * 2)), side * (-34 if step.obj in ("carrot", "tomato") else 8)
    rest = {"cake": -19, "envelope": -12, "plank": -6, "card": -2, "gift": -16, "toaster": -22, "bread": -4}[step.target]
    return tx + side, ty + rest * ts - 12 * (1 - smooth(act * 2)), 0.0


def _stream(pen: Pen, step: Step, x: float, y: float, fx: float, fy: float, angle: float, scale: float, side: float) -> None:
    """What falls from the mouth at its present tilt down to (x, y)."""
    mouth, _ = _POUR[step.obj]
    a = math.radians(angle)
    mx, my = mouth[0] * side * scale, mouth[1] * scale
    sx, sy = fx + mx * math.cos(a) - my * math.sin(a), fy + mx * math.sin(a) + my * math.cos(a)
    colour = _STREAM[step.obj]
    if step.obj in ("soil", "watering can"):
        for k in range(9):
            t = (k * 0.37 + angle * 0.01) % 1.0
            pen.fill(oval(sx + (x - sx) * t + 3.2 * math.sin(5.1 * k), sy + (y - sy) * t, 1.7, 1.9), colour, round_=0.1, edge=0.25)
        return
    pen.line(curve([(sx, sy), (sx - side * 1.2, sy + 2), (x, y)]), tint(colour, -0.35), 4.4)
    pen.line(curve([(sx, sy), (sx - side * 1.2, sy + 2), (x, y)]), colour, 3.2)


def _bare_hand(pen: Pen, room: Room, step: Step, phase: float, act: float, tx: float, ty: float, ts: float, height: float) -> None:
    side = room.side
    fist = step.action != "press"
    if step.action == "press":
        sx, sy = _SWITCH[step.target]
        goal = (tx + sx * ts, ty + sy * ts + (9 * smooth(act * 2) * (1 - act) if step.target == "toaster" else 0))
    elif step.action == "open":
        goal = (tx + side * (6 + 22 * smooth((act - 0.4) * 2)), ty - height * (0.92 - 0.7 * smooth((act - 0.5) * 2)) - 3 * math.sin(6 * act))
    elif step.action == "fold":
        goal = (tx + side * (14 - 26 * smooth(act)), ty - 8 * ts - 14 * math.sin(math.pi * act))
    else:  # close
        goal = (tx + side * 4, ty - height * (1.25 - 0.55 * smooth(act * 1.6)))
    rest = (tx + side * 40, ty - 6)
    near = smooth((phase - GRIPPED * 0.2) / (ARRIVED - GRIPPED * 0.2)) if phase < DONE else 1 - smooth((phase - DONE) / (BACK - DONE))
    x, y = rest[0] + (goal[0] - rest[0]) * near, rest[1] + (goal[1] - rest[1]) * near - 8 * math.sin(math.pi * near)
    away = 1 - smooth(phase / GRIPPED) if phase < GRIPPED else smooth((phase - BACK) / (GONE - BACK))
    if away < 1:
        hand(pen, room, x + side * 62 * away, y + 30 * away, fist=fist)


def hand(pen: Pen, room: Room, x: float, y: float, *, fist: bool) -> None:
    """A hand with its sleeve; (x, y) is where it holds or points. It comes in from the lower corner of its side."""
    skin, cuff = room.skin, room.sleeve
    with pen.at(x, y, 1.08):
        if room.side < 0:
            pen.canvas.scale(-1, 1)
        pen.soft(poly([(4, 6), (60, 44), (50, 60), (0, 14)]), (0.08, 0.04, 0.10), 0.20, 3.0)
        pen.fill(poly([(9, -4), (28, 9), (21, 19), (4, 7)]), tint(skin, -0.06), round_=0.2)
        pen.fill(poly([(24, 3), (92, 40), (80, 62), (15, 21)]), cuff, round_=0.25)
        pen.fill(poly([(24, 2), (30, 5.5), (20, 24.5), (14, 20.5)]), tint(cuff, 0.4), round_=0.15)
        if fist:
            pen.fill(blob([(-5, -6), (3, -10), (13, -5), (13, 5), (4, 10), (-4, 6)]), skin, round_=0.22)
            for k, (fx, fy) in enumerate(((-4.4, -5.0), (-5.6, -1.4), (-5.2, 2.2), (-3.6, 5.4))):
                pen.fill(oval(fx, fy, 4.6 - 0.25 * k, 2.1), tint(skin, 0.05), round_=0.2, edge=0.30)
            pen.fill(blob([(0, -9), (-5, -11), (-6, -8), (1, -5), (6, -7)]), tint(skin, 0.10), round_=0.2, edge=0.30)
        else:
            pen.fill(blob([(0, -3), (1, -3.4), (8, -6), (16, -3), (15, 7), (7, 9), (2, 5)]), skin, round_=0.22)
            pen.fill(blob([(-1.5, -1.6), (-1.5, 1.8), (10, 4), (10, -3)]), tint(skin, 0.05), round_=0.2, edge=0.3)
            for fy in (2.6, 5.4):
                pen.fill(oval(6, fy, 4.0, 2.0), tint(skin, 0.02), round_=0.2, edge=0.30)


