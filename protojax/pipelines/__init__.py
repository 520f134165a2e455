"""Steps from texts and models to results, from which studies and tools are composed."""

from protojax.pipelines.fine_tuning import FineTuning, fine_tune
from protojax.pipelines.purification import purify
from protojax.pipelines.warm_up import parted, warm_up

__all__ = ["FineTuning", "fine_tune", "parted", "purify", "warm_up"]
