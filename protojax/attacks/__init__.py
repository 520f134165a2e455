"""What an adversary does to the texts, the teacher's outputs or the nodes' updates."""

from protojax.attacks.logits import LOGIT_ATTACKS, add_logits, replace_logits
from protojax.attacks.text import (
    TRIGGERS,
    Poisoned,
    poison,
    rare_words,
    sentence,
    triggered,
)

__all__ = [
    "LOGIT_ATTACKS",
    "TRIGGERS",
    "Poisoned",
    "add_logits",
    "poison",
    "rare_words",
    "replace_logits",
    "sentence",
    "triggered",
]
