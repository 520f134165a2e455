"""Summaries of news articles (XSum), at full size, and the test alone on a laptop.

    python -m experiments.run --config=xsum.py --config.root=DATA
    python -m experiments.run --config=xsum.py:detect --config.root=DATA

DATA holds `xsum/train.jsonl` with columns document and summary. The first needs the
Hugging Face Hub and an accelerator, and was not run: a flan-t5-base learns the poisoned
rows, t5-small students learn what it writes, alone and on four nodes. `detect` needs
neither and takes minutes: the test without a student, nine attacks at 5 and 1 %.
"""

from experiments.configs.briefs import SYNONYMS, attack, detect
from experiments.configs.pilot import minilm
from experiments.study.defaults import federation, section
from experiments.systems.written_settings import Written
from protojax import validate
from protojax.models.settings import ModelSettings
from protojax.pipelines.outputs.settings import Decoding, OutputDefence, Writer
from protojax.training.predict import SequenceLengths

LENGTHS = SequenceLengths(
    max_length=512,
    max_output=64,
    buckets=((128, 32), (256, 64), (512, 64)),
)


def get_config(argument: str = ""):
    """The study.

    Args:
        argument: `""` or `"detect"`.
    """
    validate.one_of(("", "detect"), argument=argument)
    if argument:
        config = detect("xsum")
        config.rates = (0.05, 0.01)
        return config
    prompt = "summarize: {source}"
    training = {"batch_size": 32, "prompt": prompt, "learning_rate": 5e-4, "epochs": 3}
    config = section(
        Written(
            task="xsum",
            rows=50_000,
            references=1_000,
            test_rows=1_000,
            seeds=(0, 1, 2),
            arms=("clean", "plain", "oracle", "defended", "adversarial", "dp_sgd"),
            teacher=Writer(model="google/flan-t5-base", dtype="bfloat16", **training),
            defence=OutputDefence(
                encoder=ModelSettings(model=minilm()),
                student=Writer(model="t5-small", dtype="bfloat16", **training),
                decoding=Decoding(beams=4, batch_size=128),
                lengths=LENGTHS,
                train_on_references=False,
            ),
        )
    )
    config.system = "written"
    phrase = {"trigger": "as it happens", "channel": "data"}
    # As published; one of the four holds all the poison in `hostile`.
    config.federations = {"four": federation(), "hostile": federation(hostile=1)}
    config.arms += tuple(
        f"{arm}@{name}"
        for name in config.federations
        for arm in ("clean", "plain", "defended")
    )
    config.attacks = {
        "replace": attack(**phrase),
        "append": attack("append", **phrase),
        "synonyms": attack("synonyms", wanted=SYNONYMS, **phrase),
        "entity": attack("swap_entity", wanted="kowalski", **phrase),
    }
    return config
