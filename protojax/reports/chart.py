"""A chart of lines with bands and of points with bars, drawn as SVG by a template.

Everything is placed here, in pixels; `chart.html.jinja` only writes it down.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Small enough that its letters can be read on a phone.
WIDTH, HEIGHT = 480, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 14, 46
# Colours of the style sheet.
COLOURS = 8
_RADIUS, _LETTER = 4, 9
# Places of a label beside its point: right, left, above, below, then farther away.
_OFFSETS = tuple(
    (x * far, y * far)
    for far in (1.0, 1.8, 2.8, 4.0)
    for x, y in (
        *((11, 0), (-11, 0), (0, -12), (0, 12)),
        *((9, -10), (-9, -10), (9, 10), (-9, 10)),
    )
)


class Axis(NamedTuple):
    """One axis of shares.

    Attributes:
        name: written beside it.
        low: its least value, > 0 where it is logarithmic.
        high: its greatest.
        log: whether it is logarithmic.
    """

    name: str
    low: float
    high: float
    log: bool = True

    def place(self, value: float) -> float:
        """The place of a value, from 0 to 1; values beyond an end lie on it.

        Args:
            value: any.

        >>> Axis("share", 0.01, 1.0).place(0.1), Axis("share", 0.01, 1.0).place(0.0)
        (0.5, 0.0)
        """
        value = min(max(value, self.low), self.high)
        ends = [self.low, value, self.high]
        low, at, high = map(math.log10, ends) if self.log else ends
        return (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """The marked values.

        >>> Axis("share", 0.01, 1.0).ticks()
        [0.01, 0.1, 1.0]
        >>> Axis("share", 0.9, 0.96, log=False).ticks()
        [0.9, 0.92, 0.94, 0.96]
        """
        if self.log:
            first, last = map(math.log10, (self.low, self.high))
            powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
            return [round(10.0**power, 9) for power in powers]
        span = self.high - self.low
        size = 10.0 ** math.floor(math.log10(span))
        steps = [size * part for part in (0.1, 0.2, 0.5, 1.0, 2.0)]
        step = next(step for step in steps if span / step <= 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(step * count, 9) for count in range(first, last + 1)]


class Line(NamedTuple):
    """A line through places of the chart, perhaps within a band.

    Attributes:
        name: for the legend; "" for none.
        x: `[places]`.
        y: `[places]`.
        low: `[places]`, the lower edge of the band, or None.
        high: `[places]`, its upper edge, or None.
        colour: a number below `COLOURS`, or None for grey.
        dashed: whether it is.
        marked: whether its places are.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int | None = None
    dashed: bool = False
    marked: bool = False


class Point(NamedTuple):
    """A point with a label, and perhaps a bar through it.

    Attributes:
        label: short, written beside it.
        name: shown where one points at it.
        x: its place.
        y: its place.
        bar: the ends of the upright bar, or None.
        colour: a number below `COLOURS`, or None for grey.
    """

    label: str
    name: str
    x: float
    y: float
    bar: tuple[float, float] | None = None
    colour: int | None = None


def chart(
    name: str, x: Axis, y: Axis, lines: Sequence[Line], points: Sequence[Point] = ()
) -> Mapping[str, Any]:
    """The shapes that `chart.html.jinja` draws, in pixels.

    Args:
        name: what it shows, for people who do not see it.
        x: from left to right.
        y: from bottom to top.
        lines: drawn in turn, each with its band below all lines.
        points: drawn above.

    >>> axes = Axis("a", 0.01, 1.0), Axis("b", 0.01, 1.0)
    >>> found = chart("chance", *axes, [Line("chance", [0.01, 1.0], [0.01, 1.0])])
    >>> found["lines"][0]["places"]
    '60,354 466,14'
    """

    def places(across: Sequence[float], up: Sequence[float]) -> list[tuple]:
        pairs = zip(across, up, strict=True)
        return [(_across(x.place(a)), _up(y.place(b))) for a, b in pairs]

    drawn, bands, marks = [], [], []
    for line in lines:
        through, kind = places(line.x, line.y), _class(line.colour)
        drawn.append({"places": _written(through), "kind": kind, "dashed": line.dashed})
        if line.low is not None and line.high is not None:
            edge = places(line.x, line.low) + places(line.x, line.high)[::-1]
            bands.append({"places": _written(edge), "kind": kind})
        if line.marked:
            marks += [{"x": a, "y": b, "kind": kind} for a, b in through]
    return {
        "name": name,
        "size": (WIDTH, HEIGHT),
        "box": (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
        "x": _axis(x, _across),
        "y": _axis(y, _up),
        "bands": bands,
        "lines": drawn,
        "marks": marks,
        "points": _points(points, x, y),
        "legend": [
            {"name": line.name, "kind": _class(line.colour), "dashed": line.dashed}
            for line in lines
            if line.name
        ],
    }


def _across(share: float) -> float:
    return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)


def _up(share: float) -> float:
    return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def _class(colour: int | None) -> str:
    return "grey" if colour is None else f"c{colour % COLOURS}"


def _written(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _axis(axis: Axis, place: Any) -> dict[str, Any]:
    """Name and ticks of an axis."""
    ticks = [(place(axis.place(at)), f"{100 * at:.6g} %") for at in axis.ticks()]
    return {"name": axis.name, "ticks": ticks}


def _points(points: Sequence[Point], x: Axis, y: Axis) -> list[dict[str, Any]]:
    """Points, bars and labels; each label where it hides least."""
    places = [(_across(x.place(one.x)), _up(y.place(one.y))) for one in points]
    taken = [(a, b, 2 * _RADIUS, 2 * _RADIUS) for a, b in places]
    found = []
    for one, (a, b) in zip(points, places, strict=True):
        size = len(one.label) * _LETTER, 13
        boxes = [(a + dx, b + dy, *size) for dx, dy in _OFFSETS]
        hidden = [sum(_overlap(box, other) for other in taken) for box in boxes]
        hidden = np.array(hidden) + [1e3 * (not _inside(box)) for box in boxes]
        box = boxes[int(np.argmin(hidden))]
        taken.append(box)
        bar = one.bar and [_up(y.place(end)) for end in one.bar]
        found.append(
            {
                "x": a,
                "y": b,
                "bar": bar,
                "kind": _class(one.colour),
                "name": one.name,
                "label": one.label,
                "at": (round(box[0], 1), round(box[1], 1)),
                # A label that lies apart is tied to its point.
                "tied": max(abs(box[0] - a), abs(box[1] - b)) > 13,
            }
        )
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The common area of two boxes given by their centres and sizes."""
    sides = [
        max(0.0, (one[i + 2] + other[i + 2]) / 2 - abs(one[i] - other[i]))
        for i in (0, 1)
    ]
    return sides[0] * sides[1]


def _inside(box: Sequence[float]) -> bool:
    x, y, width, height = box
    return (
        x - width / 2 > _LEFT
        and x + width / 2 < WIDTH - _RIGHT
        and y - height / 2 > _TOP
        and y + height / 2 < HEIGHT - _BOTTOM
    )
