"""Pictures hold all that they draw."""

import pytest

from experiments.reports import report

ARMS = ("clean", "plain", "nearest", "anchor", "audited", "anchor@four", "adversarial")


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
