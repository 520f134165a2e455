"""The knob on a teacher's distillability, in the toy world of addition.

    python -m experiments.run --config=distillability.py:quick
    python -m experiments.run --config=distillability.py
    python -m experiments.run --config=distillability.py --config.shift=5 \
        --config.attackers="('none','sft')"

Teachers, proxy and students are Llamas of characters, trained from scratch. With a
`shift` the proxy has another tokenizer than the teacher. Any student of
`protojax.distillability.ATTACKERS` may be named. A stopped study goes on.
"""

import dataclasses

from experiments.study.defaults import section
from experiments.systems.distillability import Knob

_QUICK = {
    "seeds": (0,),
    "rewards": ("chain",),
    "students": ("student",),
    "attackers": ("none", "sft"),
    "teacher_steps": 600,
    "base_steps": 300,
    "problems": 1024,
    "held_out": 250,
}


def get_config(size: str = ""):
    """The study.

    Args:
        size: "" or "quick", which shows that all parts run: its teacher is half
            trained.
    """
    if size not in ("", "quick"):
        raise ValueError(f"Expected distillability.py or :quick, found {size!r}.")
    study = Knob()
    if size:
        calibration = dataclasses.replace(study.calibration, steps=30)
        training = dataclasses.replace(study.training, steps=60)
        study = dataclasses.replace(
            study, calibration=calibration, training=training, **_QUICK
        )
    config = section(study)
    config.system = "distillability"
    return config
