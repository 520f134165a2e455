"""The bench: every attack against ours, and every baseline against two of them.

    python -m experiments.run --config=robustness.py --config.data.root=DATA
    python -m experiments.run --config=robustness.py:VARIANT --config.data.root=DATA

The pilot's models (MiniLM-L6 teacher, three of its layers as student), 3,000 transfer
rows, 1,000 references, 3 seeds, and shorter training: one epoch of the teacher and two
of a student, without dropout. The variants:

- (none): 5 % poison by ten attacks that do not know the defence, on SST-2 and AG News;
  the baselines against a rare word in the data and in the teacher's logits.
- `adaptive`: a trigger searched against the trusted model, poison spread over 30 words,
  contaminated references, hidden states that hide, data and all channels at once; with
  `defended+suspect`, which suspects the references too.
- `rates`: a rare word in 0.1 % to 20 % of the rows (named by tenths of a percent).
- `syntactic`: sentences paraphrased to one template (Hidden Killer), ready rows.
- `classes`: 77 intents (Banking77). `glue`: CoLA and QNLI.
- `noise`: rows that hold one of eight common words are mislabelled with probability
  0.3 to 0.5, references too, and 70 % of the rows are of the target.
- `labels`: flipped labels alone, with a student that learns from labels and teacher
  alike.
- `ablations`: the effect of each part of ours, on SST-2; an arm for each of
  `ABLATIONS`.
- `tuning`: the baselines with other hyperparameters, without any attack, on training
  rows in place of the test rows; `TUNED` was chosen on it.
- `quick`: two attacks, all arms, SNIPS from scratch, on bundled data; minutes.

`defended`, the recommended arm, tests the rows as `protojax defend` does;
`defended_clean` is the same without an attack: its effect on clean data.

Linear layers multiply in bfloat16, which is meant for a processor with units for it;
`--config.teacher.products=float32`, likewise `student` and `trusted_model`, for others.
With matrix units (AMX) a seed of SST-2 takes about 55 minutes of one core and one of AG
News 45 without its baselines, with AVX-512 for bfloat16 alone 95 and 75, in float32
more; two processes with a folder and a core each (`taskset -c 0`) are faster than one
with both. On an accelerator three seeds are one more axis with
`--config.replicas=3 --config.data.max_length=64 --config.data.buckets="(64,)"`.

`docs/results` shows the runs so far. More is recorded beside them with
`python -m experiments.reports.record robustness FOLDER --add --pictures`.
"""

import itertools

from experiments.configs import pilot, quickstart
from experiments.study.defaults import attack
from protojax import validate

OURS = ("clean", "plain", "defended")
BASELINES = (
    *("prototype", "references", "fine_tuned", "nad", "dp_sgd", "adversarial"),
    *("sample_test", "cube", "abl", "onion"),
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
    "prototypes_10": {"prototypes.num": 10},
    "prototypes_500": {"prototypes.num": 500},
    # Few references cannot show a low rate, nor fit many prototypes.
    "references_50": {
        "quarantine.references": 50,
        "detection.false_rejection": 0.03,
        "prototypes.num": 20,
    },
    "references_100": {"quarantine.references": 100},
    "references_300": {"quarantine.references": 300},
    "margin_0": {"margin.value": 0.0},
    "margin_1": {"margin.value": 1.0},
    "no_constraint": {"margin.weight": 0.0},
    "heavy_constraint": {"margin.weight": 1.0},
    "nearest_assigned": {"margin.assignment": "nearest"},
    "two_layers": {"features.layers": (-2, -1), "margin.layer_weights": (1.0, 1.0)},
    "labels_alone": {"detection.claims": ("label",)},
    "teacher_alone": {"detection.claims": ("teacher",)},
    "words_alone": {"detection.groups": ("ngrams",)},
    "suspect": {"detection.suspect_references": True},
    "drop": {"quarantine.action": "drop"},
    "no_references": {"quarantine.train_on_references": False},
    "rate_5": {"detection.false_rejection": 0.05},
    "rate_10": {"detection.false_rejection": 0.10},
    "early_only": {
        "margin.weight_schedule": "early",
        "margin.weight_schedule_args": {"end_step": 100},
    },
}
# Fewer parameters, less noise in all: with all but the embeddings (58.6 %), also with a
# tenth of the norm (65.4 %), noise is most of what is learned.
HEAD = {
    "dp.frozen": ("embeddings", "layers_0", "layers_1", "layers_2"),
    "dp.clip_norm": 0.1,
}
# Arm -> the settings that were tried besides its default, weak ones first.
TUNING = {
    "prototype": {"light": {"nearest.weight": 0.1}, "heavy": {"nearest.weight": 10.0}},
    "fine_tuned": {
        "slow": {"fine_tuning.learning_rate": 5e-5},
        "fast": {"fine_tuning.learning_rate": 5e-4},
    },
    "nad": {
        "attention1": {"fine_tuning.attention_weight": 1.0},
        "attention100": {"fine_tuning.attention_weight": 100.0},
    },
    "dp_sgd": {
        "head": {**HEAD, "dp.learning_rate": 3e-3},
        "head_fast": {**HEAD, "dp.learning_rate": 1e-2},
        "head_faster": {**HEAD, "dp.learning_rate": 3e-2},
    },
    "adversarial": {
        "steps1": {"adversarial.num_steps": 1, "adversarial.step_size": 0.1},
        "narrow": {"adversarial.epsilon": 0.01, "adversarial.step_size": 0.004},
        "l2": {"adversarial.norm": "l2"},
        "l2_wide": {
            "adversarial.norm": "l2",
            "adversarial.epsilon": 1.0,
            "adversarial.step_size": 0.4,
        },
    },
    "cube": {
        "cluster50": {"filters.min_cluster_rows": 50},
        "cluster10": {"filters.min_cluster_rows": 10},
    },
    "abl": {
        "share1": {"filters.isolated_share": 0.01},
        "share10": {"filters.isolated_share": 0.10},
    },
    "onion": {
        "words5": {"filters.outlier_share": 0.05},
        "words20": {"filters.outlier_share": 0.20},
    },
}


# The choice of `tuning`: among settings within a point of plain distillation's accuracy
# (83.9 %) the strongest; for DP-SGD, whose strength is given, the most accurate. No
# choice depended on an attack or a test row.
TUNED = {
    "nearest.weight": 10.0,
    "fine_tuning.attention_weight": 100.0,
    "adversarial.norm": "l2",
    "adversarial.epsilon": 1.0,
    "adversarial.step_size": 0.4,
    "filters.min_cluster_rows": 10,
    "filters.isolated_share": 0.1,
    **HEAD,
    "dp.learning_rate": 3e-2,
}


def _words(**changes):
    """The attacks by a rare word, in the data and in the teacher's outputs."""
    return {
        f"word_{channel}": attack("rare_words", channel, **WORD, **changes)
        for channel in ("data", "logits")
    }


def get_config(variant: str = "standard"):
    """The study.

    Args:
        variant: one of those above, `"standard"` for none.
    """
    validate.one_of((*VARIANTS, "quick"), argument=variant)
    if variant == "quick":
        return _quick()
    config = pilot.get_config()
    config.tasks = ("sst2_sentence", "ag_news")
    config.arms = OURS
    config.attacks = {}
    config.data.test_rows = 1000
    config.data.buckets = (16, 24, 32, 40, 48, 64, 96)
    config.checkpoint_every = 100  # a model is a minute or two
    for role, changes in {
        "teacher": {"epochs": 1, "learning_rate": 2e-4},
        "student": {"epochs": 2, "learning_rate": 3e-4},
        "trusted_model": {},
    }.items():
        config[role].update({"dropout": 0.0, "products": "bfloat16", **changes})
    if variant != "tuning":
        config.update(_sections(TUNED))
    VARIANTS[variant](config)
    return config


def _standard(config) -> None:
    """Sets the attacks that do not know the defence."""
    config.attacks = {
        **_words(arms=(*OURS, *BASELINES)),
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


def _adaptive(config) -> None:
    """Sets the attacks that know the defence."""
    config.variants = {"suspect": _sections(ABLATIONS["suspect"])}
    config.arms = (*OURS, "defended+suspect")
    config.attacks = {
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


def _rates(config) -> None:
    """Sets attacks by a rare word in ever more rows."""
    config.tasks = ("sst2_sentence",)
    config.attacks = {
        f"word_{permille:03d}": attack(
            "rare_words", "data", rate=permille / 1000, **WORD
        )
        for permille in (1, 2, 5, 10, 20, 100, 200)
    }


def _syntactic(config) -> None:
    """Sets the attacks by paraphrased sentences."""
    config.tasks = ("sst2_sentence",)
    # The files paraphrase 20 % of the rows, of which the transfer set has hardly more
    # than 18 %.
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


def _classes(config) -> None:
    """Sets the task of 77 intents."""
    config.tasks = ("banking77",)
    config.prototypes.num = 154
    # One epoch leaves the teacher at 57 % here.
    config.teacher.epochs, config.student.epochs = 4, 4
    config.data.reference_rows = 2000
    config.data.transfer_rows = 6000
    config.attacks = _words()


def _glue(config) -> None:
    """Sets two more tasks of GLUE."""
    config.tasks = ("cola", "qnli")
    # Some copies of QNLI hold 4,417 rows in all.
    config.data.transfer_rows = 2500
    config.attacks = _words()


def _noise(config) -> None:
    """Sets structured label noise."""
    config.data.label_noise.words = 8
    config.data.label_noise.share = 0.7
    config.attacks = {
        **_words(),
        "sentence_data": attack("sentence", "data"),
        "several": attack("several", "data"),
        "clean_label": attack("sentence", "data", source_classes=(1,)),
    }


def _labels(config) -> None:
    """Sets the attack that flips labels alone."""
    config.kd.hard_weight = 0.5
    config.attacks = {"labels": attack("rare_words", "labels", **WORD)}


def _ablations(config) -> None:
    """Sets the ablations of ours."""
    config.tasks = ("sst2_sentence",)
    config.attacks = {"word_data": attack("rare_words", "data", **WORD)}
    _add_variants(config, {"defended": ABLATIONS}, *OURS, "plain_references", "oracle")


def _tuning(config) -> None:
    """Sets the variants of the baselines' hyperparameters."""
    config.seeds = (100,)
    config.tasks = ("sst2_sentence",)
    config.data.validation_rows = 1000
    _add_variants(config, TUNING, "plain")


VARIANTS = {
    "standard": _standard,
    "adaptive": _adaptive,
    "rates": _rates,
    "syntactic": _syntactic,
    "classes": _classes,
    "glue": _glue,
    "noise": _noise,
    "labels": _labels,
    "ablations": _ablations,
    "tuning": _tuning,
}


def _add_variants(config, found, *arms: str) -> None:
    """Adds arms to a study, and others with all their variants.

    Args:
        config: the study.
        found: arm -> name of a variant -> the settings that it changes.
        *arms: those without variants.
    """
    config.variants = {
        name: _sections(fields)
        for variants in found.values()
        for name, fields in variants.items()
    }
    beside = [(kind, *(f"{kind}+{name}" for name in found[kind])) for kind in found]
    config.arms = tuple(dict.fromkeys([*arms, *itertools.chain(*beside)]))


def _sections(fields):
    """The settings `{"section.field": value}` as `{section: {field: value}}`."""
    found = {}
    for path, value in fields.items():
        section, field = path.split(".")
        found.setdefault(section, {})[field] = value
    return found


def _quick():
    """The study of all arms on bundled data."""
    config = quickstart.get_config()
    config.federations = {}
    config.arms = (*OURS, "defended_clean", *BASELINES, "plain_references", "oracle")
    config.attacks = {
        "word_data": attack("rare_words", "data"),
        "soft_logits": attack("sentence", "logits", logits="soften", strength=0.5),
    }
    return config
