"""Settings of pipelines: what they refuse, and what follows from them."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from protojax.base import Examples
from protojax.detection.settings import Level, OutputDetection
from protojax.models.language import WriterSettings
from protojax.pipelines.calibration import TeacherCalibration
from protojax.pipelines.distillability import DiagnosisSettings, StudentSettings
from protojax.pipelines.outputs import writing
from protojax.pipelines.outputs.settings import (
    Decoding,
    OutputColumns,
    OutputDefence,
    TokenDistillation,
)
from protojax.pipelines.privacy import inputs
from protojax.pipelines.privacy.accounting import Guarantee, guarantee_of, noise_of
from protojax.pipelines.privacy.recipes import RECIPES, families, named
from protojax.pipelines.privacy.run_settings import Privatise
from protojax.pipelines.privacy.settings import Noise, Recipe
from protojax.pipelines.settings import Columns, Defence, PublicWriter
from protojax.training.predict import SequenceLengths
from protojax.training.step import TrainConfig

WRITER = PublicWriter(model="w")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (Noise, {"epsilon": -1.0}, "epsilon >= 0"),
        (Noise, {"noise_multiplier": -1.0}, "noise_multiplier >= 0"),
        (Noise, {"delta": 1.0}, r"delta in \(0, 1\)"),
        (Noise, {"clip_norm": 0.0}, "clip_norm > 0"),
        (Noise, {"epochs": 0}, "epochs > 0"),
        (Noise, {"learning_rate": 0.0}, "learning_rate > 0"),
        (Noise, {"batch_size": 31}, "batch_size >= 32"),
        *((Noise, {"microbatch": n}, "microbatch 1, 2, 4 or 8") for n in (0, 3, 16)),
        (Recipe, {"shipped": "both"}, "shipped one of student, teacher"),
        (Recipe, {"answers": "vote"}, "Did you mean 'votes'"),
        (Recipe, {"shards": 0}, "shards > 0"),
        (Recipe, {"temperature": 0.0}, "temperature > 0"),
        (Recipe, {"vote_noise": -1.0}, "vote_noise >= 0"),
        (Recipe, {"smoothing": 1.0}, r"smoothing in \[0, 1\)"),
        (Privatise, {"recipe": "student_hart"}, "Did you mean 'student_hard'"),
        (Privatise, {"recipe": "student_hart:3"}, "Did you mean 'student_hard'"),
        *(
            (
                Privatise,
                {"recipe": f"student:{n}"},
                "student:EPOCHS with EPOCHS >= 1",
            )
            for n in ("", "0", "06", "٣", "-1", "x", "1.5", "3:4")
        ),
        (
            Privatise,
            {"recipe": "student:3", "early_stopping": 4},
            "early_stopping 0 with student:3",
        ),
        (Privatise, {"overlap": "keep"}, "overlap one of error, drop"),
        (Privatise, {"early_stopping": -1}, "early_stopping >= 0"),
        (Privatise, {"at_once": 0}, "at_once > 0"),
        *((Privatise, {"pipelines": n}, "pipelines 0, or even") for n in (-2, 4, 7)),
        *((Privatise, {"canaries": x}, r"canaries in \(0, 0.5\]") for x in (0, 0.6)),
        (Privatise, {"columns": Columns(reference="ok")}, r"columns\.reference ''"),
        (
            Privatise,
            {"writer": WRITER, "columns": Columns(pair="b")},
            r"columns\.pair '' where texts are written",
        ),
        (
            Privatise,
            {"recipe": "dp_teacher_8", "columns": Columns(source="who")},
            r"columns\.source '' with a recipe whose epsilon is of single rows",
        ),
        (Defence, {"every": 0}, "every > 0"),
        (Columns, {"text": ""}, "text the name of a column"),
        (Columns, {"label": ""}, "label the name of a column"),
        (OutputColumns, {"output": ""}, "output the name of a column"),
        (Decoding, {"beams": 0}, "beams > 0"),
        (TokenDistillation, {"hard_weight": 1.1}, r"hard_weight in \[0, 1\]"),
        (TokenDistillation, {"divergence": "kl"}, "divergence one of"),
        (TokenDistillation, {"top_k": 0}, "top_k > 0"),
        (OutputDefence, {"action": "masks"}, "Did you mean 'mask'"),
        (OutputDefence, {"seed": -1}, "seed >= 0"),
        (Level, {"false_alarm": 1.0}, r"false_alarm in \(0, 1\)"),
        (Level, {"least": 0.0}, "least > 0"),
        (Level, {"groups": ()}, "groups not empty"),
        (Level, {"groups": ("ngrams", "ngrams")}, "groups without repetition"),
        (OutputDetection, {"shrinkage": 0.0}, "shrinkage > 0"),
        (DiagnosisSettings, {"text": ""}, "text the name of a column"),
        (DiagnosisSettings, {"draws": 0}, "draws > 0"),
        (DiagnosisSettings, {"least": 2.0}, r"least in \[0, 1\]"),
        (DiagnosisSettings, {"dtype": "float31"}, "Did you mean 'float32'"),
        (DiagnosisSettings, {"starts": (0, 1)}, "starts ascending, above 0"),
        (DiagnosisSettings, {"starts": (1, 1)}, "starts ascending"),
        (DiagnosisSettings, {"student_prompt": "{sauce}"}, "prompt"),
        (StudentSettings, {"own_share": 1.5}, r"own_share in \[0, 1\]"),
        (StudentSettings, {"gate": 0.0}, r"gate in \(0, 1\]"),
        (StudentSettings, {"own_draws": 0}, "own_draws > 0"),
        (StudentSettings, {"normalizer": "word"}, "normalizer one of"),
        (TeacherCalibration, {"verifiers": ("equation",)}, "Did you mean 'equations'"),
        (TeacherCalibration, {"dtype": "int8"}, "dtype one of"),
        (WriterSettings, {"prompt": "{source} {source}"}, "prompt"),
        (SequenceLengths, {"max_output": 0}, "max_output > 0"),
        (SequenceLengths, {"buckets": ()}, "buckets pairs of two lengths"),
        (SequenceLengths, {"buckets": ((8,), (512, 64))}, "buckets pairs"),
        (SequenceLengths, {"buckets": ((512, 63),)}, "buckets whose last holds"),
        *(
            (SequenceLengths, {"buckets": (pair, (512, 64))}, "buckets ascending")
            for pair in ((512, 64), (600, 8), (8, 65))
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(section, changes, message):
    with pytest.raises(ValueError, match=message):
        section(**changes)


def test_lengths_of_sequences_may_grow_one_after_the_other():
    found = SequenceLengths(buckets=[[8, 8], [8, 64], [512, 64]])
    assert found.buckets == ((8, 8), (8, 64), (512, 64))


def test_a_group_is_a_trigger_by_its_chance_and_its_rows():
    level = Level(false_alarm=0.01, trigger_rows=10)
    assert level.is_trigger(0.01, 10)
    assert not level.is_trigger(0.0101, 10)
    assert not level.is_trigger(0.0, 9)


def test_a_text_of_a_student_is_divided_by_its_settings():
    assert StudentSettings(max_new=7).length == 7
    assert StudentSettings(normalizer="text").length is None


def test_noisy_training_has_its_own_rate_and_epochs():
    train = TrainConfig(learning_rate=1.0, epochs=3, weight_decay=0.5)
    assert Noise().over(train) == train
    noise = Noise(noise_multiplier=1.0, epochs=7, batch_size=40, learning_rate=0.1)
    wanted = {"learning_rate": 0.1, "epochs": 7, "batch_size": 40}
    assert noise.over(train) == dataclasses.replace(train, **wanted)


def test_a_recipe_learns_on_written_texts_where_there_is_a_writer():
    assert Privatise().chosen == named("student_hard", Recipe())
    written = Privatise(writer=WRITER).chosen
    assert written.transfer == "written"
    assert written.family == Privatise().chosen.family
    # Who learns on members' own texts keeps doing so.
    alone = Privatise(recipe="teacher", writer=WRITER).chosen
    assert alone.shipped == "teacher"


def test_a_student_states_the_epsilon_of_its_teacher():
    for epsilon in (8, 3, 1):
        teacher, student = (
            named(name, Recipe())
            for name in (f"dp_teacher_{epsilon}", f"student_of_dp_{epsilon}")
        )
        assert teacher.family == student.family
        assert teacher.teacher_noise.epsilon == epsilon
        found = guarantee_of(student, 200, 10)
        assert found == guarantee_of(teacher, 200, 10)
        assert found.epsilon == epsilon


def test_recipes_of_one_teacher_are_one_family():
    every = {name: named(name, Recipe()) for name in RECIPES}
    groups = families(every)
    assert {name for group in groups for name in group} == {*RECIPES}
    for group in groups:
        assert len({recipe.family for recipe in group.values()}) == 1
    assert len({next(iter(group.values())).family for group in groups}) == len(groups)


def test_the_noise_of_an_epsilon_is_that_of_one_gaussian_where_all_rows_take_part():
    noise = Noise(epsilon=4.0, batch_size=50, epochs=1)
    found = noise_of(noise, 50)
    # Balle and Wang, 2018, arXiv:1805.06530, theorem 8.
    half, shift = 1 / (2 * found), 4 * found
    cdf = stats.norm.cdf
    delta = cdf(half - shift) - np.exp(4) * cdf(-half - shift)
    assert 0.9 * noise.delta < delta <= noise.delta
    assert noise_of(Noise(noise_multiplier=0.7), 500) == 0.7
    stated = guarantee_of(Recipe(shipped="teacher", teacher_noise=noise), 50, 10)
    assert stated == Guarantee(4.0, noise.delta, found, False)
    # A student of the members' own texts undoes what its teacher promised.
    undone = Recipe(transfer="members", teacher_noise=noise)
    assert guarantee_of(undone, 500, 10) is None


def rows_of(private, public=40):
    def examples(count):
        return Examples(["a"] * count, None, np.zeros(count, np.int32))

    return inputs.Rows(examples(private), examples(public), examples(0), 2, None)


@pytest.mark.parametrize(
    ("changes", "private", "message"),
    [
        ({}, 39, "number of private rows >= 40"),
        ({"pipelines": 0}, 19, "number of private rows >= 40"),
        ({"recipe": "shards_vote"}, 79, "10 for each of recipe shards"),
        (
            {"recipe": "dp_teacher_8"},
            100,
            r"base\.teacher_noise\.batch_size <= 50, the rows that a model",
        ),
        (
            {"recipe": "dp_student"},
            400,
            r"base\.student_noise\.batch_size <= 40, the rows that a model",
        ),
    ],
)
def test_rows_that_are_too_few_are_named(changes, private, message):
    with pytest.raises(ValueError, match=message):
        inputs._check_sizes(Privatise(**changes), rows_of(private))


def test_rows_that_suffice_pass():
    inputs._check_sizes(Privatise(), rows_of(40))
    inputs._check_sizes(Privatise(pipelines=0), rows_of(20))
    inputs._check_sizes(Privatise(recipe="dp_teacher_8"), rows_of(128))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 9 + [" "], "group of a private row a name"),
        ([f"{number % 9}" for number in range(50)], "groups of private rows >= 10"),
    ],
)
def test_groups_that_cannot_be_halved_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        inputs._check_groups(groups)
    inputs._check_groups([str(number) for number in range(10)])
    inputs._check_groups(None)


@pytest.mark.parametrize(
    ("content", "held", "damaged"),
    [
        ('{"key": "k", "texts": ["a", "b"]}', ["a", "b"], False),
        ('{"key": "other", "texts": ["a"]}', [], False),
        ('{"texts": ["a"]}', [], True),
        ('{"key": "k", "texts": 1}', [], True),
        ("[]", [], True),
        ("{", [], True),
    ],
)
def test_texts_that_were_written_are_kept_where_they_are_whole(
    content, held, damaged, tmp_path, caplog
):
    path = tmp_path / "texts.json"
    assert writing._held(path, "k") == []
    path.write_text(content)
    assert writing._held(path, "k") == held
    assert ("texts.json is damaged" in caplog.text) == damaged
