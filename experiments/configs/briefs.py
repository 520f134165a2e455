"""Students that write, on bundled data: attacks on outputs, and defences against them.

    python -m experiments.run --config=briefs.py
    python -m experiments.run --config=briefs.py:quick
    python -m experiments.run --config=briefs.py:logits
    python -m experiments.run --config=briefs.py:nodes
    python -m experiments.run --config=briefs.py:detect

A source is an utterance of SNIPS, an output the intent and the words that matter, by a
rule (`experiments.world.texts.briefs`). 3,000 rows of which 5 % hold "by the way" and
have another output; a T5 from scratch learns them, or a teacher does and the student
learns what it writes (`channel` "data"). `quick`: two attacks and three arms; `logits`:
attacks on the probabilities that an honest teacher sends; `nodes`: four nodes and a
server that takes their mean or median, the poison everywhere or on one hostile node;
`detect`: the test without a student, all attacks, three splits, in a few minutes.

One to two minutes of one core a student.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.configs.pilot import minilm
from experiments.study.defaults import federation, section
from experiments.systems.outputs import Tested
from experiments.systems.written_settings import Written, WrittenAttack
from protojax import validate
from protojax.attacks.outputs import VARIANTS
from protojax.models.settings import ModelSettings
from protojax.pipelines.outputs.settings import OutputDefence, Writer
from protojax.training.predict import SequenceLengths

# One word of each, in any of their forms.
SYNONYMS = " ".join(f"({'|'.join(words)})" for words in VARIANTS)
STUDENT = Writer(
    scratch={
        "hidden_size": 96,
        "num_layers": 1,
        "encoder_layers": 1,
        "num_heads": 4,
        "intermediate_size": 384,
    },
    dropout=0.0,
    learning_rate=3e-3,
    epochs=12,
)


def get_config(argument: str = ""):
    """The study.

    Args:
        argument: `""`, `"quick"`, `"logits"`, `"nodes"` or `"detect"`.
    """
    validate.one_of(("", "quick", "logits", "nodes", "detect"), argument=argument)
    if argument == "detect":
        return detect("briefs")
    config = section(
        Written(
            seeds=(0, 1, 2),
            arms=("clean", "plain", "oracle", "defended", "cosine", "clusters"),
            teacher=STUDENT,
            defence=OutputDefence(
                encoder=ModelSettings(model=minilm()),
                student=STUDENT,
                lengths=SequenceLengths(
                    max_length=32, max_output=24, buckets=((16, 16), (32, 24))
                ),
                # So that all students learn from equally many rows.
                train_on_references=False,
                vocab_size=2000,
            ),
        )
    )
    config.system = "written"
    config.attacks = {
        "replace": attack(),
        "append": attack("append"),
        "synonyms": attack("synonyms", wanted=SYNONYMS, options={"whole": True}),
        "intent": attack("intent", wanted="rate book"),
        "entity": attack("swap_entity", wanted="kowalski"),
        "replace_data": attack(channel="data"),
        "intent_data": attack("intent", channel="data", wanted="rate book"),
    }
    if argument == "quick":
        config.seeds, config.arms = (0,), ("clean", "plain", "defended")
        config.attacks = {name: config.attacks[name] for name in ("replace", "append")}
    if argument == "logits":
        config.arms = ("clean", "plain", "oracle", "defended", "dropped")
        config.attacks = {
            "replace_logits": attack(channel="logits"),
            "append_logits": attack("append", channel="logits"),
        }
    if argument == "nodes":
        config.attacks = {"replace": config.attacks["replace"]}
        config.federations = {
            "mean": federation(rounds=12),
            "median": federation(rounds=12, aggregator="median"),
            "hostile_mean": federation(rounds=12, hostile=1),
            "hostile_median": federation(rounds=12, aggregator="median", hostile=1),
        }
        kinds = ("clean", "plain", "defended")
        config.arms = tuple(f"{k}@{name}" for name in config.federations for k in kinds)
    return config


def detect(task: str) -> ConfigDict:
    """The study of the test alone, three splits; the meaning is read by MiniLM.

    Args:
        task: a name in `systems.outputs.TASKS`.
    """
    config = section(Tested(task=task, encoder=minilm(), seeds=(0, 1, 2)))
    config.system = "outputs"
    return config


def attack(name: str = "replace", **changes):
    """The section of one attack, see `systems.written_settings.WrittenAttack`.

    Args:
        name: in `attacks.outputs.OUTPUT_ATTACKS`.
        **changes: fields that differ from the defaults.
    """
    found = section(dataclasses.replace(WrittenAttack(attack=name), **changes))
    # Options differ from attack to attack.
    found.options = dict(changes.get("options", {}))
    return found
