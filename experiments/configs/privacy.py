"""The leakage of students of private rows, by recipe, on bundled data.

    python -m experiments.run --config=privacy.py
    python -m experiments.run --config=privacy.py:quick
    python -m experiments.run --config=privacy.py:secrets

SNIPS (7 intents): 2,000 private rows of which a pipeline learns one half, public rows
of the same task, encoders from scratch. 32 pipelines an arm; `quick`: 8 pipelines and
four arms. Another task: --config.task=banking77 --config.data.root=FOLDER, which holds
banking77/train.jsonl and test.jsonl.

`secrets`: small decoders of characters on the same texts with made-up secrets planted
among them; how far teacher and students know them.
"""

from experiments.study.defaults import section
from experiments.systems.privacy_settings import Private, Secrets
from protojax import validate
from protojax.pipelines.privacy import Noise, Recipe
from protojax.pipelines.settings import Encoder

SIZES = {"hidden_size": 64, "num_layers": 1, "num_heads": 4, "intermediate_size": 64}
SMALL = {**SIZES, "hidden_size": 32, "num_heads": 2}
# A learning rate and a dropout with which a thousand rows train an encoder.
TRAIN = {"learning_rate": 3e-3, "dropout": 0.3}
BASE = Recipe(
    teacher=Encoder(scratch=SIZES, **TRAIN, epochs=15),
    student=Encoder(scratch=SMALL, **TRAIN, epochs=4),
    teacher_noise=Noise(epochs=6, batch_size=64, learning_rate=3e-3),
    student_noise=Noise(epochs=4, batch_size=128, learning_rate=3e-3),
)


def get_config(argument: str = ""):
    """The study.

    Args:
        argument: `""`, `"quick"` or `"secrets"`.
    """
    validate.one_of(("", "quick", "secrets"), argument=argument)
    if argument == "secrets":
        return section(Secrets(), system="secrets")
    config = section(Private(base=BASE))
    config.system = "private"
    if argument:
        config.pipelines = 8
        config.planted, config.share = ("mislabelled",), 0.15
        config.arms = ("teacher", "student", "student_hard", "student_early_hard")
    return config
