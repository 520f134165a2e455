"""The model card of a student of private rows: what was measured, and what was not."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from protojax.privacy import Leakage
from protojax.reports.card import plain

_FORM = """\
# Student of private rows

{headline}

Made by protojax with the recipe `{recipe}`: {how}.

This card and leakage.json hold no text and nothing about single rows.

| | |
|---|---|
{lines}

## Measured

{measured}

## Not measured

{limits}
"""
_LIMITS = (
    "This checkpoint itself: the recipe is measured, run on halves of the rows.",
    "Attacks on weights, on many queries of one row, or of someone who changes rows.",
    "Rows that belong together, such as those of one person, as a group.",
    "Worst cases of other kinds than wrong labels and the naturally worst rows.",
    "Whether texts can be extracted: a classifier says classes, not texts.",
    "Words: whoever has the weights sees which words a model from scratch never met.",
)


class PrivacyFacts(NamedTuple):
    """All that a card says.

    Attributes:
        recipe: its name.
        shipped: "student" or "teacher".
        epochs: of the teacher.
        private: private rows.
        public: public rows that were learned from.
        dropped: public rows left out because they hold something of private ones.
        label_names: of the classes.
        accuracy: of the shipped model on the test rows, None without any.
        pipelines: that measured; 0 for none.
        canaries: rows with a wrong label in the measurement.
        pipeline_accuracy: mean of the measured pipelines, None without test rows.
        guarantee: epsilon, delta, noise and whether nominal, or None.
        leakage: what was found, or None.
        audit: the epsilon of the measured runs and the fields of `Audited`; None where
            none is stated or nothing was measured.
        written: texts by a language model that were learned from in place of the public
            rows.
        groups: of private rows that are members together; 0 for single rows.
    """

    recipe: str
    shipped: str
    epochs: int
    private: int
    public: int
    dropped: int
    label_names: tuple[str, ...]
    accuracy: float | None
    pipelines: int
    canaries: int
    pipeline_accuracy: float | None
    guarantee: Mapping[str, Any] | None
    leakage: Leakage | None
    audit: Mapping[str, Any] | None = None
    written: int = 0
    groups: int = 0


def headline(facts: PrivacyFacts) -> str:
    """The first sentence of card and terminal.

    Args:
        facts: of the run.
    """
    if facts.leakage is None:
        return "What this model gives away of its private rows was not measured."
    return facts.leakage.sentence


def stated(facts: PrivacyFacts) -> str:
    """The stated differential privacy, in words.

    Args:
        facts: of the run.
    """
    if facts.guarantee is None:
        return "none stated"
    found = facts.guarantee
    said = f"({found['epsilon']:.3g}, {found['delta']:g}) in single private rows"
    if found["nominal"]:
        said += ", nominal only: the noise follows from a recorded seed"
    # What a factor e^epsilon of a few thousand allows is next to anything.
    return said + (", a promise of next to nothing" if found["epsilon"] > 8 else "")


def audited(audit: Mapping[str, Any] | None) -> str:
    """The audit of a stated epsilon, in words.

    Args:
        audit: the epsilon of the runs and the fields of `Audited`, or None.

    >>> found = {"epsilon": 1.0, "bound": 0.1, "kind": "outlier", "trials": 800}
    >>> print(audited({**found, "ceiling": 3.6, "control": 3.2}))
    an attack on 800 memberships of outlier rows refutes every epsilon below 0.1
    (stated of these runs: 1); without noise in the training it refutes all below 3.2
    """
    if audit is None:
        return "not audited"
    epsilon, control = audit["epsilon"], audit["control"]
    said = (
        f"an attack on {audit['trials']} memberships of {audit['kind']} rows refutes "
        f"every epsilon below {audit['bound']:.2g} (stated of these runs: "
        f"{epsilon:.3g})"
    )
    if control is None:
        return (
            f"{said}; an attack that is never wrong, all below {audit['ceiling']:.2g}"
        )
    said += f"; without noise in the training it refutes all below {control:.2g}"
    if control <= epsilon:
        said += ", so that noise left out would not be noticed: take more pipelines"
    return said


def audit_cell(audits: Sequence[Mapping[str, Any]]) -> str:
    """The epsilon that audits refute and, in brackets, without noise in the training.

    Args:
        audits: as of `audited`.

    >>> audit_cell([{"bound": 0.1, "control": 3.15, "ceiling": 3.6}])
    '0.1 (3.15)'
    """
    if not audits:
        return "–"
    # The largest: each by itself must not exceed what is stated.
    said = f"{max(one['bound'] for one in audits):.3g}"
    controls = [one["control"] for one in audits if one["control"] is not None]
    return f"{said} ({min(controls):.3g})" if controls else said


def limits(measured: bool) -> tuple[str, ...]:
    """The limits of the measurement, a sentence each.

    Args:
        measured: whether anything was.
    """
    # Without a measurement it goes without saying what it would not be of.
    return _LIMITS if measured else _LIMITS[1:]


def card_of(facts: PrivacyFacts, about: Mapping[str, Any]) -> str:
    """The text of a model card.

    Args:
        facts: of the run.
        about: further lines of its table, such as versions and models.
    """
    lines = {
        **about,
        "classes": ", ".join(facts.label_names),
        "private rows": facts.private,
        **({"groups that are members together": facts.groups} if facts.groups else {}),
        "public rows": facts.public,
        **({"texts written after these": facts.written} if facts.written else {}),
        "public rows left out": facts.dropped,
        "epochs of the teacher": facts.epochs,
        "differential privacy": stated(facts),
        **({"audit of epsilon": audited(facts.audit)} if facts.guarantee else {}),
        "accuracy on the test rows": _share(facts.accuracy),
    }
    public = "texts that a language model wrote" if facts.written else "public rows"
    how = {
        "student": f"a student that saw a teacher's answers on {public}, unless "
        "the recipe says otherwise",
        "teacher": "the model that learned the private rows is what is shipped",
    }[facts.shipped]
    table = "\n".join(f"| {name} | {plain(value)} |" for name, value in lines.items())
    return _FORM.format(
        headline=plain(headline(facts)),
        recipe=facts.recipe,
        how=how,
        lines=table,
        measured=_measured(facts),
        limits="\n".join(f"- {line}" for line in limits(facts.leakage is not None)),
    )


def _measured(facts: PrivacyFacts) -> str:
    """The section of the measurement and its checks."""
    found = facts.leakage
    if found is None:
        return "Nothing. Give --pipelines 16 or more."
    level = found.levels[0]
    rows = [
        f"| rows | attack | found at {100 * level:g} % false alarms |",
        "|---|---|--:|",
    ]
    for kind in found.kinds:
        best = found.strongest(kind)
        rows.append(f"| {kind} | {best.attack} | {_interval(best)} |")
    checks = {
        "memberships drawn anew are at chance": found.null.passed,
        "planted rows are found in a plain teacher": found.power.passed,
    }
    said = "; ".join(f"{name}: {'yes' if ok else 'NO'}" for name, ok in checks.items())
    return "\n".join(
        [
            f"Membership inference on {facts.pipelines} runs of the whole recipe, each "
            f"on another half of the private rows, {facts.canaries} of them with a "
            "wrong label; the strongest of several attacks. Mean accuracy on the test "
            f"rows: {_share(facts.pipeline_accuracy)}.",
            "",
            *rows,
            "",
            f"Checks: {said}.",
        ]
    )


def _share(value: float | None) -> str:
    """A share in percent."""
    return "not measured" if value is None else f"{value:.1%}"


def _interval(found: Any) -> str:
    """A rate with its interval, in percent."""
    rate = found.rates[0]
    if rate is None:
        return "too few rows"
    low, high = found.intervals[0]
    return f"{rate:.1%} [{low:.1%}, {high:.1%}]"
