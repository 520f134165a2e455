"""The pilot's models over many nodes with a server between them.

    python -m experiments.run --config=federated.py --config.data.root=DATA
    python -m experiments.run --config=federated.py:hostile --config.data.root=DATA
    python -m experiments.run --config=federated.py:long --config.data.root=DATA

Without an argument: 4 nodes, as published, IID and with label skew (Dirichlet 0.3), a
rare word in 5 % of the rows. `hostile`: 8 nodes, 2 of which hold all the poison and
replace the model (their updates times 4), under each aggregation rule. `long`: 10 nodes
and 100 rounds.

Not yet run by us.
"""

from experiments.configs import pilot
from experiments.defaults import federation
from protojax import _validate

RULES = {
    "mean": {},
    "median": {},
    "trimmed_mean": {"num_byzantine": 2},
    "krum": {"num_byzantine": 2},
    "multi_krum": {"num_byzantine": 2},
    "geometric_median": {},
    "centred_clipping": {},
    "norm_clipping": {},
}


def get_config(argument: str = "four"):
    """Returns the study.

    Args:
        argument: `"four"`, `"hostile"` or `"long"`.
    """
    _validate.one_of(("four", "hostile", "long"), argument=argument)
    config = pilot.get_config()
    config.attacks = {"word_data": config.attacks.word_data}
    if argument == "four":
        config.federations = {
            "iid": federation(),
            "dirichlet": federation(partition="dirichlet"),
        }
        arms = ("clean", "plain", "anchor")
    elif argument == "hostile":
        config.tasks = ("sst2_sentence",)
        config.federations = {
            rule: federation(
                nodes=8,
                hostile=2,
                update_attack="scale",
                aggregator=rule,
                aggregator_args=args,
            )
            for rule, args in RULES.items()
        }
        arms = ("clean", "plain", "anchor")
    else:
        config.tasks = ("sst2_sentence",)
        config.federations = {"ten": federation(nodes=10, rounds=100)}
        config.student.epochs = 10
        arms = ("clean", "plain", "anchor")
    config.arms = tuple(f"{arm}@{name}" for name in config.federations for arm in arms)
    return config
