"""The pages of what pipelines give away, made from a few figures."""

import json
import re

import numpy as np
import pytest

from experiments.configs import privacy as config_lib
from experiments.systems import private_page
from protojax.pipelines.privacy import RECIPES, Recipe
from protojax.privacy import complementary_halves, leakage
from protojax.reports import leaks
from protojax.reports import privacy as pages
from protojax.reports.chart import Axis, Line, Point, chart


def found_at(shift):
    """What a model gives away that remembers mislabelled rows by so much."""
    members = complementary_halves(500, 8, seed=0)
    kinds = np.where(np.arange(500) < 250, "mislabelled", "ordinary")
    noise = np.random.default_rng(0).normal(size=(2, *members.shape))
    planted = members * (kinds == "mislabelled")
    score, teacher = noise + planted * np.array([shift, 5.0])[:, None, None]
    logits, reference = (np.stack([one, 0 * one], -1) for one in (score, teacher))
    return leakage(
        logits,
        members,
        np.zeros(500, int),
        kinds=kinds,
        reference=reference,
        attacks=["lira"],
        num_draws=10,
    )


@pytest.fixture(scope="module")
def strong():
    return found_at(5.0)


@pytest.fixture(scope="module")
def weak():
    return found_at(1.0)


def facts_of(found):
    return pages.PrivacyFacts(
        recipe="student_hard",
        shipped="student",
        epochs=3,
        private=500,
        public=80,
        dropped=2,
        label_names=("secret <b>class</b>",),
        accuracy=0.9,
        pipelines=8 if found else 0,
        canaries=250 if found else 0,
        pipeline_accuracy=None,
        guarantee=None,
        leakage=found,
    )


def line(arm, accuracy, found, seed=0):
    record = json.loads(json.dumps(found.record()))
    found = {"seed": seed, "arm": arm, "accuracy": accuracy, "record": record}
    checks = {"blind AUC": 0.501, "public rows left out": 3}
    return {**found, **checks, "guarantee": None}


def test_places_of_a_chart():
    axes = Axis("a", 0.01, 1.0), Axis("b", 0.0, 1.0, log=False)
    band = {"low": [0.0, 0.5], "high": [0.5, 1.0]}
    lines = [Line("one", [0.01, 1.0], [0.0, 1.0], **band, colour=9, marked=True)]
    points = [
        Point(str(n), "", x, 0.5, (0.25, 2.0)) for n, x in enumerate((0.1, 0.1, 9))
    ]
    found = chart("a picture", *axes, lines, points)
    left, top, right, bottom = found["box"]
    assert found["lines"] == [
        {"places": f"{left},{bottom} {right},{top}", "kind": "c1", "dashed": False}
    ]
    middle = (top + bottom) // 2
    assert found["bands"][0]["places"] == (
        f"{left},{bottom} {right},{middle} {right},{top} {left},{middle}"
    )
    one, other, beyond = found["points"]
    assert (one["x"], one["y"]) == ((left + right) / 2, middle)
    # Values beyond an end lie on it; labels of equal points lie apart.
    assert beyond["x"] == right
    assert one["bar"][1] == top
    assert one["at"] != other["at"]
    assert [text for _, text in found["x"]["ticks"]] == ["1 %", "10 %", "100 %"]


def test_the_page_of_a_pipeline_says_what_was_found(weak):
    page = leaks.page_of(facts_of(weak))
    assert weak.sentence in page
    assert leaks.ORACLE in page
    best = weak.strongest("mislabelled")
    low, high = best.intervals[0]
    assert f"{100 * best.rates[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in page
    # The curves of both kinds with rows enough, and chance.
    assert page.count("<polyline") == 1 + len(weak.curves) == 4
    assert page.count("<polygon") == 3
    assert page.count('class="passed"') == 2
    assert "Not measured" in page
    # Class names of private rows are no figure.
    assert "secret" not in page


def test_a_failed_check_is_said(weak):
    null = weak.null._replace(passed=False)
    page = leaks.page_of(facts_of(weak._replace(null=null)))
    assert "no result" in page
    assert page.count(">FAILED<") == 1


def test_the_page_without_a_measurement_shows_no_figure_of_one():
    page = leaks.page_of(facts_of(None))
    assert "was not measured" in page
    assert "--pipelines 16" in page
    assert "<svg" not in page
    assert leaks.ORACLE in page


def test_the_page_of_a_study(strong, weak, tmp_path):
    rows = [
        line("teacher", 95.0, strong),
        line("early", 94.5, weak),
        line("student", 80.0, weak),
    ]
    config = config_lib.get_config("")
    path = private_page.write(config, tmp_path, rows)
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    page = path.read_text()
    worst = 100 * weak.worst.rates[0]
    assert (
        f"early gives away least at no more than 1 point of accuracy: {worst:.1f}"
        in page
    )
    assert leaks.ORACLE in page
    assert page.count("<details") == 3
    # All arms, those near the best accuracy, and the curves of each.
    assert page.count("<svg") == 5
    assert page.count("</span>stopped early</li>") == 2
    assert "-0.5" in page
    assert "AUC of 0.501" in page
    assert "not audited" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)


def test_the_page_of_a_pipeline_says_its_audit(weak):
    promise = {"epsilon": 8.0, "delta": 1e-4, "noise": 0.9, "nominal": False}
    audit = {"epsilon": 8.0, "bound": 0.2, "kind": "mislabelled", "trials": 400}
    audit |= {"ceiling": 3.0, "control": 2.9}
    facts = facts_of(weak)._replace(guarantee=promise, audit=audit)
    for said in (leaks.page_of(facts), pages.card_of(facts, {})):
        assert pages.audited(audit) in said
    assert "udit of epsilon" not in leaks.page_of(facts_of(weak))
    assert "udit of epsilon" not in pages.card_of(facts_of(weak), {})


def test_seeds_are_averaged_and_their_range_is_shown(strong, weak):
    rows = [line("teacher", 95.0, strong), line("teacher", 93.0, weak, seed=1)]
    (arm,) = private_page.arms_of(rows)
    rates = [one.worst.rates[0] for one in (weak, strong)]
    assert arm.accuracy == pytest.approx(0.94)
    assert arm.rate == pytest.approx(np.mean(rates))
    assert arm.ends == tuple(rates)
    assert arm.checked


def test_headlines_without_a_result(strong, weak):
    def said(*rows):
        return leaks.headline(private_page.arms_of(rows))

    assert "No plain teacher" in said(line("student", 90.0, weak))
    teacher = line("teacher", 90.0, weak)
    assert "none that costs" in said(teacher, line("student", 90.0, strong))
    assert "none costs at most" in said(teacher, line("student", 80.0, weak))
    unsure = weak._replace(null=weak.null._replace(passed=False))
    assert "no result" in said(line("teacher", 90.0, unsure))
    few = [one._replace(rates=(None,) * 2, intervals=(None,) * 2) for one in weak.found]
    few = line("teacher", 90.0, weak._replace(found=tuple(few)))
    assert "too few" in said(few)
    page = leaks.compared("A study", private_page.arms_of([few]), ())
    assert "Not shown: too few" in page


def test_records_of_earlier_versions_have_no_curves(weak):
    row = line("teacher", 90.0, weak)
    del row["record"]["curves"]
    assert "<svg" in leaks.compared("A study", private_page.arms_of([row]), ())


def test_joined_arms_are_recipes():
    rows = [{"arm": arm, "epochs": number} for number, arm in enumerate(RECIPES)]
    joined = private_page.joined_of(rows, Recipe())
    found = {arm for _, arms in joined for arm in arms}
    stopped = {*private_page.STOPPED, *private_page.STOPPED.values()}
    assert found == {*private_page.NOISE} | stopped <= {*RECIPES}


def test_arms_are_joined_by_their_epochs_in_the_mean_over_seeds():
    rows = [{"arm": arm} for arm in ("teacher", "early")]
    rows += [{"arm": "teacher:6", "epochs": 6}]
    rows += [{"arm": "early", "epochs": number} for number in (9, 15)]
    _, (name, arms), *_ = private_page.joined_of(rows, Recipe())
    # Of 15 epochs, and of 3, 9 and 15.
    assert (name, arms) == ("stopped early", ["teacher:6", "early", "teacher"])
