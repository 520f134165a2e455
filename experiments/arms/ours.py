"""The arms of the defence: a test of the rows, then a student of the other rows."""

import numpy as np

from experiments.arms.base import Recipe, distillation
from experiments.runtime import logger
from experiments.world import trusted_model
from experiments.world.evidence import World
from protojax import data
from protojax.detection import sample_test
from protojax.detection.evidence import Evidence, Verdict
from protojax.detection.quarantine import training_rows, with_references
from protojax.pipelines import trusted_folds
from protojax.pipelines.rewriting import rewritten
from protojax.pipelines.students import has_text, without_untrusted


def defended(world: World) -> Recipe:
    """The test of claims against what is expected, and rows without the triggers found.

    The test, the removal of words and the targets are those of `protojax defend`.
    """
    folds, around = world.folds(), trusted_model.around(world.context, world.scenario)
    evidence, findings = trusted_folds.tested(
        world.evidence(), folds, world.config.detection, around
    )
    names = [suspect.name for suspect in findings.suspects if suspect.strong]
    said = ", ".join(map(repr, names)) or "none"
    rejected = int(findings.verdict.rejected.sum())
    logger.info(
        "%s: %d rows rejected, suspected triggers: %s.",
        world.scenario.folder,
        rejected,
        said,
    )
    learned, verdict = rewritten(
        evidence,
        findings,
        ask=world.ask_again,
        read=lambda examples: folds.read(examples, around),
    )
    recipe = _quarantined(world, learned, verdict)
    # A row of trigger words alone has no text left to learn from.
    return recipe.take(np.flatnonzero(has_text(recipe.examples)))


def by_sample_test(world: World) -> Recipe:
    """Quarantine by a per-sample conformal test at the same rate."""
    evidence = trusted_folds.with_readings(world.evidence(), world.folds())
    rate = world.config.detection.false_rejection
    return _quarantined(world, evidence, sample_test(evidence, false_rejection=rate))


def _quarantined(world: World, evidence: Evidence, verdict: Verdict) -> Recipe:
    """The recipe in which a verdict's rejected rows are quarantined.

    Prototypes are those of the teacher's hidden states on all references as they
    arrived. Where references are suspected, they are fitted without those that hold a
    trigger, as in `protojax defend`; not over nodes, which share them before any node
    has tested a row.

    Args:
        world: the interface to the scenario.
        evidence: the rows and references as the student may see them.
        verdict: which rows to quarantine.
    """
    config, prototypes = world.config, world.prototypes
    # The teacher's class bias is measured on references without a trigger.
    trusted = without_untrusted(evidence, verdict)
    if config.detection.suspect_references and not world.scenario.federation:
        prototypes = world.prototypes_on(trusted)
    rows = training_rows(trusted, verdict, prototypes, action=config.quarantine.action)
    if config.quarantine.train_on_references:
        own = world.own_references
        # The student must not learn a trigger from references that hold it.
        if verdict.untrusted is not None:
            own = own[~verdict.untrusted[own]]
        rows = with_references(
            rows,
            data.take(evidence.references, own),
            evidence.teacher_on_references.take(own),
        )
    return Recipe(
        rows.examples,
        rows.columns,
        distillation(config, config.margin.assignment),
        prototypes=prototypes,
        verdict=verdict,
    )
