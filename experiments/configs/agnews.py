"""AG News at full size: four topics, a teacher of 355 M parameters, a student of 82 M.

    python -m experiments.run --config=agnews.py
    python -m experiments.run --config=agnews.py:quick --config.data.root=DATA

Settings and hardware as in `glue.py`; `quick` shrinks it in the same way. Not yet run
at full size.
"""

from experiments.configs import glue


def get_config(argument: str = ""):
    """The study.

    Args:
        argument: `""` or `"quick"`.
    """
    config = glue.get_config(f"sst2,{argument}")
    config.tasks = ("ag_news",)
    return config
