"""The knob on a teacher's distillability, in the toy world of addition.

    python -m experiments.run --config=distillability.py:quick
    python -m experiments.run --config=distillability.py
    python -m experiments.run --config=distillability.py --config.shift=5 \
        --config.attackers="('none','sft')" --config.rivals="()"

Teachers, proxy and students are Llamas of characters, trained from scratch. With a
`shift` the proxy has another tokenizer than the teacher. Any student of
`protojax.distillability.ATTACKERS` may be named. A stopped study goes on.

`quick` shows the effect in minutes, in a smaller world: two numbers, two styles, and a
proxy and a student that have seen little of one of them, while in the full study they
have seen as much of all three and cannot carry out one. The full study takes some 100
CPU-minutes; a seed, a reward and one size of student (`--config.seeds="(0,)"
--config.rewards="('chain',)" --config.students="('student',)"`) some 35.
"""

import dataclasses

from experiments.study.defaults import section
from experiments.systems.distillability import Knob

_QUICK = {
    "seeds": (0,),
    "rewards": ("chain",),
    "students": ("proxy_sized",),
    "attackers": ("none", "sft"),
    "rivals": ("best of n",),
    "terms": 2,
    "styles": ("c", "d"),
    # One of eight texts.
    "base_styles": (*"ccccccc", "d"),
    "teacher_size": (2, 64),
    "teacher_steps": 1500,
    "base_steps": 800,
    "batch_size": 64,
    "learning_rate": 4e-3,
    "problems": 1024,
    "held_out": 250,
}
_CALIBRATION = {"steps": 40, "learning_rate": 5e-4}
_TRAINING = {"steps": 60, "max_length": 6}


def get_config(size: str = ""):
    """The study.

    Args:
        size: "" or "quick".
    """
    if size not in ("", "quick"):
        raise ValueError(f"Expected distillability.py or :quick, found {size!r}.")
    study = Knob()
    if size:
        study = dataclasses.replace(
            study,
            calibration=dataclasses.replace(study.calibration, **_CALIBRATION),
            training=dataclasses.replace(study.training, **_TRAINING),
            **_QUICK,
        )
    config = section(study)
    config.system = "distillability"
    return config
