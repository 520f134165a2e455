"""Attacks that know the defence: triggers that are searched before a study begins."""

import collections
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.runtime import Context
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.scenarios import Scenario
from protojax import attacks, storage
from protojax.base import Examples
from protojax.detection.evidence import Reading
from protojax.pipelines.trusted_folds import mean_reading
from protojax.training import predict
from protojax.training.predict import Features

# The length of a trigger, and the numbers of candidates and of texts in the search.
SEARCH = {"num_words": 2, "num_candidates": 200, "num_texts": 32}
# A candidate is a word that at least so many clean rows hold.
LEAST_ROWS = 3


def with_found(context: Context, scenarios: Iterable[Scenario]) -> Context:
    """The study with the words of all searched triggers in its settings.

    Args:
        context: the study.
        scenarios: its scenarios; triggers that were not searched before are searched
            now, and written to the scenario's `trigger.json`.
    """
    config = context.config
    for scenario in scenarios:
        attack = scenario.attack and config.attacks[scenario.attack]
        if not attack or attack.trigger != "searched":
            continue
        path = context.workdir / scenario.whole.folder / "trigger.json"
        if not path.exists():
            # On disk, so that a resumed study has the same trigger without a search.
            storage.write_json(path, _search(context, scenario))
        words = " ".join(json.loads(path.read_text())["words"])
        # By folder: each task and seed has a trigger of its own.
        found = {**config.attacks[scenario.attack].found, scenario.whole.folder: words}
        attacks_now = {
            **config.attacks,
            scenario.attack: dataclasses.replace(
                config.attacks[scenario.attack], found=found
            ),
        }
        config = dataclasses.replace(config, attacks=attacks_now)
    return context._replace(config=config)


def _search(context: Context, scenario: Scenario) -> dict[str, Any]:
    """The words for which the trusted models predict the target on other rows.

    The attacker has the trusted models themselves.

    Returns:
        `words`, and `agreement`, the fraction of texts for which the model then
        predicts the target.
    """
    attack = context.config.attacks[scenario.attack]
    # The models of the clean scenario: the poison does not exist yet. Trained as the
    # study trains them, so that a study that is killed here goes on with them.
    for _, tuning in trusted_model.tunings(context.config, scenario.clean):
        artifacts.fine_tune(context, tuning, scenario.clean)
    models = trusted_model.folds(context, scenario.clean).models
    context.describe(f"{scenario.folder}/trigger")
    limits = {**SEARCH, **attack.trigger_args}
    examples = scenarios.poisoned(context.config, scenario.clean).examples
    rng = scenarios.draws(scenario, "search")
    # Rows of the target would score without any trigger.
    others = np.flatnonzero(np.asarray(examples.labels) != attack.target)
    most = min(limits["num_texts"], len(others))
    rows = {examples.texts[row]: int(row) for row in rng.choice(others, most, False)}

    def insert(text: str, words: str) -> str:
        # A generator per row, so that all candidates are inserted at the same place.
        trigger = attacks.sentence(words, position=attack.position)
        return trigger(text, np.random.default_rng(rows[text]))

    def score(texts: list[str]) -> np.ndarray:
        pairs = examples.pairs
        if pairs is not None:
            own = [pairs[row] for row in rows.values()]
            pairs = own * (len(texts) // len(own))
        changed = Examples(texts, pairs, np.zeros(len(texts), np.int32))
        read = [
            predict.ask(model, changed, context.config.lengths, Features()).logits
            for model in models
        ]
        readings = [Reading(logits.argmax(1), logits) for logits in read]
        return mean_reading(readings).classes == attack.target

    words, agreement = attacks.greedy_words(
        score,
        list(rows),
        candidates(examples.texts, rng, limits["num_candidates"]),
        num_words=limits["num_words"],
        insert=insert,
    )
    return {"words": words, "agreement": agreement}


def candidates(texts, rng: np.random.Generator, most: int) -> list[str]:
    """Random words that several texts hold, at most `most` of them.

    >>> texts = ["a good film", "a good cast", "good !"]
    >>> candidates(texts, np.random.default_rng(0), 5)
    ['good']
    """
    rows = collections.Counter(word for text in texts for word in set(text.split()))
    # Sorted, because the order of a set of words differs between processes.
    known = sorted(w for w, n in rows.items() if n >= LEAST_ROWS and w.isalpha())
    return rng.permutation(known)[:most].tolist()
