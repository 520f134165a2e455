"""The knob on a teacher's distillability, in small worlds: sums, and real text.

    python -m experiments.run --config=distillability.py:quick
    python -m experiments.run --config=distillability.py
    python -m experiments.run --config=distillability.py:briefs
    python -m experiments.run --config=distillability.py:full
    python -m experiments.run --config=distillability.py --config.shift=5 \
        --config.attackers="('none','sft')" --config.rivals="()"

Teachers, proxy and students are Llamas with a token for each character or word, trained
from scratch. With a `shift` the proxy has another tokenizer than the teacher; so have
the students "stranger". Any way to learn of `protojax.distillability.ATTACKERS` may be
named. A stopped study goes on.

The first study is of sums of three numbers, in three styles of which small models
cannot carry out one though they have seen as much of it. It takes a CPU core about an
hour; one seed and one size of student (`--config.seeds="(0,)"
--config.students="('student',)"`) a quarter of that. `full` adds a reward of answers
alone to that of whole texts, further students, and all ways to learn and all rivals:
some ten hours.

In the others there are two styles, and proxy and students have seen little of one of
them. `quick`: sums of two numbers, in four minutes. `briefs`: utterances of SNIPS, the
words that matter as they come or sorted, see `experiments.world.small.briefs`; three
seeds in less than half an hour.
"""

import dataclasses

from experiments.study.defaults import section
from experiments.systems.distillability import STUDENTS, Knob
from protojax import validate
from protojax.distillability import ATTACKERS

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
_BRIEFS = {
    "world": "briefs",
    "terms": 4,
    "rewards": ("chain",),
    "students": ("student",),
    "attackers": ("none", "sft", "gkd", "answers_only"),
    "rivals": ("best of n",),
    "styles": (">", "~"),
    # One of sixteen texts.
    "base_styles": (*">" * 15, "~"),
    "teacher_size": (3, 96),
    "proxy_size": (2, 48),
    "student_size": (2, 64),
    "teacher_steps": 5000,
    "base_steps": 1000,
    "batch_size": 64,
    "learning_rate": 4e-3,
    "problems": 1024,
    "held_out": 400,
}
_SUMS = {
    "rewards": ("chain",),
    "attackers": ("none", "sft", "gkd", "answers_only"),
    "rivals": ("no chain", "best of n"),
}
_FULL = {"students": STUDENTS, "attackers": ("none", *ATTACKERS)}
# Settings, those of calibrations and those of students.
_VARIANTS = {
    "": (_SUMS, {}, {}),
    "full": (_FULL, {}, {}),
    "quick": (
        _QUICK,
        {"steps": 40, "learning_rate": 5e-4},
        {"steps": 60, "max_length": 6},
    ),
    "briefs": (
        _BRIEFS,
        {"steps": 40, "learning_rate": 5e-4, "max_new": 7},
        {"steps": 200, "max_length": 14, "max_new": 7},
    ),
}


def get_config(variant: str = ""):
    """The study.

    Args:
        variant: "", "full", "quick" or "briefs".
    """
    validate.one_of(_VARIANTS, variant=variant)
    fields, calibration, training = _VARIANTS[variant]
    study = Knob()
    study = dataclasses.replace(
        study,
        calibration=dataclasses.replace(study.calibration, **calibration),
        training=dataclasses.replace(study.training, **training),
        **fields,
    )
    config = section(study)
    config.system = "distillability"
    return config
