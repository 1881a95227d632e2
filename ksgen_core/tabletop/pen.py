"""The drawing hand of Tabletop: shaded shapes on a skia canvas.

Units are pixels of a 128-pixel picture; x to the right, y down; an object stands with its foot at (0, 0).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import skia

Colour = tuple[float, float, float]
Point = tuple[float, float]

# hue, saturation, value of the colours that tell one object from another of its kind
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 0.72, 0.86),
    "orange": (0.075, 0.78, 0.95),
    "yellow": (0.14, 0.70, 0.97),
    "green": (0.33, 0.55, 0.66),
    "teal": (0.49, 0.62, 0.70),
    "blue": (0.60, 0.65, 0.85),
    "purple": (0.77, 0.45, 0.72),
    "white": (0.10, 0.05, 0.97),
}


def hsv(h: float, s: float, v: float) -> Colour:
    return colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0))


def tint(colour: Colour, amount: float) -> Colour:
    """Lighter towards a warm white for a positive amount, darker and cooler for a negative one."""
    goal = (1.0, 0.99, 0.95) if amount > 0 else (0.10, 0.06, 0.16)
    k = abs(amount)
    return tuple(c + (g - c) * k for c, g in zip(colour, goal, strict=True))  # type: ignore[return-value]


def _argb(colour: Colour, alpha: float = 1.0) -> int:
    return skia.Color4f(*colour, alpha).toColor()


def oval(x: float, y: float, rx: float, ry: float) -> skia.Path:
    return skia.Path.Oval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))


def box(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> skia.Path:
    rect = skia.Rect.MakeLTRB(left, top, right, bottom)
    return skia.Path.RRect(rect, radius, radius) if radius else skia.Path.Rect(rect)


def poly(points: Sequence[Point], closed: bool = True) -> skia.Path:
    return skia.Path.Polygon([skia.Point(*p) for p in points], closed)


def blob(points: Sequence[Point]) -> skia.Path:
    """A smooth closed outline: quadratic arcs through the middles of the sides, the points as controls."""
    builder = skia.PathBuilder()
    n = len(points)
    middle = [
        ((points[i][0] + points[(i + 1) % n][0]) / 2, (points[i][1] + points[(i + 1) % n][1]) / 2) for i in range(n)
    ]
    builder.moveTo(*middle[-1])
    for i in range(n):
        builder.quadTo(points[i][0], points[i][1], *middle[i])
    builder.close()
    return builder.detach()


def curve(points: Sequence[Point]) -> skia.Path:
    """An open smooth line from the first point to the last, the points between as controls."""
    builder = skia.PathBuilder()
    builder.moveTo(*points[0])
    for i in range(1, len(points) - 1):
        last = i == len(points) - 2
        end = points[i + 1] if last else ((points[i][0] + points[i + 1][0]) / 2, (points[i][1] + points[i + 1][1]) / 2)
        builder.quadTo(*points[i], *end)
    if len(points) == 2:
        builder.lineTo(*points[1])
    return builder.detach()


class Pen:
    """Draws shaded shapes; `light` is -1 for light from the left, +1 from the right."""

    def __init__(self, canvas: skia.Canvas, light: float = -1.0) -> None:
        self.canvas = canvas
        self.light = light

    def fill(
        self, path: skia.Path, colour: Colour, *, round_: float = 0.32, edge: float = 0.38, alpha: float = 1.0
    ) -> None:
        """Fill with light falling from one side (`round_` is how strongly) and a thin darker outline (`edge`)."""
        paint = skia.Paint(AntiAlias=True)
        if round_:
            bounds = path.getBounds()
            a, b = skia.Point(bounds.left(), bounds.top()), skia.Point(bounds.right(), bounds.bottom())
            if self.light > 0:
                a, b = skia.Point(bounds.right(), bounds.top()), skia.Point(bounds.left(), bounds.bottom())
            stops = [_argb(tint(colour, round_), alpha), _argb(colour, alpha), _argb(tint(colour, -round_), alpha)]
            paint.setShader(skia.GradientShader.MakeLinear([a, b], stops, [0.0, 0.45, 1.0]))
        else:
            paint.setColor(_argb(colour, alpha))
        self.canvas.drawPath(path, paint)
        if edge:
            self.line(path, tint(colour, -edge - 0.12), 0.7, alpha=alpha * 0.85)

    def line(self, path: skia.Path, colour: Colour, width: float, *, alpha: float = 1.0) -> None:
        paint = skia.Paint(AntiAlias=True, Style=skia.Paint.kStroke_Style, StrokeWidth=width)
        paint.setStrokeCap(skia.Paint.kRound_Cap)
        paint.setStrokeJoin(skia.Paint.kRound_Join)
        paint.setColor(_argb(colour, alpha))
        self.canvas.drawPath(path, paint)

    def soft(self, path: skia.Path, colour: Colour, alpha: float, sigma: float) -> None:
        """A blurred patch: shadows, glow, steam."""
        paint = skia.Paint(AntiAlias=True)
        paint.setColor(_argb(colour, alpha))
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, sigma))
        self.canvas.drawPath(path, paint)

    def shine(self, path: skia.Path, alpha: float = 0.55) -> None:
        self.fill(path, (1.0, 1.0, 1.0), round_=0, edge=0, alpha=alpha)

    def glow(self, x: float, y: float, radius: float, colour: Colour, alpha: float) -> None:
        paint = skia.Paint(AntiAlias=True)
        stops = [_argb(colour, alpha), _argb(colour, 0.0)]
        paint.setShader(skia.GradientShader.MakeRadial(skia.Point(x, y), radius, stops))
        self.canvas.drawPath(oval(x, y, radius, radius), paint)

    def shadow(self, width: float, *, x: float = 0.0, y: float = 0.0) -> None:
        """The soft contact shadow of an object of this half width, thrown away from the light."""
        self.soft(
            oval(x - self.light * width * 0.25, y, width * 1.08, width * 0.30 + 1.0), (0.08, 0.04, 0.10), 0.42, 1.8
        )

    def at(self, x: float, y: float, scale: float = 1.0, degrees: float = 0.0) -> _Placed:
        return _Placed(self.canvas, x, y, scale, degrees)


class _Placed:
    """A `with` block in which (0, 0) is moved, scaled and turned."""

    def __init__(self, canvas: skia.Canvas, x: float, y: float, scale: float, degrees: float) -> None:
        self.canvas, self.x, self.y, self.scale, self.degrees = canvas, x, y, scale, degrees

    def __enter__(self) -> None:
        self.canvas.save()
        self.canvas.translate(self.x, self.y)
        if self.degrees:
            self.canvas.rotate(self.degrees)
        if self.scale != 1.0:
            self.canvas.scale(self.scale, self.scale)

    def __exit__(self, *_: object) -> None:
        self.canvas.restore()


def smooth(t: float) -> float:
    """Slow in, slow out: 0 below 0, 1 above 1."""
    t = min(max(t, 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


def wave(t: float, turns: float) -> float:
    return math.sin(2.0 * math.pi * turns * t)
