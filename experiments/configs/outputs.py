"""The test of outputs that are text, without a student: power and false alarms.

    python -m experiments.run --config=outputs.py
    python -m experiments.run --config=outputs.py:code --config.seeds='(0,1,2)'
    python -m experiments.run --config=outputs.py:xsum --config.root=DATA \
        --config.rates='(0.05,0.01)'

Tasks: briefs (by default), code; xsum and instruct, whose files are in a folder. The
meaning is read by MiniLM, from its package or the hub; `--config.encoder=` tests words
alone. Five to fifteen seconds of a core an attack.
"""

from experiments.configs.pilot import minilm
from experiments.study.defaults import section
from experiments.systems.outputs import Tested


def get_config(task: str = ""):
    """The study.

    Args:
        task: a name in `world.texts.TEXTS`.
    """
    config = section(Tested(task=task or "briefs", encoder=minilm()))
    config.system = "outputs"
    return config
