"""Steps from texts and models to results, from which studies and tools are composed."""

from protojax.pipelines.defence import Defended, Watch, defend
from protojax.pipelines.fine_tuning import FineTuning, fine_tune
from protojax.pipelines.privacy.privatise import privatise
from protojax.pipelines.purification import purify
from protojax.pipelines.scoring import score
from protojax.pipelines.settings import Defence
from protojax.pipelines.warm_up import warm_up

__all__ = [
    "Defence",
    "Defended",
    "FineTuning",
    "Watch",
    "defend",
    "fine_tune",
    "privatise",
    "purify",
    "score",
    "warm_up",
]
