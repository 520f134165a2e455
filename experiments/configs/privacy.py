"""The leakage of students of private rows, by recipe, on bundled data.

    python -m experiments.run --config=privacy.py
    python -m experiments.run --config=privacy.py:quick
    python -m experiments.run --config=privacy.py:pretrained
    python -m experiments.run --config=privacy.py:secrets

SNIPS (7 intents): 2,000 private rows of which a pipeline learns one half, public rows
of the same task, encoders from scratch. 32 pipelines an arm; `quick`: 8 pipelines and
four arms. Another task: --config.task=banking77 --config.data.root=FOLDER, which holds
banking77/train.jsonl and test.jsonl. `--config.early_stopping=15` chooses the epochs of
teachers that are stopped early on public rows with labels.

`pretrained`: fewer rows, one kind of planted ones, 16 pipelines, seven arms; a teacher
of six pretrained layers (MiniLM), a student of two of them. Epochs of early teachers
are chosen on public rows; with an epsilon the head alone learns.

`secrets`: small decoders of characters on the same texts with made-up secrets planted
among them; how far teacher and students know them.
"""

from experiments.configs.pilot import minilm
from experiments.study.defaults import section
from experiments.systems.privacy_settings import Private, PrivateRows, Secrets
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
        argument: `""`, `"quick"`, `"pretrained"` or `"secrets"`.
    """
    validate.one_of(("", "quick", "pretrained", "secrets"), argument=argument)
    if argument == "secrets":
        return section(Secrets(), system="secrets")
    if argument == "pretrained":
        return section(pretrained(), system="private")
    config = section(Private(base=BASE), system="private")
    if argument == "quick":
        config.pipelines = 8
        config.planted, config.share = ("mislabelled",), 0.15
        config.arms = ("teacher", "student", "student_hard", "student_early_hard")
    return config


def pretrained() -> Private:
    """The study of a pretrained encoder."""
    body = ("embeddings", *(f"layers_{layer}" for layer in range(6)), "pooler")
    return Private(
        data=PrivateRows(private=800, public=1500),
        pipelines=16,
        # So many that one of a hundred false alarms can be told, and of one kind, so
        # that most labels are right.
        planted=("mislabelled",),
        share=0.16,
        early_stopping=12,
        arms=(
            *("teacher", "early", "student", "student_hard", "student_early_hard"),
            *("dp_teacher_8", "student_of_dp_8"),
        ),
        base=Recipe(
            teacher=Encoder(model=minilm(), learning_rate=1e-4, epochs=12),
            student=Encoder(
                model=minilm(), layers=(0, 5), learning_rate=2e-4, epochs=3
            ),
            teacher_noise=Noise(
                epochs=8, batch_size=128, learning_rate=0.1, frozen=body
            ),
        ),
    )
