"""Pictures hold all that they draw."""

import json

import pytest

from experiments import settings
from experiments.arms import ARMS as KNOWN
from experiments.arms import is_recommended, known, name_of
from experiments.arms.base import ROLES
from experiments.reports import pages, report, results

ARMS = (
    "clean",
    "plain",
    "prototype",
    "defended",
    "defended@four",
    "adversarial",
)


def lines(attacks):
    """A summary of every arm under every attack, or of none."""
    values = {"metric_name": "accuracy", "clean_metric": 0.9, "seeds": 1}
    values.update({"clean_metric_interval": None, "asr_interval": None})
    return [
        {"task": "snips", "attack": attack, "arm": arm, "asr": 0.5, "null_asr": 0.1}
        | values
        | ({} if attack else {"asr": None, "null_asr": None})
        for attack in attacks
        for arm in ARMS
    ]


@pytest.mark.parametrize("attacks", [("a",), ("a", "b"), ("a", "b", "c", "d", "e")])
@pytest.mark.parametrize("draw", [report.draw, report.draw_tradeoff])
def test_the_names_of_all_arms_are_in_the_picture(draw, attacks):
    figure = draw(lines(attacks))
    figure.canvas.draw()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert {text.get_text() for text in legend.get_texts()} == set(ARMS)
    assert box.x0 >= 0
    assert box.x1 <= page.x1
    assert box.y0 >= 0


def test_a_picture_without_attack_is_wide_enough():
    figure = report.draw(lines((None,)))
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("rates", [(0.01, 0.1, 0.001), (0.05, 0.1, 0.05)])
def test_attack_success_is_drawn_against_the_rate_where_it_differs(rates):
    names = ("a", "b", "c")
    sections = {
        name: {"trigger": "rare_words", "rate": rate, "arms": (name,)}
        for name, rate in zip(names, rates, strict=True)
    }
    # Another attack is no point of the same line.
    sections["other"] = {"trigger": "file", "rate": 0.2, "arms": ()}
    summary = lines((None, *sections))
    found = report.attack_pictures(summary, sections)
    assert ("_rates" in found) == (len(set(rates)) == 3)
    assert report.attack_pictures(lines((None,)), sections) == {}
    if "_rates" not in found:
        return
    (axis,) = found["_rates"][0].axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0.1", "1", "10"]
    drawn = dict(zip(ARMS, axis.containers, strict=True))
    for arm, container in drawn.items():
        places = container.lines[0].get_xdata()
        assert container.get_label() == arm
        assert len(places) == 3
        for place, rate in zip(places, sorted(rates), strict=True):
            assert 1 <= place / (100 * rate) < 1.2


def summary_of(arms):
    """Lines of one attack as `results.summarise` makes them."""
    row = {"task": "t", "attack": "a", "seed": 0, "metric_name": "accuracy"}
    rows = [{**row, "arm": arm, "asr": 0.5, "clean_metric": 0.9} for arm in arms]
    return results.summarise(results.compared(rows))


def test_the_recommended_defence_is_the_one_that_stands_out(tmp_path):
    arms = (
        "clean",
        "sample_test",
        "defended",
        "defended+strict",
        "defended_clean",
        "plain@x",
    )
    summary = summary_of(arms)
    expected = ["defended", "defended+strict"]
    (shown,) = results.tables({"summary": summary})
    names = list(shown.columns[0].cells)
    styles = [row.style for row in shown.rows]
    assert [n for n, s in zip(names, styles, strict=True) if s] == expected
    (tmp_path / "versions.json").write_text(json.dumps({}))
    changes = {"attacks": {"a": {"trigger": "file", "rate": 0.1}}}
    config = settings.make(settings.Settings(), changes)
    page = report.write(tmp_path, config, {"summary": summary}).read_text()
    lines = page.split("<tr class=")[1:]
    marked = [line for line in lines if "recommended" in line.partition(">")[0]]
    assert [line.split("<td>")[3].partition("<")[0] for line in marked] == expected


def test_one_defence_is_recommended_and_former_names_are_not():
    assert [name for name in KNOWN if is_recommended(name)] == ["defended"]
    assert not is_recommended("former+variant")


def test_reports_tolerate_arms_of_former_names(tmp_path):
    arms = ("clean", "plain", "former", "former+drop@four")
    summary = summary_of(arms)
    assert [line["arm"] for line in summary] == list(arms)
    rates = {"a": 0.1}
    for figure in (
        report.draw(summary),
        report.draw_tradeoff(summary),
        report.draw_rates(summary, rates),
    ):
        figure.canvas.draw()
    colours = {report._colour(arm) for arm in arms}
    assert len(colours) == 3
    with pytest.raises(ValueError, match="found a former one"):
        known("former").recipe(None)


def test_every_role_has_one_arm_and_every_colour_too():
    assert {arm.role for arm in KNOWN.values()} == {"", *ROLES}
    assert [name_of(role) for role in ROLES] == ["clean", "plain", "defended"]
    colours = [arm.colour for arm in KNOWN.values() if arm.colour]
    assert len(set(colours)) == len(colours) == 6
    titles = [title for arm in KNOWN.values() for title in arm.overview.values()]
    assert len(set(titles)) == len(titles)
    measures = {measure for arm in KNOWN.values() for measure in arm.overview}
    assert measures == set(pages.OVERVIEW)
    with pytest.raises(ValueError, match="role one of"):
        name_of("nul")
