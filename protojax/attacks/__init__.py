"""What an adversary does to the texts, the teacher's outputs or the nodes' updates."""

from protojax.attacks.features import FEATURE_ATTACKS
from protojax.attacks.logits import (
    LOGIT_ATTACKS,
    add_logits,
    nudge_logits,
    replace_logits,
    soften_logits,
)
from protojax.attacks.poisoning import (
    Poisoned,
    measured_rows,
    poison,
    triggered,
    with_trigger,
)
from protojax.attacks.prototypes import PROTOTYPE_ATTACKS
from protojax.attacks.search import greedy_words
from protojax.attacks.text import (
    DECOYS,
    TRIGGERS,
    Trigger,
    combination,
    part_of_combination,
    rare_words,
    sentence,
    several,
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
    "DECOYS",
    "FEATURE_ATTACKS",
    "LOGIT_ATTACKS",
    "PROTOTYPE_ATTACKS",
    "TRIGGERS",
    "UPDATE_ATTACKS",
    "Poisoned",
    "Trigger",
    "a_little_is_enough",
    "add_logits",
    "add_noise",
    "combination",
    "flip_sign",
    "greedy_words",
    "manipulate_inner_product",
    "measured_rows",
    "nudge_logits",
    "part_of_combination",
    "poison",
    "rare_words",
    "replace_logits",
    "scale",
    "send_nan",
    "sentence",
    "several",
    "soften_logits",
    "triggered",
    "with_trigger",
]
