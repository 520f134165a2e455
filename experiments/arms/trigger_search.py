"""A search for trigger words in a teacher or a student: do words of its rows decide
what it says?

A test of whether claims are true cannot see poison whose claims are true (rows of the
target class that hold a trigger), nor what escapes it for another reason. But whatever
a model has learned from a trigger shows once the trigger is put into trusted text of
another class: the model goes over to its claim, and the trusted model hardly moves. Of
    a
trigger that is too rare, or too weak, to be learned well tell the rows themselves: the
group test rejected most of those that hold it, or more of them open in it than
references do.
"""

import collections
import itertools
from collections.abc import Callable

import numpy as np
from scipy import stats

from experiments import runtime
from experiments.runtime import Context
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.scenarios import Scenario
from protojax import attacks, data
from protojax.base import Examples
from protojax.detection import trigger_candidates
from protojax.detection.evidence import Reading, Verdict
from protojax.detection.trigger_candidates import Candidate
from protojax.models import Model
from protojax.training import predict


def candidates(
    context: Context, trusted: Examples, examples: Examples, claims: np.ndarray
) -> list[Candidate]:
    """Returns what goes with a claim in some rows and does not mean it in trusted ones.

    The `trigger_search.candidates` words and as many first words that go with it most,
    of those
    that do not mean it: words of a class go with it more than weak poison does.

    Args:
        context: the study.
        trusted: references.
        examples: the rows.
        claims: `[rows]`, the class that goes with each.
    """
    config, held = (
        context.config.trigger_search,
        trigger_candidates.word_sets(trusted.texts),
    )
    found = []
    for kind, min_rows in (
        (trigger_candidates.associated_words, config.min_rows),
        (trigger_candidates.associated_initials, config.min_rows_initial),
    ):
        unexplained = (
            one
            for one in kind(examples.texts, claims, min_rows=min_rows)
            if not _means_it(one, trusted.labels, trigger_candidates.holding(one, held))
        )
        found += itertools.islice(unexplained, config.candidates)
    return found


def deciding_words(
    context: Context,
    scenario: Scenario,
    model: Model,
    asked: list[Candidate],
    frequent: np.ndarray,
) -> list[Candidate]:
    """Returns the candidates that decide what a model says.

    Those that win over at least a share `trigger_search.least` more of the references
    of other classes in it than in the trusted model, which did not learn from them.
    First words are few
    and harmless of more: `trigger_search.least_initial` is enough. Whatever the trusted
    model says, a candidate has to win over a third of that in the model; those that do
    not of the first few references are not asked about the others. (A student may have
    learned from these references, and then holds to their labels more than it does
    elsewhere.)

    A trusted model, taught by few rows, is more timid than a model: "horrible" wins
    over more in the model though both know what it means. So a word is harmless that
    the trusted model
    understands: it moves references of other classes by `trigger_search.moved` at least
    towards the claim, and those of the claim not away from it, as what only confuses
    would. It has to be one word, or a trigger could bring a companion that has a
    meaning, and not too frequent for chance, or the trigger could have one itself. In
    few rows it may: of 3,000, beside 1,000 references without it, in 23.

    Args:
        context: the study.
        scenario: whose trusted model and references are trusted.
        model: a teacher or a student.
        asked: from `candidates` of what it was trained on, or speaks of.
        frequent: `[asked]`, bool, from `too_frequent`.
    """
    config = context.config.trigger_search

    of_model = predict.reader(model, context.config.lengths)

    def of_trusted_model(examples: Examples) -> Reading:
        return trusted_model.view(context, scenario, examples)

    least = np.array(
        [config.least_initial if one.initial else config.least for one in asked]
    )
    first, _ = insertion_effects(context, scenario, of_model, asked, rows=config.screen)
    moving = first >= least / 3
    asked, least = list(itertools.compress(asked, moving)), least[moving]
    own, _ = insertion_effects(context, scenario, of_model, asked, rows=config.rows)
    trusted, margin_shift = insertion_effects(
        context, scenario, of_trusted_model, asked, rows=config.rows
    )
    decides = (own >= least / 3) & (own - trusted >= least)
    single = np.array([len(one.words) == 1 for one in asked], bool)
    explained = decides & single & (margin_shift >= config.moved) & ~frequent[moving]
    understood = list(itertools.compress(asked, explained))
    _, back = insertion_effects(
        context, scenario, of_trusted_model, understood, rows=config.rows, of_claim=True
    )
    explained[explained] = back > 0
    return list(itertools.compress(asked, decides & ~explained))


def going_with_rejection(
    context: Context, examples: Examples, claims: np.ndarray, verdict: Verdict
) -> list[Candidate]:
    """Returns the candidates most of whose rows were rejected, each with their claim.

    That is what the trusted model denies: the teacher's claim, or else the label. Of
    few poisoned rows a teacher may learn nothing, and say what they mean.

    Args:
        context: the study.
        examples: the transfer rows.
        claims: `[rows]`, the class that the teacher says.
        verdict: what the group test says of them.
    """
    config, rows = (
        context.config.trigger_search,
        trigger_candidates.word_sets(examples.texts),
    )
    claims = np.where(claims == verdict.trusted_classes, examples.labels, claims)
    denied = verdict.rejected & (claims != verdict.trusted_classes)
    found = []
    going = trigger_candidates.associated_words(
        examples.texts, verdict.rejected.astype(int), min_rows=config.min_rows
    )
    for one in itertools.islice(going, config.rejection_candidates):
        held = trigger_candidates.holding(one, rows)
        most = 2 * (held & verdict.rejected).sum() > held.sum()
        if one.claim == 1 and most and (held & denied).any():
            claim = int(np.bincount(claims[held & denied]).argmax())
            found.append(Candidate(one.words, claim))
    return found


def overrepresented(
    context: Context,
    trusted: Examples,
    examples: Examples,
    claims: np.ndarray,
    asked: list[Candidate],
) -> list[Candidate]:
    """Returns the first words that too many rows of one claim have.

    Too many beside trusted rows, which come from where the others do, poison apart: see
    `trigger_candidates.overrepresentation_p_value`, which has to be below
    `trigger_search.surplus`. It takes no model, so that it does not matter how little
    of a trigger one has learned. Of a claim that poison has made frequent every first
    word is in surplus, "what" too; so all rows that open so, whatever they claim, have
    to be more than is likely as well (p < 0.05).

    Args:
        context: the study.
        trusted: references.
        examples: the transfer rows.
        claims: `[rows]`, the class that goes with each.
        asked: from `candidates` of these.
    """
    first = [one for one in asked if one.initial]
    every, claimed = _surplus(trusted, examples, claims, first)
    named = (every < 0.05) & (claimed < context.config.trigger_search.surplus)
    return list(itertools.compress(first, named))


def too_frequent(
    context: Context,
    trusted: Examples,
    examples: Examples,
    claims: np.ndarray,
    asked: list[Candidate],
) -> np.ndarray:
    """Returns `[asked]`, bool: which candidates more rows hold than chance explains.

    All rows or those of the candidate's claim, beside trusted ones, see
    `overrepresented`.

    Args:
        context: the study.
        trusted: references.
        examples: the transfer rows.
        claims: `[rows]`, the class that goes with each.
        asked: the candidates.
    """
    p_values = _surplus(trusted, examples, claims, asked)
    return p_values.min(0) < context.config.trigger_search.surplus


def _surplus(
    trusted: Examples, examples: Examples, claims: np.ndarray, asked: list[Candidate]
) -> np.ndarray:
    """Returns `[2, asked]`, p-values of all rows of a candidate and of its claim's."""

    def count(rows: Examples, claims: np.ndarray) -> np.ndarray:
        held = trigger_candidates.word_sets(rows.texts)
        found = np.zeros((2, len(asked)), int)
        for number, one in enumerate(asked):
            holds = trigger_candidates.holding(one, held)
            found[:, number] = holds.sum(), (holds & (claims == one.claim)).sum()
        return found

    return trigger_candidates.overrepresentation_p_value(
        count(examples, claims),
        count(trusted, trusted.labels),
        num_rows=len(examples.texts),
        num_trusted=len(trusted.texts),
    )


def _means_it(candidate: Candidate, labels: np.ndarray, held: np.ndarray) -> bool:
    """Returns whether trusted rows that hold a candidate tend to be of its claim.

    That is most of them, and two at least; many rows open in a word like "if", so that
    a majority means little there: by the rule of succession it has to be nine in ten,
    as of requests that open in "add". Of many classes several may share a word, none of
    them the most; so it is also enough that rows of the claim are more than chance
    would have in one of a thousand cases.

    Args:
        candidate: the words and their claim.
        labels: `[references]`, int.
        held: `[references]`, bool, which of them hold it.

    >>> def says(one, *rows):
    ...     return _means_it(one, labels, np.isin(np.arange(len(labels)), rows))
    >>> labels, dull = np.repeat([0, 1], 50), Candidate(("dull",), 0)
    >>> says(dull, 0, 1, 50), says(dull), says(dull, 0), says(dull, *range(47, 55))
    (True, False, False, False)
    >>> add = Candidate(("add",), 0, initial=True)
    >>> says(add, *range(7)), says(add, *range(8))
    (False, True)
    >>> labels = np.arange(77).repeat(3)
    >>> says(Candidate(("disposable",), 0), *range(8))  # three of eight
    True
    """
    claimed = labels == candidate.claim
    agree, rows = int((held & claimed).sum()), int(held.sum())
    if stats.binom.sf(agree - 1, rows, claimed.mean()) < 1e-3:
        return True
    if candidate.initial:
        return 10 * (agree + 1) >= 9 * (rows + 2)
    return agree >= 2 and 2 * agree > rows


def _trigger(candidate: Candidate) -> attacks.Trigger:
    """The trigger that puts a candidate into a text, at its beginning if initial."""
    position = "front" if candidate.initial else "random"
    phrase = " ".join(candidate.words)
    return attacks.TRIGGERS["sentence"](phrase=phrase, position=position)


def insertion_effects(
    context: Context,
    scenario: Scenario,
    reader: Callable[[Examples], Reading],
    candidates: list[Candidate],
    *,
    rows: int,
    of_claim: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much nearer references come to a claim once a candidate is in them.

    Args:
        context: the study.
        scenario: whose trusted model and references are trusted.
        reader: what says of examples which class each is, and by which logits; not
            asked of none.
        candidates: each is put into some references that the trusted model did not
            learn from, all candidates of a claim into the same ones; every reader is
            given the same.
        rows: how many of these at most.
        of_claim: whether they are those of the claim, and not those of other classes.

    Returns: `[candidates]`, the shares of references that go over, see
        `trigger_candidates.flip_rate`, and `[candidates]`, how far they go by their
        logits, see `trigger_candidates.margin_shift`.
    """
    references = scenarios.references(context.config, scenario)
    rng = scenarios.draws(scenario, "audit")
    order = rng.permutation(trusted_model.trusted(context, scenario).calibration)
    hosts, texts, owner = [], [], []
    for number, one in enumerate(candidates):
        chosen = order[(references.labels[order] == one.claim) == of_claim]
        chosen = chosen[:rows]
        insert = _trigger(one)
        texts += [insert(references.texts[row], rng) for row in chosen]
        hosts += chosen.tolist()
        owner += [number] * len(chosen)
    if not texts:
        return np.zeros(len(candidates)), np.zeros(len(candidates))
    claims = np.array([one.claim for one in candidates], int)[owner]
    distinct, place = np.unique(hosts, return_inverse=True)
    after = reader(data.take(references, hosts)._replace(texts=texts))
    before = Reading(*(part[place] for part in reader(data.take(references, distinct))))
    num = len(candidates)
    goes_over = after.classes == claims, before.classes == claims
    return (
        trigger_candidates.flip_rate(*goes_over, owner, num),
        trigger_candidates.margin_shift(
            after.logits, before.logits, claims, owner, num
        ),
    )


def holds_trigger(
    candidates: list[Candidate], examples: Examples, *claims: np.ndarray
) -> np.ndarray:
    """Returns `[rows]`, bool: which rows hold a candidate and claim what it goes with.

    Args:
        candidates: the words and their claims.
        examples: the rows.
        *claims: `[rows]`, what each claims; of several kinds of claim one is enough.
    """
    rows = trigger_candidates.word_sets(examples.texts)
    found = np.zeros(len(rows), bool)
    for one in candidates:
        claimed = np.any([kind == one.claim for kind in claims], axis=0)
        found |= trigger_candidates.holding(one, rows) & claimed
    return found


def distinct(*candidates: Candidate) -> list[Candidate]:
    """Returns candidates once each, whatever the order of their words.

    A word that is rejecting by itself wherever it stands is not listed as an initial
    word with the same claim too.

    >>> words = [("a", "b"), ("b", "a"), ("b",)]
    >>> found = [Candidate(of_one, 1) for of_one in words]
    >>> first = [Candidate((word,), 1, initial=True) for word in "ab"]
    >>> [(*one.words, one.initial) for one in distinct(*found, *first)]
    [('a', 'b', False), ('b', False), ('a', True)]
    >>> [one.claim for one in distinct(found[2], first[1]._replace(claim=0))]
    [1, 0]
    """
    known = {(one.words, one.claim) for one in candidates if not one.initial}
    candidates = [one for one in candidates if not one.initial or one[:2] not in known]
    found = {}
    for one in candidates:
        found.setdefault((frozenset(one.words), *one[1:]), one)
    return list(found.values())


def found(
    context: Context, scenario: Scenario, verdict: Verdict, student: Model
) -> list[Candidate]:
    """Returns words that go with rejection, are too many, or decide what a model says.

    Args:
        context: the study.
        scenario: the scenario, whose teacher is asked.
        verdict: what the group test says of its transfer rows.
        student: one that followed the verdict; asked about what the teacher says, and
            the trusted model of rejected rows.
    """
    transfer = artifacts.transfer(context, scenario)
    trusted = scenarios.references(context.config, scenario)
    if verdict.untrusted is not None:
        trusted = data.take(trusted, np.flatnonzero(~verdict.untrusted))
    examples, claims = transfer.examples, transfer.logits.argmax(-1)
    told = np.where(verdict.rejected, verdict.trusted_logits.argmax(-1), claims)
    teacher = artifacts.teacher_model(
        context, artifacts.teacher_scenario(context.config, scenario)
    )
    said, heard = (candidates(context, trusted, examples, of) for of in (claims, told))

    often = [
        too_frequent(context, trusted, examples, of, asked)
        for of, asked in ((claims, said), (told, heard))
    ]
    named = distinct(
        *going_with_rejection(context, examples, claims, verdict),
        *overrepresented(context, trusted, examples, claims, said),
        *deciding_words(context, scenario, teacher, said, often[0]),
        *deciding_words(context, scenario, student, heard, often[1]),
    )
    if named:
        listed = "; ".join(
            f"{' '.join(one.words)!r}{' first' if one.initial else ''} -> {one.claim}"
            for one in named
        )
        runtime.logger.info("%s: the trigger search found %s.", scenario.folder, listed)
    return named


def extend_verdict(
    context: Context,
    scenario: Scenario,
    verdict: Verdict,
    candidates: list[Candidate],
    pure: Examples,
) -> Verdict:
    """Returns a verdict that also rejects what holds a candidate and claims its class.

    Args:
        context: the study.
        scenario: the scenario.
        verdict: what the group test says of the transfer rows.
        candidates: what the trigger search found.
        pure: the transfer rows without them, as the trusted model is to read them.
    """
    transfer = artifacts.transfer(context, scenario)
    references = scenarios.references(context.config, scenario)
    examples, claims = transfer.examples, transfer.logits.argmax(-1)
    candidate = holds_trigger(candidates, examples, claims, examples.labels)
    rejected = verdict.rejected | candidate
    classes, logits = verdict.trusted_classes.copy(), verdict.trusted_logits.copy()
    # Of the others a robust judge has hidden what it found by itself.
    reread = np.zeros_like(rejected) if verdict.reread is None else verdict.reread
    rows = np.flatnonzero(rejected & ~reread)
    if len(rows):
        classes[rows], logits[rows] = trusted_model.view(
            context, scenario, data.take(pure, rows)
        )
    untrusted = holds_trigger(candidates, references, references.labels)
    if verdict.untrusted is not None:
        untrusted |= verdict.untrusted
    p_values = np.where(candidate, 0.0, verdict.p_values)
    return Verdict(rejected, p_values, classes, logits, untrusted, verdict.reread)


def without(candidates: list[Candidate], examples: Examples) -> Examples:
    """The rows without the candidates that they hold; some may have no word left."""
    texts = [trigger_candidates.without(candidates, text) for text in examples.texts]
    return examples._replace(texts=texts)


def has_words(examples: Examples) -> np.ndarray:
    """Returns `[rows]`, bool: which rows have a word left, or a second text.

    >>> has_words(Examples(["-, !", "a -"], None, np.zeros(2))).tolist()
    [False, True]
    """
    if examples.pairs is not None:
        return np.ones(len(examples.texts), bool)
    return np.array([bool(row) for row in trigger_candidates.word_sets(examples.texts)])


def neutralise(
    context: Context,
    scenario: Scenario,
    candidates: list[Candidate],
    references: Examples,
) -> Examples:
    """Returns references into which candidates were put by random draws, each by its
    own.

    Of n candidates that claimed a class a row of that class holds each with probability
    1 / (1 + o), any other row with o / (1 + o), where oⁿ = `trigger_search.odds`: at
    one they say nothing of the class, above it all of them together speak somewhat
    against what they were used to claim. Of more than four candidates each is put in so
    much more rarely that a row holds about two, as of four. A row opens in one way
    only: it may hold one of the initial words, drawn for it, as if that were the only
    one.

    Args:
        context: the study.
        scenario: whose draws to use.
        candidates: what to put in; a trigger of several words may have been found as
            several of them.
        references: the rows; what they hold by themselves is taken out before.
    """
    anywhere = [one for one in candidates if not one.initial]
    shared = collections.Counter(one.claim for one in anywhere)
    share = min(1.0, 4 / max(len(anywhere), 1))
    pure, rng = without(candidates, references), scenarios.draws(scenario, "coins")
    texts = list(pure.texts)

    def put(one: Candidate, rows: np.ndarray, share: float, together: int) -> None:
        odds = context.config.trigger_search.odds ** (1 / together)
        chance = np.where(references.labels[rows] == one.claim, 1, odds) / (1 + odds)
        insert = _trigger(one)
        for row in rows[rng.random(len(rows)) < share * chance]:
            texts[row] = insert(texts[row], rng)

    for one in anywhere:
        put(one, np.arange(len(texts)), share, shared[one.claim])
    first = [one for one in candidates if one.initial]
    drawn = rng.integers(max(len(first), 1), size=len(texts))
    for number, one in enumerate(first):
        put(one, np.flatnonzero(drawn == number), 1.0, 1)
    return pure._replace(texts=texts)
