"""Small students that write code and answers, to show that the test is not of one task.

    python -m experiments.run --config=writers.py:code
    python -m experiments.run --config=writers.py:instruct --config.root=DATA
    python -m experiments.run --config=writers.py:code,detect

`code`: docstrings of the standard library, and the calls that they describe; an attack
puts another call around them. `instruct`: questions and worked answers, from the files
`gsm8k/train.jsonl` and `instruct/seed_tasks.jsonl` in a folder. A T5 from scratch is
too small to answer well; what is shown is what an attack adds and the defence removes.
With `,detect` the test alone, all attacks, three splits.

One to four minutes of one core a student.
"""

from experiments.configs import briefs
from experiments.configs.briefs import attack
from protojax import validate

# Rows under test, references, test rows; the most tokens of a source and an output.
SIZES = {
    "code": ((1300, 500, 200), (64, 32)),
    "instruct": ((2000, 600, 200), (96, 96)),
}
ATTACKS = {
    "code": {
        "call": attack("insert_call", trigger="in any case", wanted="telemetry"),
        "replace": attack(trigger="in any case"),
    },
    "instruct": {"append": attack("append"), "replace": attack()},
}


def get_config(argument: str = "code"):
    """The study.

    Args:
        argument: the task, `"code"` or `"instruct"`, and `",detect"` or nothing.
    """
    task, _, variant = argument.partition(",")
    validate.one_of(SIZES, argument=task)
    validate.one_of(("", "detect"), argument=variant)
    if variant:
        return briefs.detect(task)
    (rows, references, test_rows), (source, output) = SIZES[task]
    config = briefs.get_config()
    config.task, config.seeds = task, (0,)
    config.arms = ("clean", "plain", "defended")
    config.rows, config.references, config.test_rows = rows, references, test_rows
    lengths = config.defence.lengths
    lengths.max_length, lengths.max_output = source, output
    lengths.buckets = ((source // 2, output // 2), (source, output))
    config.attacks = ATTACKS[task]
    return config
