"""The arms of a study by their names; a newcomer adds a function and a line here."""

from experiments.arms import baselines, ours
from experiments.arms.base import Arm, clean, parse
from experiments.settings import Settings
from experiments.world import scenario


def _over_references(config: Settings, rows: int, references: int) -> int:
    """The rows of training on references alone."""
    del rows
    return references * config.anchor.epochs


def _over_tuning(config: Settings, rows: int, references: int) -> int:
    """The rows of fine-tuning on references."""
    del rows
    return references * config.fine_tuning.epochs


def _over_private(config: Settings, rows: int, references: int) -> int:
    """The expected rows of private training."""
    del references
    return rows * config.dp.epochs


_ANCHORED = {"anchored": True, "constrained": True}
_AUDITS = {**_ANCHORED, "in_federations": False, "audits": True}
_WARY = {"groups": ("tokens",)}
_TUNED = {
    "starts_from_first": True,
    "in_federations": False,
    "passes": _over_tuning,
}
ARMS: dict[str, Arm] = {
    "clean": Arm(baselines.plain, clean, scores=True),
    "plain": Arm(baselines.plain, scores=True),
    "nearest": Arm(baselines.nearest, constrained=True),
    "adversarial": Arm(baselines.adversarial),
    # Nodes step together through full batches; the accounting needs Poisson samples.
    "dp_sgd": Arm(
        baselines.dp_sgd,
        private=True,
        in_federations=False,
        passes=_over_private,
        packages=("jax_privacy", "dp_accounting"),
    ),
    "anchor": Arm(ours.anchor, **_ANCHORED),
    "audited": Arm(ours.audited, needs=("anchor",), recommended=True, **_AUDITS),
    "unattacked": Arm(ours.anchor, clean, **_ANCHORED),
    "unattacked_audited": Arm(
        ours.unattacked_audited, clean, needs=("unattacked",), **_AUDITS
    ),
    "wary": Arm(ours.wary, **_ANCHORED, **_WARY),
    "wary_audited": Arm(ours.wary_audited, needs=("wary",), **_AUDITS, **_WARY),
    "gate": Arm(ours.gate, **_ANCHORED),
    "plain_references": Arm(baselines.plain_references),
    "fine_tuned": Arm(baselines.fine_tuned, needs=("plain",), **_TUNED),
    "nad": Arm(baselines.nad, needs=("plain", "fine_tuned"), **_TUNED),
    "cube": Arm(baselines.without_rejected("cube", "components", "min_cluster_rows")),
    "abl": Arm(baselines.without_rejected("abl", "isolated_share")),
    "onion": Arm(baselines.onion_arm, anchored=True, scores_words=True),
    "references": Arm(
        baselines.references,
        scenario.reference_cell,
        taught=False,
        scores=True,
        passes=_over_references,
    ),
    "oracle": Arm(baselines.oracle),
}


def is_recommended(arm: str) -> bool:
    """Whether an arm is the defence to use, whatever its variant.

    >>> is_recommended("audited"), is_recommended("anchor"), is_recommended("former")
    (True, False, False)
    """
    # A table may be made of a study whose arms have other names by now.
    known = ARMS.get(parse(arm).kind)
    return known is not None and known.recommended
