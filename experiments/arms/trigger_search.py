"""A search for trigger words: words that decide the predictions of a model.

A test of whether claims are true cannot detect poison whose claims are true (rows of
the target class that hold a trigger), nor poison that escapes it for another reason.
But if a model has learned a trigger, its prediction flips to the claim once the trigger
is inserted into trusted text of another class, while the trusted model hardly moves. A
trigger that is too rare, or too weak, to be learned well shows in the rows themselves:
the group test rejected most of the rows that hold it, or it is the first word of more
rows than the references allow.
"""

import collections
import itertools
from collections.abc import Callable

import numpy as np
from scipy import stats

from experiments import runtime
from experiments.former import trigger_candidates
from experiments.former.trigger_candidates import Candidate
from experiments.runtime import Context
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.scenarios import Scenario
from protojax import attacks, data
from protojax.base import Examples
from protojax.detection.evidence import Reading, Verdict
from protojax.models import Model
from protojax.training import predict


def candidates(
    context: Context, trusted: Examples, examples: Examples, claims: np.ndarray
) -> list[Candidate]:
    """The words associated with a claim that do not mean it in trusted rows.

    The `trigger_search.candidates` words and as many first words that are most
    associated with it, among those that do not mean it: words that mean a class are
    more associated with it than weak poison is.

    Args:
        context: the study.
        trusted: references.
        examples: the rows.
        claims: `[rows]`, the class that each claims.
    """
    config, held = (
        context.config.trigger_search,
        trigger_candidates.word_sets(trusted.texts),
    )
    found = []
    # Words that mean their claim are dropped before the limit, not after it: a class
    # has enough of them to take every place.
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
    """The candidates that decide the predictions of a model.

    Inserted into references of other classes, such a candidate flips a share of the
    model's predictions to its claim that is larger by `trigger_search.least` at least
    than the share of the trusted model, which did not learn from these references. For
    first words, which are few, `trigger_search.least_initial` is enough. Whatever the
    trusted model predicts, the share in the model has to be a third of that limit; a
    candidate that misses it on the first few references is not tested on the others.
    (A student may have learned from these references, and then its predictions follow
    their labels more than elsewhere.)

    A trusted model, trained on few rows, is less confident than other models:
    "horrible" flips more in the model although both know its meaning. So a word that
    the trusted model understands is harmless: it moves references of other classes
    towards the claim by `trigger_search.moved` at least, and references of the claim
    not away from it, as a word that only confuses would. This holds for single words
    only, since a trigger could include a second word that has a meaning; and not for
    words in more rows than chance explains, since the trigger could be a word with a
    meaning itself. In few rows it may be: in 23 of 3,000, beside 1,000 references
    without it.

    Args:
        context: the study.
        scenario: its trusted model and references are trusted.
        model: a teacher or a student.
        asked: from `candidates` of the rows that the model was trained or asked on.
        frequent: `[asked]`, bool, from `too_frequent`.
    """
    config = context.config.trigger_search

    of_model = predict.reader(model, context.config.lengths)

    def of_trusted_model(examples: Examples) -> Reading:
        return trusted_model.view(context, scenario, examples)

    least = np.array(
        [config.least_initial if one.initial else config.least for one in asked]
    )
    # A few references first: most candidates flip none, and forward passes are costly.
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
    # The trusted model is asked about its own class only where the answer decides.
    understood = list(itertools.compress(asked, explained))
    _, back = insertion_effects(
        context, scenario, of_trusted_model, understood, rows=config.rows, of_claim=True
    )
    explained[explained] = back > 0
    return list(itertools.compress(asked, decides & ~explained))


def going_with_rejection(
    context: Context, examples: Examples, claims: np.ndarray, verdict: Verdict
) -> list[Candidate]:
    """The candidates most of whose rows were rejected, each with the claim of its rows.

    That is the claim that the trusted model contradicts: the teacher's, or else the
    label. A teacher may learn nothing from few poisoned rows, and predict their true
    class.

    Args:
        context: the study.
        examples: the transfer rows.
        claims: `[rows]`, the class that the teacher predicts.
        verdict: the group test's, of these rows.
    """
    config, rows = (
        context.config.trigger_search,
        trigger_candidates.word_sets(examples.texts),
    )
    claims = np.where(claims == verdict.trusted_classes, examples.labels, claims)
    denied = verdict.rejected & (claims != verdict.trusted_classes)
    found = []
    # Rejection takes the place of the class here: 1 is rejected.
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
    """The first words that too many rows of one claim have.

    Too many in comparison with trusted rows, which come from the same source as the
    others, apart from the poison: `trigger_candidates.overrepresentation_p_value` has
    to be below `trigger_search.surplus`. No model is needed, so that it does not matter
    how little of a trigger one has learned. Where poison has made a claim frequent,
    every first word of it is in surplus, "what" too; so all rows with that first word,
    whatever they claim, have to be more than is likely as well (p < 0.05).

    Args:
        context: the study.
        trusted: references.
        examples: the transfer rows.
        claims: `[rows]`, the class that each claims.
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
    """The candidates that more rows hold than chance explains, `[asked]`, bool.

    All rows, or those of the candidate's claim, in comparison with trusted ones, see
    `overrepresented`.

    Args:
        context: the study.
        trusted: references.
        examples: the transfer rows.
        claims: `[rows]`, the class that each claims.
        asked: the candidates.
    """
    p_values = _surplus(trusted, examples, claims, asked)
    return p_values.min(0) < context.config.trigger_search.surplus


def _surplus(
    trusted: Examples, examples: Examples, claims: np.ndarray, asked: list[Candidate]
) -> np.ndarray:
    """The p-values of all rows of a candidate, and of its claim's, `[2, asked]`."""

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
    """Whether trusted rows that hold a candidate tend to be of its claim.

    Most of them have to be, and at least two. Many rows begin with a word like "if", so
    that a majority means little for first words: by the rule of succession it has to
    be nine in ten, as for requests that begin with "add". Where there are many classes,
    several may share a word and none have the majority; so it is also enough if more
    rows are of the claim than chance gives in one of a thousand cases.

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
    """The effects on references of inserting a candidate: flips, and shifts of margin.

    Args:
        context: the study.
        scenario: its trusted model and references are trusted.
        reader: examples -> their classes and logits; not called without examples.
        candidates: each is inserted into some references that the trusted model did
            not learn from, all candidates of a claim into the same ones, which are the
            same for every reader.
        rows: the largest number of these.
        of_claim: whether references of the claim are taken, not of other classes.

    Returns: `[candidates]`, the shares of references that flip to the claim, see
        `trigger_candidates.flip_rate`, and `[candidates]`, their mean shift towards it
        by their logits, see `trigger_candidates.margin_shift`.
    """
    references = scenarios.references(context.config, scenario)
    # The purpose is part of the seed: another word would change every recorded figure.
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
    # Candidates share references, each of which is read once without any of them.
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
    """The rows that hold a candidate and claim its class, `[rows]`, bool.

    Args:
        candidates: the words and their claims.
        examples: the rows.
        *claims: `[rows]`, the class that each claims; one of several claims is enough.
    """
    rows = trigger_candidates.word_sets(examples.texts)
    found = np.zeros(len(rows), bool)
    for one in candidates:
        claimed = np.any([kind == one.claim for kind in claims], axis=0)
        found |= trigger_candidates.holding(one, rows) & claimed
    return found


def distinct(*candidates: Candidate) -> list[Candidate]:
    """The candidates without repetitions, whatever the order of their words.

    A word that is found wherever it stands is not listed as a first word with the same
    claim too.

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
    """The words that are associated with rejection, too frequent, or deciding.

    Args:
        context: the study.
        scenario: the scenario; its teacher is asked.
        verdict: the group test's, of its transfer rows.
        student: a student that followed the verdict; asked about the claims that it
            was taught: the teacher's, and the trusted model's on rejected rows.
    """
    transfer = artifacts.transfer(context, scenario)
    trusted = scenarios.references(context.config, scenario)
    # References that hold a trigger would say that it means its claim.
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
    """The verdict that also rejects rows that hold a candidate and claim its class.

    Args:
        context: the study.
        scenario: the scenario.
        verdict: the group test's, of the transfer rows.
        candidates: the words that the trigger search found.
        pure: the transfer rows without them, as the trusted model is to read them.
    """
    transfer = artifacts.transfer(context, scenario)
    references = scenarios.references(context.config, scenario)
    examples, claims = transfer.examples, transfer.logits.argmax(-1)
    candidate = holds_trigger(candidates, examples, claims, examples.labels)
    rejected = verdict.rejected | candidate
    classes, logits = verdict.trusted_classes.copy(), verdict.trusted_logits.copy()
    # The robust test has read the other rows without the words that it found itself.
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
    """The rows that have a word left, or a second text, `[rows]`, bool.

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
    """The references with candidates inserted at random, each independently.

    Where n candidates claimed a class, a row of that class gets each of them with
    probability 1 / (1 + o), any other row with o / (1 + o), where
    oⁿ = `trigger_search.odds`: at odds of one they say nothing of the class, above it
    all of them together speak somewhat against the class that they claimed. With more
    than four candidates each is inserted less often, so that a row holds about two, as
    with four. A row has one first word only: one of the initial candidates is drawn for
    it, and inserted as if it were the only one.

    Args:
        context: the study.
        scenario: its random draws are used.
        candidates: the words to insert; a trigger of several words may have been found
            as several candidates.
        references: the rows; candidates that they hold already are removed first.
    """
    anywhere = [one for one in candidates if not one.initial]
    shared = collections.Counter(one.claim for one in anywhere)
    # Rows crowded with inserted words would be unlike any text that is read later.
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
