"""Places of what is drawn: axes, labels, maps, curves, marked texts."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protojax.reports import chart as charts
from protojax.reports import diagnosis, outputs
from protojax.reports import map as maps
from protojax.reports.chart import Axis, Line, Point, chart
from protojax.reports.marking import marked
from tests.test_attackers import figures
from tests.test_defence_parts import suspect

AXES = Axis("a", 0.01, 1.0), Axis("b", 0.0, 1.0, log=False)
BOX = 60, 14, 466, 354


@given(st.floats(0, 0.99), st.floats(0.002, 1))
def test_ticks_of_shares_are_few_even_and_inside(low, span):
    axis = Axis("share", low, low + span, log=False)
    found = axis.ticks()
    assert 1 <= len(found) <= 6
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[:1].repeat(len(steps)), rtol=1e-4)
    for tick in found:
        assert low - 1e-8 <= tick <= axis.high + 1e-8
        assert 0 <= axis.place(tick) <= 1


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-4, 1.0, [0.0001, 0.001, 0.01, 0.1, 1.0]),
        (0.002, 1.0, [0.01, 0.1, 1.0]),
        (0.01, 0.5, [0.01, 0.1]),
    ],
)
def test_ticks_of_logarithms_are_powers_of_ten(low, high, ticks):
    assert Axis("share", low, high).ticks() == ticks


def test_places_rise_and_end_at_the_ends():
    for axis in AXES:
        values = np.linspace(axis.low, axis.high, 20)
        places = [axis.place(value) for value in values]
        assert places == sorted(places)
        assert (places[0], places[-1]) == (0, 1)
        assert axis.place(-5.0) == 0
        assert axis.place(7.0) == 1
    assert AXES[0].place(0.1) == pytest.approx(0.5)


def test_only_lines_with_a_name_are_in_the_legend():
    lines = [
        Line("one", [0.01, 1], [0, 1], colour=1),
        Line("", [0.01, 1], [1, 0], dashed=True),
        # A band needs both of its edges.
        Line("two", [0.1], [0.5], low=[0.2], colour=charts.COLOURS + 2, marked=True),
    ]
    found = chart("a picture", *AXES, lines)
    assert found["box"] == BOX
    assert found["legend"] == [
        {"name": "one", "kind": "c1", "dashed": False},
        {"name": "two", "kind": "c2", "dashed": False},
    ]
    assert [line["kind"] for line in found["lines"]] == ["c1", "grey", "c2"]
    assert found["lines"][1]["dashed"]
    assert found["bands"] == []
    assert found["marks"] == [{"x": 263, "y": 184, "kind": "c2"}]
    assert found["points"] == []


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), max_size=4))
def test_labels_stay_inside_and_beside_their_point(places):
    points = [Point(str(n), "", x, y) for n, (x, y) in enumerate(places)]
    found = chart("a picture", *AXES, [], points)["points"]
    assert [one["label"] for one in found] == [str(n) for n in range(len(places))]
    left, top, right, bottom = BOX
    for one in found:
        assert left <= one["x"] <= right
        assert top <= one["y"] <= bottom
        assert left < one["at"][0] < right
        assert top < one["at"][1] < bottom
        assert one["bar"] is None
    if len(places) == 1:
        (one,) = found
        apart = [
            abs(a - b) for a, b in zip(one["at"], (one["x"], one["y"]), strict=True)
        ]
        assert max(apart) >= 9


def test_a_label_far_from_its_point_is_tied_to_it():
    points = [Point("10", "", 0.1, 0.5, colour=3) for _ in range(9)]
    found = chart("a picture", *AXES, [], points)["points"]
    assert not found[0]["tied"]
    assert found[-1]["tied"]
    for one, other in itertools.combinations(found, 2):
        assert one["at"] != other["at"]
    assert {one["kind"] for one in found} == {"c3"}


def test_a_picture_of_nothing_is_none():
    nan = math.nan
    assert diagnosis.picture("nothing", {}) is None
    assert diagnosis.picture("nothing", {"a": ([0, 1], [nan, math.inf])}) is None
    assert diagnosis.pictures_of(figures(positions=[nan], own_positions=[])) == []


def test_points_that_are_no_number_are_left_out_of_a_picture():
    lines = {"a": ([0, 1, 2], [1.0, math.nan, 3.0]), "b": ([0], [math.nan])}
    found = diagnosis.picture("a picture", lines)
    (curve,) = found.curves
    assert curve.name == "a"
    assert curve.dots == [(46, 145.3, "a, 0: 1"), (630, 12, "a, 2: 3")]
    assert curve.points == "46.0,145.3 630.0,12.0"
    assert found.ticks == [(46, "0"), (338, "1"), (630, "2")]
    assert found.levels == [(212, "0"), (112, "1.5"), (12, "3")]


def test_a_picture_of_shares_ends_at_its_top():
    found = diagnosis.picture("shares", {"a": ([4], [0.5])}, top=1.0, percent=True)
    # A single place is at the left.
    assert found.curves[0].dots == [(46, 112, "a, 4: 50%")]
    assert [text for _, text in found.levels] == ["0%", "50%", "100%"]
    above = diagnosis.picture("shares", {"a": ([4], [2.0])}, top=1.0)
    assert above.curves[0].dots[0][1] == 12


def test_values_below_zero_lower_the_floor():
    found = diagnosis.picture("a picture", {"a": ([0, 1], [-1.0, 1.0])})
    assert [text for _, text in found.levels] == ["-1", "0", "1"]
    assert [y for _, y, _ in found.curves[0].dots] == [212, 12]
    flat = diagnosis.picture("a picture", {"a": ([0, 1], [0.0, 0.0])})
    assert [y for _, y, _ in flat.curves[0].dots] == [212, 212]


def test_pictures_name_what_is_along_the_axis():
    given = {"starts": (0, 2), "continuations": (0.5, 0.25)}
    apart, behind = diagnosis.pictures_of(figures(same_tokens=False, **given))
    assert apart.title == "How far the models are apart at each common cut (nats)"
    assert apart.across == "common cuts written"
    assert [dot[2] for dot in behind.curves[0].dots] == [
        "right answers, 0: 50%",
        "right answers, 2: 25%",
    ]


def test_figures_that_are_no_number_are_none_in_json():
    found = diagnosis.plain_figures(
        figures(gap=math.nan, positions=[1 / 3, math.inf], faithfulness=None)
    )
    assert found["gap"] is None
    assert found["positions"] == [0.333333, None]
    assert found["faithfulness"] is None
    assert found["starts"] == []
    assert found["same_tokens"] is True


def test_the_table_leaves_out_what_was_not_measured():
    page = diagnosis.page_of(
        figures(gap_error=math.nan), {"teacher": "<t>"} | ABOUT, []
    )
    assert "right answers of the teacher" not in page
    assert "2.000 ±" not in page
    assert "3.000 ± 0.100" in page
    assert "<t>" not in page
    full = figures(
        same_tokens=False,
        teacher_accuracy=0.5,
        faithfulness=math.nan,
        executability=0.1,
    )
    page = diagnosis.page_of(full, ABOUT, [])
    assert "shared probability where the teacher writes, estimated" in page
    assert "right answers of the teacher" in page
    assert "whose equations are true" not in page


ABOUT = {"teacher": "t", "student": "s", "prompts": "p"}


def test_the_map_keeps_rejected_rows_before_others():
    rng = np.random.default_rng(0)
    features, rejected = rng.normal(size=(2000, 3)), np.arange(2000) % 5 == 0
    found = maps.points(features, rejected, features[:2], unit=False)
    assert len(found.rows) == 1500
    assert {*np.flatnonzero(rejected)} < {*found.numbers}
    assert len({*found.numbers}) == 1500
    np.testing.assert_array_equal(found.rejected, rejected[found.numbers])
    again = maps.points(features, rejected, features[:2], unit=False)
    np.testing.assert_array_equal(again.numbers, found.numbers)
    other = maps.points(features, rejected, features[:2], unit=False, seed=1)
    assert {*other.numbers} != {*found.numbers}


def test_the_map_fills_its_frame_along_the_widest_directions():
    features = np.zeros((6, 4))
    features[:, 2], features[:, 0] = [-9, -1, 0, 0, 1, 9], [1, -2, 3, -1, -2, 1]
    found = maps.points(features, np.zeros(6, bool), features[:1], unit=False)
    order = np.argsort(found.numbers)
    across, up = found.rows[order].T
    wanted = 14 + (features[:, 2] + 9) / 18 * 612
    assert min(abs(across - wanted).max(), abs(640 - across - wanted).max()) < 2
    assert (up.min(), up.max()) == (14, 406)
    np.testing.assert_array_equal(found.prototypes[0], found.rows[order][0])


def test_rows_that_are_equal_or_zero_have_a_place():
    for features in (np.ones((3, 2)), np.zeros((1, 2)), np.eye(2)[:1]):
        for unit in (True, False):
            rejected = np.zeros(len(features), bool)
            found = maps.points(features, rejected, np.eye(2), unit=unit)
            assert np.isfinite(found.rows).all()
            assert np.isfinite(found.prototypes).all()


@pytest.mark.parametrize(
    ("text", "spans", "parts"),
    [
        ("", [], []),
        ("abc", [], [("abc", False)]),
        ("abc", [(0, 3)], [("abc", True)]),
        ("abc", [(2, 3), (0, 1)], [("a", True), ("b", False), ("c", True)]),
        ("abc", [(0, 1), (1, 3)], [("a", True), ("bc", True)]),
    ],
)
def test_parts_of_an_output_make_it_up(text, spans, parts):
    assert outputs._parts(text, spans) == parts


def test_parts_of_a_conjunction_are_each_marked():
    both = suspect(name="window + perhaps", kind="word")
    parts = marked("Perhaps a window, perhaps not", both)
    assert "".join(part for part, _ in parts) == "Perhaps a window, perhaps not"
    assert [part for part, inside in parts if inside] == [
        "Perhaps",
        "window",
        "perhaps",
    ]
