"""The page of a diagnosis: which trap holds a pair back, with pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from protojax.distillability.diagnosis import Figures, Trap, headline, traps_of, worst
from protojax.reports.page import clipped, rendered

# The pictures' size in their own units, and the space around the lines.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 240, 46, 28, 12
_EXAMPLES = 6


class Curve(NamedTuple):
    """A line of a picture.

    Attributes:
        name: of the line.
        points: x and y in units of the picture, as an SVG `polyline` has them.
        dots: the same as pairs, with the value of each.
    """

    name: str
    points: str
    dots: list[tuple[float, float, str]]


class Picture(NamedTuple):
    """Lines over a number of tokens.

    Attributes:
        title: what is shown.
        curves: the lines.
        ticks: place and text along the x axis.
        levels: place and text along the y axis.
        across: what is along the x axis.
    """

    title: str
    curves: list[Curve]
    ticks: list[tuple[float, str]]
    levels: list[tuple[float, str]]
    across: str


def plain_figures(figures: Figures | Trap) -> dict[str, Any]:
    """Figures, or a trap, as JSON holds them: no number that is none.

    Args:
        figures: of a pair.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 6) if math.isfinite(value) else None
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return value

    return {name: plain(value) for name, value in figures._asdict().items()}


def picture(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    top: float | None = None,
    across: str = "tokens",
    percent: bool = False,
) -> Picture | None:
    """A picture of lines, None where there is no point at all.

    Args:
        title: what is shown.
        lines: name -> x and y; points whose y is not finite are left out.
        top: the largest y shown; by default that of the lines.
        across: what is along the x axis.
        percent: whether y are shares.
    """
    kept = {}
    for name, (xs, ys) in lines.items():
        pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        if pairs:
            kept[name] = pairs
    if not kept:
        return None
    xs = [x for pairs in kept.values() for x, _ in pairs]
    ys = [y for pairs in kept.values() for _, y in pairs]
    low, high = min(xs), max(max(xs), min(xs) + 1)
    floor, top = min(0.0, *ys), top or max(*ys, 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (WIDTH - LEFT - 10) * (x - low) / (high - low)
        up = (HEIGHT - BOTTOM - TOP) * (min(y, top) - floor) / (top - floor)
        return round(right, 1), round(HEIGHT - BOTTOM - up, 1)

    def said(y: float) -> str:
        return f"{y:.0%}" if percent else f"{y:.3g}"

    curves = []
    for name, pairs in kept.items():
        dots = [(*place(x, y), f"{name}, {x}: {said(y)}") for x, y in pairs]
        points = " ".join(f"{x},{y}" for x, y, _ in dots)
        curves.append(Curve(name, points, dots))
    ticks = sorted({low, (low + high) // 2, high})
    levels = [floor, (floor + top) / 2, top]
    return Picture(
        title,
        curves,
        [(place(x, floor)[0], str(x)) for x in ticks],
        [(place(low, y)[1], said(y)) for y in levels],
        across,
    )


def pictures_of(figures: Figures) -> list[Picture]:
    """The pictures of a pair.

    Args:
        figures: of the pair.
    """
    unit = "token" if figures.same_tokens else "common cut"
    lines = {
        "where the teacher writes": figures.positions,
        "where the student writes": figures.own_positions,
    }
    apart = picture(
        f"How far the models are apart at each {unit} (nats)",
        {name: (range(len(ys)), ys) for name, ys in lines.items()},
        across=f"{unit}s written",
    )
    given = figures.starts, figures.continuations
    behind = picture(
        "How often the teacher is right behind what the student began",
        {"right answers": given},
        top=1.0,
        across="tokens that the student began with",
        percent=True,
    )
    return [found for found in (apart, behind) if found is not None]


def page_of(
    figures: Figures,
    about: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    *,
    least: float = 0.2,
) -> str:
    """The HTML of a diagnosis, readable without a network.

    Args:
        figures: of the pair.
        about: names of the models and of the prompts.
        items: what both wrote for each prompt.
        least: see `worst`.
    """
    traps = traps_of(figures)
    return rendered(
        "diagnosis.html.jinja",
        figures=figures,
        about=about,
        headline=headline(figures, least=least),
        traps=traps,
        worst=worst(traps, least=least),
        least=least,
        pictures=pictures_of(figures),
        table=_table(figures),
        examples=[
            {
                "line": item["line"],
                "prompt": clipped(item["prompt"]),
                "teacher": clipped(item["teacher"]["text"]),
                "student": clipped(item["student"]["text"]),
                "teacher_right": item["teacher"].get("right"),
                "student_right": item["student"].get("right"),
            }
            for item in items[:_EXAMPLES]
        ],
        size=(WIDTH, HEIGHT, LEFT, BOTTOM, TOP),
    )


def _table(figures: Figures) -> list[tuple[str, str]]:
    """Names and values of the figures that were measured."""

    def share(value: float | None) -> str | None:
        return None if value is None or math.isnan(value) else f"{100 * value:.1f} %"

    def nats(value: float, error: float) -> str:
        return f"{value:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")

    bound = "" if figures.same_tokens else ", estimated"
    k = figures.k
    found = {
        "KL(teacher ‖ student), nats a text of the teacher": nats(
            figures.gap, figures.gap_error
        ),
        "the same, nats a byte": f"{figures.gap_per_byte:.4f}",
        "KL(student ‖ teacher), nats a text of the student": nats(
            figures.own_gap, figures.own_gap_error
        ),
        f"shared probability where the teacher writes{bound}": share(
            figures.teacher_overlap
        ),
        f"shared probability where the student writes{bound}": share(
            figures.student_overlap
        ),
        f"teacher's probability outside its top {k}, own texts": share(
            figures.tail_mass
        ),
        f"teacher's probability outside its top {k}, student's texts": share(
            figures.own_tail_mass
        ),
        "share of the squared slope from there": share(figures.tail_share),
        "right answers of the teacher": share(figures.teacher_accuracy),
        "right answers of the student": share(figures.student_accuracy),
        "right answers of the student, beginning as the teacher": share(
            figures.executability
        ),
        "teacher's right answers whose equations are true": share(figures.faithfulness),
        "texts of the teacher that ended": share(figures.teacher_ended),
        "texts of the student that ended": share(figures.student_ended),
    }
    return [(name, value) for name, value in found.items() if value is not None]
