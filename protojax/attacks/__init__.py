"""Attacks on the texts, on the teacher's outputs and on the nodes' updates."""

from protojax.attacks.features import FEATURE_ATTACKS
from protojax.attacks.logits import LOGIT_ATTACKS
from protojax.attacks.outputs import OUTPUT_ATTACKS, PoisonedTexts, poison_texts
from protojax.attacks.poisoning import (
    Poisoned,
    measured_rows,
    poison,
    triggered,
    with_trigger,
)
from protojax.attacks.prototypes import PROTOTYPE_ATTACKS
from protojax.attacks.search import greedy_words
from protojax.attacks.text import DECOYS, TRIGGERS, Trigger, sentence
from protojax.attacks.updates import UPDATE_ATTACKS

__all__ = [
    "DECOYS",
    "FEATURE_ATTACKS",
    "LOGIT_ATTACKS",
    "OUTPUT_ATTACKS",
    "PROTOTYPE_ATTACKS",
    "TRIGGERS",
    "UPDATE_ATTACKS",
    "Poisoned",
    "PoisonedTexts",
    "Trigger",
    "greedy_words",
    "measured_rows",
    "poison",
    "poison_texts",
    "sentence",
    "triggered",
    "with_trigger",
]
