"""Attacks that know the defence: a trigger that is searched before the study begins."""

import collections

import numpy as np

from experiments.runtime import Context
from experiments.world import scenario, trusted_model
from experiments.world.scenario import Cell
from protojax import attacks, storage
from protojax.base import Examples

# How long a trigger is, and how many words are tried in how many texts.
SEARCH = {"num_words": 2, "num_candidates": 200, "num_texts": 32}
# A candidate is a word that as many clean rows hold.
LEAST_ROWS = 3


def prepare(context: Context, cell: Cell) -> None:
    """Searches the trigger of a cell whose attack asks for it, once.

    The attacker has the anchor itself, and looks for words that make it take rows of
    other classes for the target. What was found is written to the cell's
    `trigger.json`, with the share of texts that the anchor takes for the target then.
    """
    attack = context.config.attacks[cell.attack]
    path = scenario.searched_trigger(context, cell)
    if attack.trigger != "searched" or path.exists():
        return
    context.describe(f"{cell.folder}/trigger")
    limits = {**SEARCH, **attack.trigger_args}
    examples = scenario.poisoned(context, cell.clean).examples
    rng = scenario.draws(cell, "search")
    others = np.flatnonzero(np.asarray(examples.labels) != attack.target)
    most = min(limits["num_texts"], len(others))
    rows = {examples.texts[row]: int(row) for row in rng.choice(others, most, False)}

    def insert(text: str, words: str) -> str:
        # A generator of the row's own: all candidates come to stand in one place.
        trigger = attacks.sentence(words, position=attack.position)
        return trigger(text, np.random.default_rng(rows[text]))

    def score(texts: list[str]) -> np.ndarray:
        pairs = examples.pairs
        if pairs is not None:
            own = [pairs[row] for row in rows.values()]
            pairs = own * (len(texts) // len(own))
        changed = Examples(texts, pairs, np.zeros(len(texts), np.int32))
        classes = trusted_model.view(context, cell.clean, changed).classes
        return classes == attack.target

    words, agreement = attacks.greedy_words(
        score,
        list(rows),
        candidates(examples.texts, rng, limits["num_candidates"]),
        num_words=limits["num_words"],
        insert=insert,
    )
    storage.write_json(path, {"words": words, "agreement": agreement})


def candidates(texts, rng: np.random.Generator, most: int) -> list[str]:
    """Returns random words that several texts hold, at most so many.

    >>> texts = ["a good film", "a good cast", "good !"]
    >>> candidates(texts, np.random.default_rng(0), 5)
    ['good']
    """
    rows = collections.Counter(word for text in texts for word in set(text.split()))
    known = sorted(w for w, n in rows.items() if n >= LEAST_ROWS and w.isalpha())
    return rng.permutation(known)[:most].tolist()
