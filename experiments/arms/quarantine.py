"""The group test of a scenario: the transfer rows whose claims are rejected.

It reads only the evidence of the defender, never which rows are poisoned: the transfer
set as it arrived, the teacher's outputs, the references and the trusted model.
"""

from typing import NamedTuple

import jax
import numpy as np

from experiments import runtime
from experiments.arms import token_groups
from experiments.former import consistency
from experiments.former.consistency import Claims
from experiments.runtime import Context
from experiments.world import scenarios, trusted_model
from experiments.world.evidence import gather
from experiments.world.scenarios import Scenario
from protojax import data, prototypes
from protojax.detection.conformal import (
    IsotonicFit,
    Scores,
    combine_scores,
    conformal_p_values,
    expected_disagreement,
    reject,
)
from protojax.detection.evidence import Verdict
from protojax.training.objective import Objective


class Found(NamedTuple):
    """The result of one kind of groups under one claim.

    Attributes:
        scores: of the transfer rows and of the calibrating references.
        excess: that of each token, where the trusted model reread rows without some.
    """

    scores: Scores
    excess: token_groups.Excess | None = None


@runtime.cached
def judge(
    context: Context, scenario: Scenario, objective: Objective, *, robust: bool = False
) -> Verdict:
    """The verdict of the group test on the transfer rows of a scenario.

    References that share a word or a neighbourhood with a trigger score as high as it
    does, and set the threshold below which weaker triggers hide. So the test is
    repeated without the rejected rows, until it rejects none: the first round at half
    of the stated rate, each further one at half of the rest, the last one at all of it.
    The robust test counts each group of references once instead. Verdicts are cached,
    since two arms of a scenario need them.

    Args:
        context: the study.
        scenario: the scenario.
        objective: of the briefly trained student, if its features are a space.
        robust: whether to allow for triggers that change the trusted model's
            predictions, see `token_groups`.
    """
    config = context.config.quarantine
    tests = _tests(context, scenario, objective)
    rows = len(tests[0].transfer.classes)
    if robust:
        return _judge_once(context, scenario, tests, np.arange(rows), robust=True)
    rejected, p_values = np.zeros(rows, bool), np.ones(rows)
    least = least_rate(len(tests[0].refs.classes), len(config.groups))
    for share in rate_shares(config.rounds, least / config.false_rejection):
        kept = np.flatnonzero(~rejected)
        found = _judge_once(context, scenario, tests, kept, share=share)
        # Rescaled, so that rejection is p <= false_rejection in every round.
        p_values[kept] = np.minimum(p_values[kept], found.p_values / share)
        rejected[kept] = found.rejected
        if not found.rejected.any():
            break
    return Verdict(
        rejected, p_values, *trusted_model.trusted_reading(context, scenario)
    )


def least_rate(held_out: int, kinds: int) -> float:
    """The smallest rate at which so many references can reject by so many kinds."""
    return kinds / (held_out + 1)


def rate_shares(rounds: int, least: float = 0.0) -> list[float]:
    """The share of the stated rate that each round of the test may use.

    Args:
        rounds: the largest number of rounds, >= 1.
        least: the smallest share that can reject anything; there are fewer rounds if
            one would have less.

    >>> rate_shares(1), rate_shares(3), rate_shares(3, least=0.4)
    ([1.0], [0.5, 0.25, 0.25], [0.5, 0.5])
    """
    while rounds > 1 and 0.5 ** (rounds - 1) < least:
        rounds -= 1
    halves = [0.5**count for count in range(1, rounds)]
    return [*halves, 1.0 - sum(halves)]


class Test(NamedTuple):
    """One claim in one feature space.

    Attributes:
        transfer: the claims of the transfer rows.
        refs: the claims of the calibrating references.
        expected: the rate at which the trusted model disagrees with clean rows, by the
            teacher's confidence.
        tokens: whether rows that share a token are tested here too; these groups are
            the same in every feature space.
    """

    transfer: Claims
    refs: Claims
    expected: IsotonicFit
    tokens: bool


def _tests(context: Context, scenario: Scenario, objective: Objective) -> list[Test]:
    """The tests of every claim in every feature space; the first gives the classes."""
    config = context.config.quarantine
    warm_up = objective if "student" in config.spaces else None
    evidence = gather(context, scenario, trusted=True, warm_up=warm_up)
    rows = evidence.held_out
    calibration = data.take(evidence.references, rows)
    outputs = evidence.teacher_on_references
    view = evidence.trusted_on_transfer
    spaces = {
        "teacher": (evidence.teacher, outputs),
        "student": (evidence.student, evidence.student_on_references),
    }
    found = []
    for space in config.spaces:
        features, held = (part.features[:, -1] for part in spaces[space])
        for claim in config.claims:
            rows_claim = _claims(
                claim,
                features,
                evidence.teacher.logits,
                evidence.transfer,
                view.classes,
            )
            refs_claim = _claims(
                claim,
                held[rows],
                outputs.logits[rows],
                calibration,
                evidence.trusted_on_held_out.classes,
            )
            expected = expected_disagreement(refs_claim.confidence, refs_claim.disagree)
            tokens = space == config.spaces[0]
            found.append(Test(rows_claim, refs_claim, expected, tokens))
    return found


def _judge_once(
    context: Context,
    scenario: Scenario,
    tests: list[Test],
    kept: np.ndarray,
    *,
    share: float = 1.0,
    robust: bool = False,
) -> Verdict:
    """The verdict of all kinds of groups together on some transfer rows.

    Args:
        context: the study.
        scenario: the scenario.
        tests: from `_tests`.
        kept: `[kept]`, the rows; the others are in no group.
        share: the part of the stated rate that this test may use.
        robust: see `judge`.
    """
    config = context.config.quarantine
    false_rejection, kinds = (
        share * config.false_rejection,
        ROBUST if robust else GROUPS,
    )
    # Bonferroni over the kinds of groups.
    alpha = false_rejection / len(config.groups)
    view = trusted_model.trusted_reading(context, scenario)
    claimed = tests[0].transfer.classes[kept], tests[0].refs.classes
    p_values, tested = [], None
    for groups in config.groups:
        found = []
        for test in tests:
            if groups == "tokens" and not test.tokens:
                continue
            transfer = Claims(*(column[kept] for column in test.transfer))
            found.append(
                kinds[groups](
                    context, scenario, kept, transfer, test.refs, test.expected
                )
            )
        scores = combine_scores([one.scores for one in found])
        excess = [one.excess for one in found if one.excess is not None]
        if excess:
            tested = token_groups.test(
                context, scenario, excess, scores, *claimed, alpha=alpha
            )
            p_values.append(tested.p_values)
        else:
            p_values.append(conformal_p_values(*scores, *claimed, alpha=alpha))
    verdict = reject(p_values, alpha=false_rejection)
    if tested is None:
        return Verdict(*verdict, *(part[kept] for part in view))
    hidden = tested.rejecting & verdict.rejected[:, None]
    view = token_groups.view_without(context, scenario, hidden)
    return Verdict(*verdict, *view, tested.untrusted, hidden.any(1))


def _claims(claim, features, logits, examples, trusted_classes) -> Claims:
    """The claims of rows: the teacher's argmax, or their given label.

    The confidence is the teacher's largest probability for both claims: the probability
    of a flipped label would be low, and would explain the disagreement.
    """
    classes = examples.labels if claim == "label" else logits.argmax(-1)
    return Claims(
        features,
        classes,
        np.asarray(jax.nn.softmax(logits, axis=-1)).max(-1),
        consistency.disagreement(trusted_classes, classes),
    )


def _neighbours(
    context: Context, scenario: Scenario, kept, transfer, refs, expected
) -> Found:
    """The scores of rows by their nearest neighbours of the same claim."""
    config = context.config
    return Found(
        consistency.neighbourhood_scores(
            transfer,
            refs,
            expected,
            num_neighbours=config.quarantine.num_neighbours,
            metric=config.prototypes.metric,
        )
    )


def _tokens(
    context: Context, scenario: Scenario, kept, transfer, refs, expected
) -> Found:
    """The scores of rows by the rows that share a token and the claim.

    Neighbours are close to each other, so the teacher is about equally confident of all
    of them, and the trusted model often disagrees with clean ones near the boundary.
    Rows that share a token lie anywhere, so that the teacher's confidence explains no
    disagreement; a channel could lower it at will (`attacks.logits.soften_logits`).
    """
    expected = expected.whatever_confidence
    return Found(token_groups.score(context, scenario, kept, transfer, refs, expected))


def _tokens_robustly(
    context: Context, scenario: Scenario, kept, transfer, refs, expected
) -> Found:
    """The scores of rows by the trusted model's predictions without the token."""
    expected = expected.whatever_confidence
    return Found(
        *token_groups.score_robustly(context, scenario, transfer, refs, expected)
    )


def _clusters(
    context: Context, scenario: Scenario, kept, transfer, refs, expected
) -> Found:
    """The scores of rows by k-means clusters within each claim, at several resolutions.

    Transfer rows and references are clustered together.
    """
    config = context.config
    features = np.concatenate([transfer.features, refs.features])
    classes = np.concatenate([transfer.classes, refs.classes])
    found = np.zeros((len(classes), len(config.quarantine.resolutions)), np.int32)
    for column, resolution in enumerate(config.quarantine.resolutions):
        for claim in np.unique(classes):
            members = classes == claim
            centres = prototypes.kmeans(
                scenarios.key(scenario, f"clusters{resolution}/{claim}"),
                features,
                min(resolution, int(members.sum())),
                where=members,
                metric=config.prototypes.metric,
                num_iters=config.prototypes.num_iters,
            )
            index, _ = prototypes.nearest_prototype(
                features[members], centres, metric=config.prototypes.metric
            )
            found[members, column] = np.asarray(index)
    clusters = np.split(found, [len(transfer.classes)])
    return Found(consistency.cluster_scores(transfer, refs, expected, *clusters))


GROUPS = {"neighbours": _neighbours, "tokens": _tokens, "clusters": _clusters}
ROBUST = {**GROUPS, "tokens": _tokens_robustly}
