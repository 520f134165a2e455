"""The pilot's models over eight nodes without a server.

    python -m experiments.run --config=p2p.py --config.data.root=DATA

Ring, exponential and complete graphs, nodes by themselves (`local`), and a complete
graph in which 2 of 8 nodes are hostile, mixed plainly and robustly. Each node ends with
a student of its own; figures are means over the honest nodes.

Not yet run.
"""

from experiments.configs import pilot
from experiments.study.defaults import federation


def get_config():
    """The study."""
    config = pilot.get_config()
    config.tasks = ("sst2_sentence",)
    config.attacks = {"word_data": config.attacks.word_data}
    eight = {"nodes": 8, "rounds": 6}
    hostile = {
        **eight,
        "topology": "complete",
        "hostile": 2,
        "update_attack": "flip_sign",
        "update_attack_args": {"factor": 4.0},
    }
    config.federations = {
        "local": federation(**eight, topology="local"),
        "ring": federation(**eight, topology="ring"),
        "exponential": federation(**eight, topology="exponential"),
        "complete": federation(**eight, topology="complete"),
        "hostile_mean": federation(**hostile),
        "hostile_trimmed": federation(
            **hostile, aggregator="trimmed_mean", aggregator_args={"num_byzantine": 2}
        ),
    }
    config.arms = tuple(
        f"{arm}@{name}"
        for name in config.federations
        for arm in ("clean", "plain", "defended")
    )
    return config
