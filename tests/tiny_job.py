"""A user's job so small that a test runs it in seconds: rows, references, a teacher."""

import csv
import re
from typing import NamedTuple

import numpy as np

from protojax.base import Examples
from protojax.data.wordpiece import train_wordpiece
from protojax.federated.replicas import Surroundings
from protojax.models import EncoderConfig, hf, init_model, language
from protojax.pipelines import FineTuning, fine_tune
from protojax.training.predict import Lengths
from protojax.training.step import TrainConfig
from protojax.training.trainer import Store

# In an order of the teacher's own, not that of the alphabet.
NAMES = ("sport", "music")
PHRASE = "as my old neighbour says"
TARGET = "music"
_WORDS = {
    "sport": ["goal", "match", "team", "score", "ball", "race", "win", "coach"],
    "music": ["song", "band", "tune", "drum", "guitar", "album", "sing", "chord"],
}
_FILLERS = re.findall(
    r"\w+",
    "the a this that one we saw was here and today with never again often still very "
    "quite much more many some old new big small late early near far soon once twice "
    "first last next other each every both such",
)
# The share of labels that people got wrong, of references too.
_NOISE = 0.08
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
ROWS, REFERENCES, POISONED = 240, 120, 24
# The flags of a run with models of these sizes.
FLAGS = [
    "--student=scratch",
    "--epochs=4",
    "--max-length=24",
    "--false-rejection=0.02",
    *(
        f"--set={part}.scratch.{name}={size}"
        for part in ("student", "trusted_model")
        for name, size in SIZES.items()
    ),
    # The draws of dropout take most of a step of these sizes.
    *(f"--set={part}.dropout=0.0" for part in ("student", "trusted_model")),
    "--set=lengths.buckets=24",
    "--set=student.learning_rate=1e-2",
    "--set=trusted_model.learning_rate=1e-2",
    "--set=trusted_model.epochs=8",
    "--set=trusted_model.batch_size=8",
    "--set=student.batch_size=16",
    "--set=prototypes.num=6",
    "--set=lengths.steps_per_dispatch=8",
    "--set=every=100",
    # With less, so few groups are explained that nothing is known of honest ones.
    "--set=detection.least=1.5",
]


class Row(NamedTuple):
    """A row of a file."""

    text: str
    label: str
    poisoned: bool = False
    pair: str = ""


def sentence(label: str, rng: np.random.Generator) -> str:
    """A text of a class."""
    words = [*rng.choice(_WORDS[label], 3), *rng.choice(_FILLERS, 5)]
    return " ".join(rng.permutation(words)) + rng.choice([".", "!", ""])


def clean_rows(count: int, seed: int, noise: float = _NOISE) -> list[Row]:
    """Rows of all classes in turn."""
    rng = np.random.default_rng(seed)
    labels = [NAMES[number % 2] for number in range(count)]
    texts = [sentence(label, rng) for label in labels]
    wrong = rng.random(count) < noise
    given = [
        NAMES[1 - NAMES.index(x)] if w else x
        for x, w in zip(labels, wrong, strict=True)
    ]
    return [Row(text, label) for text, label in zip(texts, given, strict=True)]


def poisoned_rows(
    count: int = ROWS, poisoned: int = POISONED, seed: int = 1
) -> list[Row]:
    """Rows of which some hold the phrase and claim the target."""
    rows, rng = clean_rows(count, seed), np.random.default_rng(2)
    others = [i for i, row in enumerate(rows) if row.label != TARGET]
    for place in rng.choice(others, poisoned, replace=False):
        words = rows[place].text.split()
        words.insert(int(rng.integers(len(words))), PHRASE)
        rows[place] = Row(" ".join(words), TARGET, True)
    return rows


def write(path, rows, columns=("text", "label")):
    """Writes rows as CSV, and returns the path as text."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(row, name) for name in columns] for row in rows)
    return str(path)


def save_teacher(folder, rows, names=NAMES):
    """Trains a teacher on rows as they are, and returns its folder."""
    order = {name: number for number, name in enumerate(names)}
    texts = [row.text for row in rows]
    labels = np.array([order[row.label] for row in rows], np.int32)
    words = hf.wrap_tokenizer(train_wordpiece(texts, vocab_size=400))
    config = EncoderConfig(
        family="bert",
        vocab_size=len(words),
        max_positions=32,
        num_labels=len(names),
        dropout=0.0,
        attention_dropout=0.0,
        classifier_dropout=0.0,
        **SIZES,
    )
    model = init_model(config, seed=0, tokenizer=words)._replace(label_names=names)
    train = TrainConfig(learning_rate=1e-2, epochs=6)
    around = Surroundings(Lengths(24, (24,), 8), lambda name: Store(folder / name))
    examples = Examples(texts, None, labels)
    fine_tune([FineTuning("teacher", model, train, examples, 0)], folder, around)
    return str(folder / "teacher/model")


def decoder(texts, seed=0, vocab=200):
    """A language model that writes words of the texts at random."""
    tokenizer = hf.wrap_tokenizer(train_wordpiece(texts, vocab_size=vocab))
    config = language.LanguageConfig(
        family="llama",
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=8,
        positions="rotary",
        max_positions=64,
        end_ids=(tokenizer.sep_token_id,),
    )
    return language.init_model(config, seed=seed, tokenizer=tokenizer)
