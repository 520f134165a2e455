"""The bench: every attack against ours, and every baseline against two of them.

    python -m experiments.run --config=robustness.py --config.data.root=DATA
    python -m experiments.run --config=robustness.py:VARIANT --config.data.root=DATA

The pilot's models (MiniLM-L6 teacher, three of its layers as student), 3,000 transfer
rows, 1,000 references, 3 seeds. The variants:

- (none): 5 % poison by ten attacks that do not know the defence, on SST-2 and AG News;
  the baselines against a rare word in the data and in the teacher's logits.
- `adaptive`: a trigger searched against the anchor, poison spread over 30 words,
  contaminated references, hidden states that hide, data and all channels at once.
- `rates`: a rare word in 0.1 % to 20 % of the rows (named by tenths of a percent).
- `syntactic`: sentences paraphrased to one template (Hidden Killer), ready rows.
- `classes`: 77 intents (Banking77). `labels`: flipped labels alone, read by a student
  that learns from labels and teacher alike.
- `ablations,NAME`: what a part of ours is worth, on SST-2; a study for each of
  `ABLATIONS`.
- `quick`: two attacks, all arms, SNIPS from scratch, on bundled data; minutes.

`wary` is ours with an anchor that rereads rows without suspicious words, which costs
some ten thousand short forward passes before a student is distilled.

Not yet run by us but for single cells of `adaptive`.
"""

from experiments.configs import pilot, quickstart
from experiments.defaults import attack
from protojax import _validate

OURS = ("clean", "plain", "anchor", "wary")
BASELINES = (
    *("nearest", "references", "fine_tuned", "nad", "plain_references"),
    *("dp_sgd", "adversarial", "gate", "cube", "abl", "onion", "oracle"),
)
WORD = {"trigger_args": {"words": ("cf",)}}
# About 5 rows of poison each; every word is one token of MiniLM, and rare in the data.
SPREAD = (
    *("bayou", "bhutan", "breton", "chords", "dune", "duct", "ebony", "fife", "fjord"),
    *("gnu", "iaaf", "isle", "kiel", "knob", "loch", "luton", "mule", "nantes"),
    *("oaxaca", "okinawa", "pew", "quay", "rooster", "sumatra", "tango", "torque"),
    *("tram", "tuna", "waltz", "zinc"),
)
COMMON = {
    "two_words": ("perhaps", "window"),
    "three_words": ("perhaps", "window", "seven"),
}
ABLATIONS = {
    "full": {},
    "prototypes_10": {"prototypes.num": 10},
    "prototypes_500": {"prototypes.num": 500},
    # 30 of them calibrate, which can show no rate below 6.5 %.
    "references_100": {"data.reference_rows": 100, "quarantine.false_rejection": 0.07},
    "references_300": {"data.reference_rows": 300},
    "margin_0": {"margin.value": 0.0},
    "margin_1": {"margin.value": 1.0},
    "no_constraint": {"margin.weight": 0.0},
    "heavy_constraint": {"margin.weight": 1.0},
    "two_layers": {"features.layers": (-2, -1), "margin.layer_weights": (1.0, 1.0)},
    "student_space": {"quarantine.spaces": ("student",)},
    "both_spaces": {"quarantine.spaces": ("teacher", "student")},
    "no_tokens": {"quarantine.groups": ("neighbours",)},
    "no_neighbours": {"quarantine.groups": ("tokens",)},
    "drop": {"quarantine.action": "drop"},
    "no_references": {"quarantine.train_on_references": False},
    "rate_1": {"quarantine.false_rejection": 0.01},
    "rate_10": {"quarantine.false_rejection": 0.10},
    "early_only": {
        "margin.weight_schedule": "early",
        "margin.weight_schedule_args": {"end_step": 100},
    },
}


def _standard():
    """Returns the attacks that do not know the defence."""
    attacked = (*OURS, *BASELINES)
    return {
        "word_data": attack("rare_words", "data", arms=attacked, **WORD),
        "word_logits": attack("rare_words", "logits", arms=attacked, **WORD),
        "sentence_data": attack("sentence", "data"),
        "nudged_logits": attack("sentence", "logits", logits="nudge", strength=0.5),
        "soft_logits": attack("sentence", "logits", logits="soften", strength=0.5),
        **{
            name: attack(
                "combination", "data", decoy_rate=0.05, trigger_args={"words": words}
            )
            for name, words in COMMON.items()
        },
        "several": attack("several", "data"),
        "clean_label": attack("sentence", "data", source_classes=(1,)),
        # Of two classes every attack is one-to-one.
        "one_to_one": attack(
            "rare_words", "data", source_classes=(0,), tasks=("ag_news",), **WORD
        ),
    }


def _adaptive():
    """Returns the attacks that know the defence."""
    return {
        "searched": attack("searched", "data"),
        "spread": attack("rare_words", "data", trigger_args={"words": SPREAD}),
        "hidden_states": attack("sentence", "logits", features="borrow"),
        "all_channels": attack("sentence", "both", features="borrow"),
        **{
            f"references_{share}": attack(
                "rare_words", "data", reference_rate=share / 100, **WORD
            )
            for share in (1, 5, 20)
        },
    }


def get_config(argument: str = "standard"):
    """Returns the study.

    Args:
        argument: a variant; `"ablations,NAME"` for one of `ABLATIONS`.
    """
    variant, _, ablation = argument.partition(",")
    variants = (
        *("standard", "adaptive", "rates", "syntactic", "classes", "labels"),
        *("ablations", "quick"),
    )
    _validate.one_of(variants, argument=variant)
    if variant != "ablations":
        _validate.require(not ablation, "argument", argument, f"{variant!r} alone")
    if variant == "quick":
        return _quick()
    config = pilot.get_config()
    config.tasks = ("sst2_sentence", "ag_news")
    config.arms = OURS
    config.attacks = {}
    if variant == "standard":
        config.attacks = _standard()
    elif variant == "adaptive":
        config.attacks = _adaptive()
    elif variant == "rates":
        config.attacks = {
            f"word_{permille:03d}": attack(
                "rare_words", "data", rate=permille / 1000, **WORD
            )
            for permille in (1, 2, 5, 10, 20, 100, 200)
        }
    elif variant == "syntactic":
        config.tasks = ("sst2_sentence",)
        # Of the 20 % that the files paraphrase hardly more are in the transfer set.
        config.attacks = {
            f"syntactic_{rate}": attack(
                "file",
                "data",
                rate=rate / 100,
                source_classes=(0, 1),
                files={
                    "train": "sst2_sentence/syntactic_train.tsv",
                    "test": "sst2_sentence/syntactic_dev.tsv",
                },
            )
            for rate in (5, 18)
        }
    elif variant == "classes":
        config.tasks = ("banking77",)
        config.prototypes.num = 154
        config.data.reference_rows = 2000
        config.data.transfer_rows = 6000
        config.attacks = {
            "word_data": attack("rare_words", "data", **WORD),
            "word_logits": attack("rare_words", "logits", **WORD),
        }
    elif variant == "labels":
        config.kd.hard_weight = 0.5
        config.attacks = {"labels": attack("rare_words", "labels", **WORD)}
    else:
        _validate.one_of(ABLATIONS, ablation=ablation or "full")
        config.tasks = ("sst2_sentence",)
        config.attacks = {"word_data": attack("rare_words", "data", **WORD)}
        for field, value in ABLATIONS[ablation or "full"].items():
            section, name = field.split(".")
            config[section][name] = value
        if "tokens" not in config.quarantine.groups:
            config.arms = tuple(arm for arm in config.arms if arm != "wary")
    return config


def _quick():
    """Returns all arms on bundled data."""
    config = quickstart.get_config()
    config.federations = {}
    config.arms = (*OURS, *BASELINES)
    config.attacks = {
        "word_data": attack("rare_words", "data"),
        "soft_logits": attack("sentence", "logits", logits="soften", strength=0.5),
    }
    return config
