"""What an adversary does to the texts, the teacher's outputs or the nodes' updates."""

from protojax.attacks.logits import LOGIT_ATTACKS, add_logits, replace_logits
from protojax.attacks.prototypes import PROTOTYPE_ATTACKS
from protojax.attacks.text import (
    TRIGGERS,
    Poisoned,
    poison,
    rare_words,
    sentence,
    triggered,
)
from protojax.attacks.updates import (
    UPDATE_ATTACKS,
    a_little_is_enough,
    add_noise,
    flip_sign,
    manipulate_inner_product,
    scale,
    send_nan,
)

__all__ = [
    "LOGIT_ATTACKS",
    "PROTOTYPE_ATTACKS",
    "TRIGGERS",
    "UPDATE_ATTACKS",
    "Poisoned",
    "a_little_is_enough",
    "add_logits",
    "add_noise",
    "flip_sign",
    "manipulate_inner_product",
    "poison",
    "rare_words",
    "replace_logits",
    "scale",
    "send_nan",
    "sentence",
    "triggered",
]
