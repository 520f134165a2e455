"""The arms of a study by their names; a new arm is a function and a line here."""

from types import MappingProxyType

from experiments.arms import baselines, ours
from experiments.arms.base import ROLES, Arm, Recipe, clean, parse
from experiments.settings import Settings
from experiments.world import scenarios
from experiments.world.evidence import World
from protojax import validate


def _over_references(config: Settings, rows: int, references: int) -> int:
    """The rows of training on references alone, over all epochs."""
    del rows
    return references * config.trusted_model.epochs


def _over_tuning(config: Settings, rows: int, references: int) -> int:
    """The rows of fine-tuning on references, over all epochs."""
    del rows
    return references * config.fine_tuning.epochs


def _over_private(config: Settings, rows: int, references: int) -> int:
    """The expected rows of private training, over all epochs."""
    del references
    return rows * config.dp.epochs


def _columns(**titles: str) -> MappingProxyType[str, str]:
    """The columns of an arm in the overview by their measures."""
    return MappingProxyType(titles)


def _forgotten(world: World) -> Recipe:
    """No recipe, but an error: the name is that of a former arm."""
    del world
    raise ValueError(f"Expected an arm one of {', '.join(ARMS)}, found a former one.")


_TESTS = {"asks_trusted_model": True, "tests": True, "constrained": True}
_TUNED = {
    "starts_from_first": True,
    "in_federations": False,
    "passes": _over_tuning,
}
ARMS: dict[str, Arm] = {
    "clean": Arm(
        baselines.plain,
        clean,
        scores=True,
        role="null",
        hypothetical=True,
        colour="#7f7f7f",
        overview=_columns(
            asr="ASR: null",
            target_recall="target: clean",
            clean_metric="accuracy: clean",
        ),
    ),
    "plain": Arm(
        baselines.plain,
        scores=True,
        role="undefended",
        colour="#d62728",
        overview=_columns(asr="plain", clean_metric="accuracy: plain"),
        published=(92.0, 0.0),
    ),
    "prototype": Arm(
        baselines.prototype, constrained=True, colour="#ff9896", published=(7.0, 2.0)
    ),
    "adversarial": Arm(baselines.adversarial, published=(38.0, 6.0)),
    # Not over nodes: these step together through full batches, while the privacy
    # accounting needs Poisson samples.
    "dp_sgd": Arm(
        baselines.dp_sgd,
        private=True,
        in_federations=False,
        passes=_over_private,
        packages=("jax_privacy", "dp_accounting"),
        published=(54.0, 12.0),
    ),
    "defended": Arm(
        ours.defended,
        role="recommended",
        colour="#1f77b4",
        overview=_columns(
            asr="defended",
            excess_asr="excess",
            trigger_effect="trigger",
            quarantine_recall="found",
            target_recall="target: defended",
            clean_metric="accuracy: defended",
        ),
        published=(),
        **_TESTS,
    ),
    "defended_clean": Arm(ours.defended, clean, hypothetical=True, **_TESTS),
    "sample_test": Arm(ours.by_sample_test, **_TESTS),
    "plain_references": Arm(baselines.plain_references),
    "fine_tuned": Arm(baselines.fine_tuned, needs=("plain",), **_TUNED),
    "nad": Arm(baselines.nad, needs=("plain", "fine_tuned"), **_TUNED),
    "cube": Arm(baselines.without_rejected("cube", "components", "min_cluster_rows")),
    "abl": Arm(baselines.without_rejected("abl", "isolated_share")),
    "onion": Arm(baselines.onion_arm, asks_trusted_model=True, scores_words=True),
    "references": Arm(
        baselines.references,
        scenarios.reference_scenario,
        taught=False,
        scores=True,
        passes=_over_references,
        colour="#9467bd",
    ),
    "oracle": Arm(baselines.oracle, hypothetical=True, colour="#aec7e8"),
}


def known(arm: str) -> Arm:
    """The `Arm` of a name, whatever its variant and federation.

    Records keep rows under the names that arms had at the time; for a name that no arm
    has any more this is an `Arm` of defaults.

    >>> [known(arm).asks_trusted_model for arm in ("defended+drop@four", "former")]
    [True, False]
    """
    # Old records name arms that are gone; their rows are shown, but cannot be run.
    return ARMS.get(parse(arm).kind, Arm(_forgotten))


def name_of(role: str) -> str:
    """The name of the arm that has a role.

    Args:
        role: in `ROLES`.

    >>> [name_of(role) for role in ROLES]
    ['clean', 'plain', 'defended']
    """
    validate.one_of(ROLES, role=role)
    (name,) = [name for name, arm in ARMS.items() if arm.role == role]
    return name


def is_recommended(arm: str) -> bool:
    """Whether an arm is the defence to use, whatever its variant.

    >>> [is_recommended(arm) for arm in ("defended", "plain", "former")]
    [True, False, False]
    """
    return known(arm).role == "recommended"
