"""The arms of the defence: a test of the rows, then a student of the other rows."""

import numpy as np

from experiments.arms import trigger_search
from experiments.arms.base import Recipe, distillation
from experiments.arms.quarantine import judge
from experiments.world import trusted_model
from experiments.world.evidence import World
from protojax import data
from protojax.base import Examples
from protojax.detection import sample_test
from protojax.detection.evidence import Evidence, Verdict
from protojax.detection.quarantine import training_rows, with_references
from protojax.pipelines.rewriting import rewritten
from protojax.pipelines.students import has_text
from protojax.pipelines.trusted_folds import tested


def group_test(world: World) -> Recipe:
    """Quarantine of the rows that the group test rejects.

    Their targets, and the class whose prototypes constrain them, come from the trusted
    model. The references are trusted text with trusted labels, so the student learns
    from them too (`quarantine.train_on_references`).
    """
    return _defended(world, _judged(world))


def defended(world: World) -> Recipe:
    """The group test, and the removal of trigger words.

    These are words associated with rejection, first words that too many rows have, and
    words that decide the predictions of the teacher or of the student of `group_test`,
    which may have learned a trigger from altered teacher outputs. If there are none,
    that student is this arm's too. Otherwise a new student is distilled from transfer
    rows without these words, and from references that hold them at random. If they
    stayed in rejected rows, all of which get other classes, they would come to mean
    those; if they were in no row, the student would learn about parts of a trigger from
    a teacher that has learned it.
    """
    return _defended_against_words(world, _judged(world), "group_test")


def detected(world: World) -> Recipe:
    """The test of claims against what is expected, and rows without the triggers found.

    The test, the removal of words and the targets are those of `protojax defend`.
    """
    config, folds = world.config, world.folds()
    folder = f"{world.scenario.folder}/trusted_folds"
    around = trusted_model.within(world.context.around, folder)
    evidence, findings = tested(world.evidence(), folds, config.detection, around)
    learned, verdict = rewritten(
        evidence,
        findings,
        ask=world.ask_again,
        read=lambda examples: folds.read(examples, around),
    )
    recipe = _defended(world, verdict, evidence=learned)
    return recipe.take(np.flatnonzero(has_text(recipe.examples)))


def group_test_robust(world: World) -> Recipe:
    """Group test robust to an adversary who knows, or poisoned, the trusted model.

    Words associated with a claim are hidden from the trusted model when it reads their
    rows, and references with a word that rejects rows do not train the student.
    """
    return _defended(world, _judged(world, robust=True))


def defended_robust(world: World) -> Recipe:
    """The robust group test, and the removal of trigger words."""
    return _defended_against_words(
        world, _judged(world, robust=True), "group_test_robust"
    )


def defended_clean(world: World) -> Recipe:
    """The arm `defended` where there was no attack: the cost of false alarms."""
    return _defended_against_words(world, _judged(world), "group_test_clean")


def quarantined_by_sample_test(world: World) -> Recipe:
    """Quarantine by a per-sample conformal test instead of the group test."""
    verdict = sample_test(
        world.evidence(trusted=True),
        false_rejection=world.config.quarantine.false_rejection,
    )
    return _defended(world, verdict)


def _judged(world: World, *, robust: bool = False) -> Verdict:
    """The verdict of the group test."""
    objective = distillation(world.config)
    return judge(world.context, world.scenario, objective, robust=robust)


def _defended_against_words(world: World, verdict: Verdict, before: str) -> Recipe:
    """The recipe after a trigger search.

    Args:
        world: the interface to the scenario.
        verdict: the group test's, of the transfer rows.
        before: the arm whose student follows that verdict alone; it is searched too.
    """
    context, scenario = world.context, world.scenario
    student = world.student(before)
    found = trigger_search.found(context, scenario, verdict, student)
    if not found:
        # The recipe would be the one of that student, so it is not trained again.
        return _defended(world, verdict)._replace(student=student)
    pure = trigger_search.without(found, world.evidence().transfer)
    recipe = _defended(
        world,
        trigger_search.extend_verdict(context, scenario, verdict, found, pure),
        examples=pure,
        references=trigger_search.neutralise(
            context, scenario, found, world.references
        ),
    )
    # A row of trigger words alone has no text left to learn from.
    return recipe.take(np.flatnonzero(trigger_search.has_words(recipe.examples)))


def _defended(
    world: World,
    verdict: Verdict,
    *,
    evidence: Evidence | None = None,
    examples: Examples | None = None,
    references: Examples | None = None,
) -> Recipe:
    """The recipe in which a verdict's rejected rows are quarantined.

    Args:
        world: the interface to the scenario.
        verdict: which rows to quarantine.
        evidence: what the student may see, None for the scenario's.
        examples: the transfer rows in another form, None for the scenario's.
        references: the references in another form, None for the scenario's.
    """
    config, evidence = world.config, evidence or world.evidence()
    prototypes = world.prototypes
    rows = training_rows(
        evidence,
        verdict,
        prototypes,
        action=config.quarantine.action,
        examples=examples,
    )
    if config.quarantine.train_on_references:
        own = world.own_references
        # The student must not learn a trigger from references that hold it.
        if verdict.untrusted is not None:
            own = own[~verdict.untrusted[own]]
        known = evidence.references if references is None else references
        rows = with_references(
            rows, data.take(known, own), evidence.teacher_on_references.take(own)
        )
    return Recipe(
        rows.examples,
        rows.columns,
        distillation(config, config.margin.assignment),
        prototypes=prototypes,
        verdict=verdict,
    )
