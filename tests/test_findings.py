"""What is said of a leakage, from figures that are given and not measured."""

import json

import numpy as np
import pytest

from protojax.privacy.findings import (
    ORDINARY,
    Calibrated,
    Curve,
    Found,
    Leakage,
    NullCheck,
    PowerCheck,
    RowProfile,
    strongest,
    worst_of,
)


def found(kind, rate, *, attack="lira", auc=0.6):
    interval = None if rate is None else (rate / 2, min(1.0, 2 * rate))
    return Found(kind, attack, 40, auc, (rate, None), (interval, None))


PROFILE = RowProfile(
    rows=np.array([2, 3, 5, 8]),
    kinds=np.array([ORDINARY, "twin", "twin", ORDINARY]),
    labels=np.array([0, 1, 1, 0]),
    gaps=np.array([0.5, -1.0, 2.0, 0.1]),
    rates=np.array([0.25, 0.75, 0.75, 1.0]),
)
LEAKAGE = Leakage(
    found=(found(ORDINARY, 0.02), found("twin", 0.4), found("rare", None, auc=0.9)),
    calibrated=(Calibrated(ORDINARY, 0.03, (0.01, 0.05), 0.0104),),
    null=NullCheck("lira", 0.501, 0.01, 0.0098, 0.002, True),
    power=PowerCheck("twin", "lira", 0.6, True, True),
    profile=PROFILE,
    levels=(0.01, 0.001),
    num_pipelines=8,
    accuracy=0.9,
    member_accuracy=0.95,
    smallest_rates={ORDINARY: 0.005, "twin": 0.005, "rare": 0.0625},
    curves=(Curve("twin", "lira", (0.01,), (0.4,), (0.2,), (0.8,)),),
)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ([("a", 0.1, 0.9), ("b", 0.2, 0.6)], 1),
        # An attack without a rate is below one that finds nothing.
        ([("a", None, 0.9), ("b", 0.0, 0.5)], 1),
        ([("a", None, 0.6), ("b", None, 0.7)], 1),
        # Of equal rates the larger area counts, of equal areas the first attack.
        ([("a", 0.2, 0.7), ("b", 0.2, 0.6)], 0),
        ([("a", 0.2, 0.6), ("b", 0.2, 0.6)], 0),
    ],
)
def test_the_strongest_attack_has_the_highest_rate(given, place):
    few = [
        found(ORDINARY, rate, attack=name, auc=auc)._replace(intervals=(None, None))
        for name, rate, auc in given
    ]
    assert strongest(few) is few[place]


@pytest.mark.parametrize(
    ("rates", "kind"),
    [
        ({ORDINARY: 0.9, "twin": 0.1, "rare": 0.2}, "rare"),
        # Ordinary rows count only where no planted kind can be judged.
        ({ORDINARY: 0.9, "twin": None}, ORDINARY),
        ({ORDINARY: 0.9, "twin": 0.0}, "twin"),
        ({ORDINARY: None, "twin": None}, ORDINARY),
        ({ORDINARY: 0.3}, ORDINARY),
    ],
)
def test_the_worst_kind_is_a_planted_one_where_one_can_be_judged(rates, kind):
    assert worst_of([found(*pair) for pair in rates.items()]).kind == kind


def test_kinds_are_judged_one_by_one():
    assert LEAKAGE.kinds == (ORDINARY, "twin", "rare")
    assert LEAKAGE.worst.kind == "twin"
    assert LEAKAGE.unjudged == ("rare",)
    assert LEAKAGE.conclusive


BEGIN = (
    "At 1 % false alarms, 40.0 of 100 twin rows and 2.0 of 100 ordinary rows of the "
    "training data are recognised"
)
FEW = " Too few rows to say of: rare (from 6.2 %)."


@pytest.mark.parametrize(
    ("changes", "sentence", "conclusive"),
    [
        ({}, f"{BEGIN}; a better attack may find more.{FEW}", True),
        (
            {"null": LEAKAGE.null._replace(passed=False)},
            f"{BEGIN}, but memberships drawn anew are not at chance: no result.{FEW}",
            False,
        ),
        (
            {"power": LEAKAGE.power._replace(passed=False, rate=0.4)},
            f"{BEGIN}, but the attack is too weak to conclude: in the reference it "
            f"finds 40.0 of 100 twin rows, no more.{FEW}",
            False,
        ),
        (
            {"power": PowerCheck("rare", "lira", None, False, False)},
            f"{BEGIN}, but the attack is too weak to conclude: in the model itself it "
            f"finds – of 100 rare rows, no more.{FEW}",
            False,
        ),
        (
            {"found": LEAKAGE.found[2:]},
            f"At 1 % false alarms, nothing can be said.{FEW}",
            False,
        ),
        (
            {"found": LEAKAGE.found[:1]},
            "At 1 % false alarms, 2.0 of 100 ordinary rows of the training data are "
            "recognised; a better attack may find more.",
            True,
        ),
        # Without ordinary rows nothing is said of them.
        (
            {"found": LEAKAGE.found[1:2]},
            "At 1 % false alarms, 40.0 of 100 twin rows of the training data are "
            "recognised; a better attack may find more.",
            True,
        ),
        (
            {"levels": (0.001,), "found": LEAKAGE.found[1:2]},
            "At 0.1 % false alarms, 40.0 of 100 twin rows of the training data are "
            "recognised; a better attack may find more.",
            True,
        ),
    ],
)
def test_the_sentence_says_no_more_than_the_checks_allow(changes, sentence, conclusive):
    leakage = LEAKAGE._replace(**changes)
    assert leakage.sentence == sentence
    assert leakage.conclusive == conclusive


def test_both_checks_failed_are_no_result():
    failed = LEAKAGE._replace(
        null=LEAKAGE.null._replace(passed=False),
        power=LEAKAGE.power._replace(passed=False),
    )
    assert "no result" in failed.sentence
    assert "too weak" not in failed.sentence


def test_rows_are_listed_by_their_rate_and_then_their_gap():
    assert [row["row"] for row in LEAKAGE.worst_rows()] == [8, 5, 3, 2]
    (first, second) = LEAKAGE.worst_rows(2)
    assert first == {"row": 8, "kind": ORDINARY, "label": 0, "gap": 0.1, "rate": 1.0}
    assert second["kind"] == "twin"
    assert LEAKAGE.worst_rows(0) == []
    assert json.loads(json.dumps(LEAKAGE.worst_rows())) == LEAKAGE.worst_rows()


def test_the_table_has_a_line_for_each_kind_and_attack():
    lines = LEAKAGE.table().splitlines()
    assert lines == [
        "rows      attack               AUC    TPR at 1 %         TPR at 0.1 %",
        "ordinary  lira                 0.600  2.0 [1.0, 4.0]     –",
        "ordinary  calibrated (1.04 %)         3.0 [1.0, 5.0]",
        "twin      lira                 0.600  40.0 [20.0, 80.0]  –",
        "rare      lira                 0.900  –                  –",
        "8 pipelines; accuracy without the row 90.0, with it 95.0",
        "null (lira): AUC 0.501, 1.0 found, passed",
        "power (lira, twin, reference): 60.0 found, passed",
        LEAKAGE.sentence,
    ]


def test_the_table_shouts_where_a_check_failed():
    power = PowerCheck("twin", "rmia", None, False, False)
    null = NullCheck("lira", 0.6, 0.01, None, None, False)
    lines = LEAKAGE._replace(power=power, null=null).table().splitlines()
    assert lines[-3:-1] == [
        "null (lira): AUC 0.600, – found, FAILED",
        "power (rmia, twin, model itself): – found, FAILED",
    ]


def test_the_record_is_json_and_holds_no_single_row():
    record = LEAKAGE.record()
    read = json.loads(json.dumps(record))
    assert read["found"][1]["rates"] == [0.4, None]
    assert read["curves"][0]["high"] == [0.8]
    assert read["conclusive"] is True
    assert read["sentence"] == LEAKAGE.sentence
    assert "profile" not in read
    assert [Found(**one).kind for one in read["found"]] == [*LEAKAGE.kinds]
