"""Settings that check themselves, by contract and by a table of what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import settings
from experiments.settings import Settings, as_json, make
from experiments.study import check
from experiments.study.defaults import attack, defaults, encoder, federation
from protojax.detection.settings import Detection, Filters, Quarantine
from protojax.distillation.settings import (
    Adversarial,
    Distillation,
    Margin,
    Nearest,
    Private,
)
from protojax.federated.settings import Federation
from protojax.models.settings import ModelSettings
from protojax.prototypes.settings import Prototypes
from protojax.training.predict import Features, Lengths
from protojax.training.step import AdamW, TrainConfig

SECTIONS = (
    *(Settings, settings.Attack, settings.AttackFiles, settings.Data),
    settings.LabelNoise,
    *(settings.Encoder, settings.Evaluation, settings.Files, settings.FineTuning),
    *(Adversarial, AdamW, Distillation, Features, Federation, Filters, Lengths),
    *(Detection, Margin, ModelSettings, Nearest, Private, Prototypes, Quarantine),
    TrainConfig,
)


def test_every_section_of_a_study_is_here():
    def sections(held):
        yield type(held)
        for field in dataclasses.fields(held):
            value = getattr(held, field.name)
            if dataclasses.is_dataclass(value):
                yield from sections(value)

    found = {*sections(Settings()), *settings.NAMED.values()}
    found |= {settings.AttackFiles}  # of an attack
    assert found <= {*SECTIONS}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_section_is_a_hashable_value_that_does_not_change(section):
    one, same = section(), section()
    assert one == same
    assert hash(one) == hash(same)
    field = dataclasses.fields(section)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, field, getattr(one, field))
    for field in dataclasses.fields(section):
        assert not isinstance(getattr(one, field.name), list | set)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_section_says_what_each_of_its_fields_is(section):
    said = "".join(base.__doc__ for base in section.__mro__[:-1])
    names = {field.name for field in dataclasses.fields(section)}
    if "Attributes:" in section.__doc__:
        own = {name for name in names if name in section.__annotations__}
        missing = {
            name
            for name in own
            if f" {name}: " not in said
            and not dataclasses.is_dataclass(getattr(section(), name))
        }
        assert not missing


def test_two_sections_never_share_a_mapping():
    assert Settings().attacks is not Settings().attacks
    assert Margin().schedule_args is not Margin().schedule_args
    assert settings.Encoder().scratch is not settings.Encoder().scratch


def test_the_defaults_of_a_study_are_those_that_are_published():
    """Figures that are recorded were made with these."""
    found = Settings()
    assert (found.tasks, found.seeds) == (("sst2",), (0, 1, 2))
    assert found.arms == ("clean", "plain", "defended")
    assert found.teacher.model == "FacebookAI/roberta-large"
    assert (
        found.student.model
        == found.trusted_model.model
        == "distilbert/distilroberta-base"
    )
    assert (found.student.epochs, found.trusted_model.epochs) == (3, 6)
    assert found.kd == Distillation("forward_kl", 2.0, 0.0, 0.0)
    assert found.margin == Margin("assigned", 0.1, 0.3, (1.0,), "constant")
    assert found.prototypes == Prototypes(50, "cosine", 25)
    assert found.features == Features((-1,), "mean")
    assert found.quarantine == Quarantine("replace", 0, True)
    chosen = found.detection
    assert chosen.groups == ("ngrams", "openings", "characters", "sources")
    assert (chosen.claims, chosen.false_rejection) == (("teacher", "label"), 0.01)
    assert (chosen.false_alarm, chosen.trigger_rows) == (0.01, 10)
    assert (found.dp.epsilon, found.dp.delta) == (8.0, 1e-5)
    assert not found.dp.reproducible
    assert found.adversarial == Adversarial(0.1, 0.04, 3, "linf")
    assert found.student == settings.Encoder(
        model=found.student.model,
        learning_rate=5e-5,
        weight_decay=0.01,
        warmup=0.1,
        clip_norm=1.0,
        batch_size=32,
    )
    assert found.lengths == Lengths(128, (16, 32, 48, 64, 96, 128), 8, 64)


def test_lengths_are_those_of_the_data_and_the_steps():
    found = make(
        Settings(),
        {
            "data": {"max_length": 4, "buckets": [4]},
            "steps_per_dispatch": 2,
            "evaluation": {"batch_size": 5},
        },
    )
    assert found.lengths == Lengths(4, (4,), 2, 5)


def test_the_command_lines_config_is_the_same_settings():
    assert check.check(defaults()) == Settings()
    assert as_json(Settings()) == json.loads(defaults().to_json())
    for made, section in (
        (encoder("scratch", epochs=9), settings.Encoder(epochs=9)),
        (attack("sentence", "logits"), settings.Attack("sentence", channel="logits")),
        (federation(nodes=7), Federation(nodes=7)),
    ):
        assert make(type(section)(), made.to_dict()) == section


def test_settings_come_back_from_json():
    found = make(
        Settings(),
        {
            "seeds": (4, 5),
            "attacks": {"a": {"rate": 0.2, "arms": ["clean"], "files": {"train": ""}}},
            "federations": {
                "four": {"topology": "given", "mixing": [[0.5, 0.5], [0.5, 0.5]]}
            },
            "variants": {"hot": {"kd": {"temperature": 9.0}}},
            "margin": {"schedule": "early", "schedule_args": {"end_step": 4}},
        },
    )
    text = json.dumps(as_json(found))
    again = make(Settings(), json.loads(text))
    assert again == found
    assert hash(again) == hash(found)
    assert again.federations["four"].mixing == ((0.5, 0.5), (0.5, 0.5))
    assert again.attacks["a"] == settings.Attack(rate=0.2, arms=("clean",))


def test_only_what_is_named_changes():
    base = make(Settings(), {"kd": {"hard_weight": 0.5}})
    found = make(base, {"kd": {"temperature": 3.0}, "margin": {"value": 0.1}})
    assert found.kd == Distillation(temperature=3.0, hard_weight=0.5)
    assert found.margin == Margin(value=0.1)
    assert base.kd.temperature == 2.0
    unchanged = {"kd": base.kd, "margin": base.margin}
    assert dataclasses.replace(found, **unchanged) == base
    assert make(base, {}) == base


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": {"epochs": 0}}, "Expected teacher.epochs > 0, found teacher.ep"),
        ({"data": {"files": {"trian": "a"}}}, "Expected data.files.field one of .*'tr"),
        ({"sedes": (1,)}, "Expected field one of .*Did you mean 'seeds'"),
        ({"attacks": {"x": {"rate": 2.0}}}, r"Expected attacks.x.rate in \(0, 1\)"),
        ({"attacks": {"x": {"rat": 0.1}}}, "Expected attacks.x.field one of"),
        ({"attacks": {"x": 3}}, "Expected attacks.x fields and their values, found"),
        (
            {"federations": {"f": {"hostile": 4}}},
            r"Expected federations.f.hostile in 0..3, found federations.f.hostile=4",
        ),
        (
            {"margin": {"schedule": "early", "schedule_args": {"end_step": -1}}},
            "Expected margin.schedule_args.end_step >= 0",
        ),
        (
            {"margin": {"schedule_args": {"slope": 1}}},
            "margin.schedule_args: .*unexpected keyword argument 'slope'",
        ),
        ({"seeds": (1, 1)}, "Expected seeds without repetition"),
        ({"tasks": ()}, "Expected tasks not empty"),
        ({"arms": ["a", "a"]}, "Expected arms without repetition"),
        ({"replicas": 0}, "Expected replicas > 0"),
        ({"checkpoint_every": 0}, "Expected checkpoint_every > 0"),
        ({"steps_per_dispatch": -1}, "Expected steps_per_dispatch > 0"),
        # Of another kind than the default's.
        ({"teacher": 3}, "Expected teacher fields and their values, found teacher=3"),
        ({"teacher": {"epochs": "3"}}, "Expected teacher.epochs a whole number, found"),
        ({"teacher": {"epochs": 3.0}}, "Expected teacher.epochs a whole number, found"),
        ({"teacher": {"epochs": True}}, "Expected teacher.epochs a whole number"),
        ({"teacher": {"remat": 1}}, "Expected teacher.remat True or False, found"),
        ({"teacher": {"dropout": False}}, "Expected teacher.dropout a number"),
        ({"teacher": {"dropout": "0.1"}}, "Expected teacher.dropout a number"),
        ({"teacher": {"model": None}}, "Expected teacher.model a text"),
        ({"dp": {"reproducible": "yes"}}, "Expected dp.reproducible True or False"),
        ({"arms": "clean"}, "Expected arms a tuple, found arms='clean'"),
        ({"attacks": ("x",)}, "Expected attacks fields and their values"),
    ],
)
def test_an_error_names_the_path_of_its_field(fields, message):
    with pytest.raises(ValueError, match=message):
        make(Settings(), fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"margin": {"value": 1}},
        {"seeds": [1, 2]},
        {"teacher": {"learning_rate": np.float64(1e-3), "epochs": np.int64(2)}},
        {"attacks": {}},
    ],
    ids=["whole numbers", "lists", "NumPy's", "nothing"],
)
def test_what_counts_as_the_same_kind_is_taken(fields):
    make(Settings(), fields)


PHRASE = {"trigger": "sentence"}

REFUSED = [
    # models
    (ModelSettings, {"dropout": 1.0}, r"dropout in \[0, 1\), found dropout=1.0"),
    (ModelSettings, {"attention_dropout": -0.1}, r"attention_dropout in \[0, 1\)"),
    (ModelSettings, {"dtype": "float16"}, "dtype one of"),
    (ModelSettings, {"products": "int8"}, "products one of"),
    (ModelSettings, {"layers": (0,)}, r"layers \(\) from scratch"),
    (settings.Encoder, {"dropout": 1.0}, r"dropout in \[0, 1\)"),
    # training
    (TrainConfig, {"epochs": 0}, "epochs > 0, found epochs=0"),
    (TrainConfig, {"batch_size": -1}, "batch_size > 0"),
    (TrainConfig, {"learning_rate": 0.0}, "learning_rate > 0"),
    (settings.Encoder, {"warmup": 1.0}, r"warmup in \[0, 1\)"),
    (AdamW, {"weight_decay": -0.1}, "weight_decay >= 0"),
    (AdamW, {"clip_norm": 0.0}, "clip_norm > 0"),
    # distillation
    (Distillation, {"divergence": "kl"}, "divergence one of .*forward_kl"),
    (Distillation, {"temperature": 0.0}, "temperature > 0"),
    (Distillation, {"hard_weight": 1.5}, r"hard_weight in \[0, 1\]"),
    (Distillation, {"hidden_weight": -1.0}, "hidden_weight >= 0"),
    (Private, {"frozen": "embeddings"}, "frozen a tuple of names"),
    (Private, {"epsilon": 0.0}, "epsilon > 0"),
    (Private, {"delta": 1.0}, r"delta in \(0, 1\)"),
    (Private, {"clip_norm": 0.0}, "clip_norm > 0"),
    (Private, {"batch_size": 31}, "batch_size >= 32"),
    (Private, {"microbatch": 3}, "microbatch 1, 2, 4 or 8"),
    (Private, {"microbatch": 0}, "microbatch > 0"),
    (Private, {"epochs": 0}, "epochs > 0"),
    (Private, {"learning_rate": -1.0}, "learning_rate > 0"),
    (Margin, {"assignment": "both"}, "assignment one of nearest, label, assigned"),
    (Margin, {"weight": -1.0}, "weight >= 0"),
    (Margin, {"value": -0.1}, "value >= 0"),
    (Margin, {"schedule": "late"}, "schedule one of constant, relaxing, early"),
    (Margin, {"weight_schedule": "late"}, "weight_schedule one of"),
    (
        Margin,
        {"weight_schedule": "early", "weight_schedule_args": {"end_step": -3}},
        "weight_schedule_args.end_step >= 0",
    ),
    (Margin, {"schedule": "early"}, "schedule_args: .*end_step"),
    (Adversarial, {"epsilon": -0.1}, "epsilon >= 0"),
    (Adversarial, {"step_size": -0.1}, "step_size >= 0"),
    (Adversarial, {"num_steps": 0}, "num_steps > 0"),
    (Adversarial, {"norm": "l1"}, "norm one of linf, l2"),
    (Nearest, {"weight": -1.0}, "weight >= 0"),
    # prototypes
    (Prototypes, {"num": 0}, "num > 0"),
    (Prototypes, {"num_iters": 0}, "num_iters > 0"),
    (Prototypes, {"metric": "cosin"}, "metric one of .*Did you mean 'cosine'"),
    # detection
    (Quarantine, {"action": "keep"}, "action one of replace, drop"),
    (Quarantine, {"references": -1}, "references >= 0"),
    (Detection, {"groups": ()}, "groups not empty"),
    (Detection, {"groups": ("ngrams", "ngrams")}, "groups without repetition"),
    (Detection, {"groups": ("ngram",)}, "groups one of .*Did you mean 'ngrams'"),
    (Detection, {"claims": ("truth",)}, "claims one of teacher, label"),
    (Detection, {"claims": ()}, "claims not empty"),
    (Detection, {"false_rejection": 1.0}, r"false_rejection in \(0, 1\)"),
    (Detection, {"false_alarm": 0.0}, r"false_alarm in \(0, 1\)"),
    (Detection, {"flips": 1.0}, r"flips in \(0, 1\)"),
    (Detection, {"min_rows": 0}, "min_rows > 0"),
    (Detection, {"trigger_rows": 0}, "trigger_rows > 0"),
    (Detection, {"reread_groups": 0}, "reread_groups > 0"),
    (Detection, {"reread_rows": 0}, "reread_rows > 0"),
    (Detection, {"least": 0.0}, "least > 0"),
    (Detection, {"overdispersion": -0.1}, "overdispersion >= 0"),
    (Filters, {"warmup_epochs": 0}, "warmup_epochs > 0"),
    (Filters, {"components": 0}, "components > 0"),
    (Filters, {"min_cluster_rows": 1}, "min_cluster_rows >= 2"),
    (Filters, {"isolated_share": 1.0}, r"isolated_share in \(0, 1\)"),
    (Filters, {"isolated_share": 0.0}, "isolated_share > 0"),
    (Filters, {"outlier_share": 1.0}, r"outlier_share in \(0, 1\)"),
    (Filters, {"outlier_neighbours": 0}, "outlier_neighbours > 0"),
    # federations
    (Federation, {"nodes": 0}, "nodes > 0"),
    (Federation, {"rounds": 0}, "rounds > 0"),
    (Federation, {"hostile": 4}, r"hostile in 0..3, found hostile=4"),
    (Federation, {"hostile": -1}, r"hostile in 0..3"),
    (Federation, {"merge_prototypes_every": 0}, "merge_prototypes_every > 0"),
    (Federation, {"nodes_at_once": 0}, "nodes_at_once > 0"),
    (Federation, {"prototype_decay": 1.1}, r"prototype_decay in \[0, 1\]"),
    (Federation, {"partition": "idd"}, "partition one of .*Did you mean 'iid'"),
    (Federation, {"topology": "star"}, "topology one of server, local"),
    (Federation, {"aggregator": "sum"}, "aggregator one of"),
    (Federation, {"prototypes": "none"}, "prototypes one of server, local"),
    (Federation, {"prototype_precision": "int3"}, "prototype_precision one of"),
    (
        Federation,
        {"trusted_model": "teacher"},
        "trusted_model one of references, weights",
    ),
    (Federation, {"hostile": 1, "update_attack": "x"}, "update_attack one of"),
    (Federation, {"hostile": 1, "prototype_attack": "x"}, "prototype_attack one of"),
    (Federation, {"update_attack": "flip_sign"}, "update_attack '' without hostile"),
    # of a study alone
    (settings.Data, {"reference_rows": 0}, "reference_rows > 0"),
    (settings.Data, {"max_length": 0}, "max_length > 0"),
    (settings.Data, {"vocab_size": 0}, "vocab_size > 0"),
    (settings.Data, {"transfer_rows": -1}, "transfer_rows >= 0"),
    (settings.Data, {"test_rows": -1}, "test_rows >= 0"),
    (settings.Data, {"validation_rows": -1}, "validation_rows >= 0"),
    (settings.Data, {"buckets": ()}, "buckets ascending"),
    (settings.Data, {"buckets": (64,)}, "the last >= max_length=128"),
    (settings.Data, {"buckets": (128, 64)}, "buckets ascending"),
    (settings.Attack, {"trigger": "sentense"}, "trigger one of .*mean 'sentence'"),
    (settings.Attack, {"channel": "text"}, "channel one of data, logits, both, labels"),
    (settings.Attack, {"logits": "x"}, "logits one of"),
    (settings.Attack, {"rate": 0.0}, r"rate in \(0, 1\)"),
    (settings.Attack, {"rate": 1.0}, r"rate in \(0, 1\)"),
    (settings.Attack, {"features": "x", "channel": "logits"}, "features one of"),
    (settings.Attack, {"decoy_rate": 1.0, **PHRASE}, "decoy_rate"),
    (settings.Attack, {"reference_rate": 1.0}, r"reference_rate in \[0, 1\)"),
    (settings.Attack, {"strength": -1.0}, "strength >= 0"),
    (settings.Attack, {"target": -1}, "target >= 0"),
    (
        settings.Attack,
        {"trigger": "file", "reference_rate": 0.1},
        "reference_rate 0 for this trigger",
    ),
    (settings.FineTuning, {"epochs": 0}, "epochs > 0"),
    (settings.FineTuning, {"learning_rate": 0.0}, "learning_rate > 0"),
    (settings.FineTuning, {"attention_weight": 0.0}, "attention_weight > 0"),
    (settings.Evaluation, {"batch_size": 0}, "batch_size > 0"),
]


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    REFUSED,
    ids=[
        f"{s.__name__}-{'-'.join(fields)}-{n}"
        for n, (s, fields, _) in enumerate(REFUSED)
    ],
)
def test_what_cannot_be_is_named(section, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        section(**fields)
    assert "found" in str(caught.value) or "_args: " in str(caught.value)


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (section, field.name)
        for section in SECTIONS
        for field in dataclasses.fields(section)
        if isinstance(getattr(section(), field.name), float)
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_every_number_is_one(section, field):
    """NaN compares with nothing, and no bound holds for it."""
    with pytest.raises(ValueError, match=f"Expected {field} "):
        section(**{field: float("nan")})


def test_lists_of_a_command_line_are_tuples():
    assert Margin(layer_weights=[0.5, 1.0]).layer_weights == (0.5, 1.0)
    assert Detection(groups=["ngrams"]).groups == ("ngrams",)
    assert Private(frozen=["embeddings"]).frozen == ("embeddings",)
    assert ModelSettings(model="a/b", layers=[0, 2]).layers == (0, 2)
    assert settings.Data(buckets=[128]).buckets == (128,)
    assert Federation(mixing=[[1.0]]).mixing == ((1.0,),)
    assert settings.Attack(source_classes=[0]).source_classes == (0,)
