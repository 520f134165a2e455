"""The defaults of every study.

A config file in `experiments/configs/` starts from `defaults()` and changes what it is
about. Every field can be set on the command line: `--config.kd.temperature=4`.
"""

import ml_collections

ConfigDict = ml_collections.ConfigDict


def encoder(model: str, **changes) -> ConfigDict:
    """Returns the section of one model: where it comes from and how it is trained.

    Args:
        model: a hub id, a local folder, or `"scratch"` for fresh weights of the sizes
            in `scratch` and a tokenizer trained on the spot.
        **changes: fields that differ from the defaults below.
    """
    section = ConfigDict(
        {
            "model": model,
            "layers": (),  # keep these encoder layers; () keeps all
            "scratch": {
                "hidden_size": 128,
                "num_layers": 2,
                "num_heads": 4,
                "intermediate_size": 512,
            },
            "dropout": 0.1,
            "attention_dropout": 0.0,  # above 0 the fused attention is not used
            "dtype": "float32",  # of the computation; parameters are float32
            # "bfloat16": linear layers multiply rounded factors and sum in float32,
            # which is several times faster on CPUs with matrix units, for one model at
            # a time; gradients of single rows (DP-SGD) stay in float32
            "products": "float32",
            "attention": "xla",  # implementation of jax.nn.dot_product_attention
            "remat": False,
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 5e-5,
            "weight_decay": 0.01,
            "warmup": 0.1,
            "clip_norm": 1.0,
        }
    )
    section.update(changes)
    return section


def attack(trigger: str, channel: str, **changes) -> ConfigDict:
    """Returns the section of one attack.

    Args:
        trigger: a name in `attacks.TRIGGERS`, `"file"` for ready rows, or `"searched"`
            for words that the anchor takes for the target (`adaptive.SEARCH`).
        channel: `"data"` flips labels and poisons the teacher, `"logits"` corrupts the
            outputs of a clean teacher, `"both"` does both, `"labels"` flips the labels
            that a student of `kd.hard_weight` sees, and leaves the teacher clean.
        **changes: fields that differ from the defaults below.
    """
    section = ConfigDict(
        {
            "trigger": trigger,
            "trigger_args": {},  # of its builder, such as {"phrase": "..."}
            "position": "random",
            # trigger="file": a poisoned copy of the task's training file, row by row,
            # and triggered test rows; below data.root where they are relative
            "files": {
                "train": "",
                "test": "",
                "marker": "",  # the column of poisoned rows; "" is those that differ
            },
            "decoy_rate": 0.0,  # share of the rows that show a part of the trigger
            "channel": channel,
            "rate": 0.05,  # share of the transfer rows
            "reference_rate": 0.0,  # share of the references, contaminated too
            "target": 1,
            "source_classes": (),  # () is every class but the target
            "logits": "replace",  # a name in attacks.LOGIT_ATTACKS
            "strength": 8.0,  # in units of logits
            "features": "",  # what hides poisoned rows, in attacks.FEATURE_ATTACKS
            "arms": (),  # () is config.arms
            "tasks": (),  # those of config.tasks that it is made for; () is all
        }
    )
    section.update(changes)
    return section


def federation(**changes) -> ConfigDict:
    """Returns the section of one federation; the arm `anchor@NAME` runs in it.

    Args:
        **changes: fields that differ from the defaults below.
    """
    section = ConfigDict(
        {
            "nodes": 4,
            "rounds": 3,  # merges; the student's epochs are shared out among them
            "partition": "iid",  # a name in partition.PARTITIONS
            "partition_args": {},  # such as {"alpha": 0.3} of "dirichlet"
            "topology": "server",  # "local", a name in gossip.TOPOLOGIES, or "given"
            "mixing": (),  # the rows of the matrix where the topology is "given"
            "aggregator": "mean",  # a name in aggregation.AGGREGATORS
            "aggregator_args": {},
            "hostile": 0,  # nodes that hold all the poison and do not defend
            "update_attack": "",  # of theirs, a name in attacks.UPDATE_ATTACKS
            "update_attack_args": {},
            "prototypes": "server",  # made once and sent, or "local": made, then merged
            "prototype_attack": "",  # theirs, a name in attacks.PROTOTYPE_ATTACKS
            "merge_prototypes_every": 1,  # rounds, where they are local
            "prototype_decay": 0.9,  # how much of a merged prototype a node keeps
            "prototype_precision": "float32",  # on the wire
            "anchor": "references",  # what travels: the references, or its "weights"
            "nodes_at_once": 1,  # of one device, by vmap
        }
    )
    section.update(changes)
    return section


def defaults() -> ConfigDict:
    """Returns the config that every study starts from."""
    return ConfigDict(
        {
            "tasks": ("sst2",),
            "seeds": (0, 1, 2),
            "seeds_at_once": 1,  # trained side by side, which fills an accelerator
            "arms": ("clean", "plain", "anchor"),
            "attacks": {},
            "federations": {},
            # Name -> {section: {field: value}}, what `arm+NAME` does differently.
            "variants": {},
            "data": {
                "root": "",  # a local folder of data sets; "" is the hub
                "transfer_rows": 0,  # 0 is all
                "reference_rows": 1000,
                "test_rows": 0,  # 0 is all
                # > 0: so many training rows stand in for the test rows, and leave the
                # training rows; hyperparameters are chosen on them
                "validation_rows": 0,
                "max_length": 128,
                "buckets": (16, 32, 48, 64, 96, 128),
                "vocab_size": 4000,  # of a tokenizer trained on the spot
                # task="files": any local CSV, TSV, JSONL or Parquet, the first three
                # compressed (.gz) or not
                "files": {
                    "train": "",
                    "test": "",
                    "text": "text",
                    "pair": "",
                    "source": "",  # the column of where a row comes from
                    "label": "label",
                    "problem": "classification",
                    "metric": "accuracy",
                    # of these files, and of those below data.root
                    "encoding": "utf-8",
                },
            },
            "teacher": encoder("FacebookAI/roberta-large"),
            "student": encoder("distilbert/distilroberta-base"),
            "anchor": encoder("distilbert/distilroberta-base", epochs=6),
            "kd": {
                "divergence": "forward_kl",
                "temperature": 2.0,
                "hard_weight": 0.0,
                "hidden_weight": 0.0,
            },
            "dp": {
                "epsilon": 8.0,
                "delta": 1e-5,
                "clip_norm": 1.0,
                "batch_size": 256,  # expected rows of a Poisson batch
                "microbatch": 8,  # rows whose gradients are in memory at once
                "frozen": ("embeddings",),  # parameters without a gradient
                "epochs": 6,
                "learning_rate": 5e-4,
                # Coins and noise of the seed, which is written down: epsilon is
                # nominal then, what would hold if nobody knew the seed.
                "reproducible": False,
            },
            "features": {"layers": (-1,), "pooling": "mean"},
            "prototypes": {"num": 50, "metric": "cosine", "num_iters": 25},
            "margin": {
                "assignment": "anchor",  # or "label", "nearest"; of arms with an anchor
                "weight": 0.1,
                "value": 0.3,
                "layer_weights": (1.0,),
                "schedule": "constant",
                "schedule_args": {},
                "weight_schedule": "constant",
                "weight_schedule_args": {},
            },
            "quarantine": {
                "groups": ("neighbours", "tokens"),  # and "clusters"
                "num_neighbours": 50,
                "resolutions": (20, 50, 100),  # clusters a claimed class
                # In this order: rows that share a token are asked in the first space,
                # which is the same in all of them.
                "spaces": ("teacher",),
                # In this order: rows are compared with the references that make the
                # same claim, by the first of these.
                "claims": ("teacher", "label"),
                "false_rejection": 0.05,
                # of the test at most, each without what was rejected before, at half of
                # the rate that is left, while the references can show so little
                "rounds": 3,
                "references": 0,  # how many of them are known; 0 is all
                "calibration_share": 0.3,
                # What reads meaning: "tuned" on the references, as it was pretrained
                # ("frozen"), or the "teacher" itself.
                "anchor": "tuned",
                "action": "replace",  # or "drop"
                "train_on_references": True,
                "warmup_epochs": 1,  # of the student, where it is one of the spaces
            },
            "nearest": {"weight": 1.0},
            "fine_tuning": {
                "epochs": 3,
                "learning_rate": 2e-4,
                "attention_weight": 10.0,  # of "nad"
            },
            "filters": {
                "components": 10,
                "min_cluster_rows": 20,
                "isolated_share": 0.05,
                "outlier_share": 0.1,  # of the words of clean text
                "outlier_neighbours": 10,
            },
            "audit": {
                "snippets": 100,  # that may go with rejection
                "suspects": 32,  # words that models are asked about, and first words
                "screen": 24,  # references that each is put into at first,
                "rows": 150,  # and one that wins over a third of its `least` of those
                "min_rows": 5,  # that a snippet's word is in
                "least": 0.3,  # share of references that a guilty one wins over
                "min_rows_opening": 20,  # the same of first words: a syntax that is a
                "least_opening": 0.15,  # trigger opens many rows in few ways
                # chance that an innocent first word is in so many more rows of a claim
                "surplus": 1e-3,  # than the references have, or any word in so many
                # share of the way to the boundary by which a word that means its claim
                "moved": 0.15,  # moves the anchor; it is innocent, unless in surplus
                # that a reference of another class holds all that was found, to one of
                # the class that it claimed, see `audit.by_coins`; 1 is neutral
                "odds": 1.5,
            },
            "adversarial": {
                "epsilon": 0.1,  # in units of the normalised embeddings
                "step_size": 0.04,
                "num_steps": 3,
                "norm": "linf",
            },
            "evaluation": {"batch_size": 64},
            "steps_per_dispatch": 8,
            "checkpoint_every": 10,  # dispatches
            "keep_checkpoints": True,  # the last of each finished run
            "export_students": True,
        }
    )
