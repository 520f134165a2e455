"""Arms that do something differently, in a study that is otherwise the same."""

import pytest

from experiments import runtime
from experiments.study import check
from experiments.world import artifacts, scenarios
from experiments.world.scenarios import Scenario
from protojax.training import plans, predict
from tests.test_study import forget, metrics_of, run, tiny

SCENARIO = Scenario("files", 0, "data")


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """A finished study with variants: its config, folder and rows by arm."""
    folder = tmp_path_factory.mktemp("variants")
    forget()
    config = tiny(folder)
    del config.attacks["logits"]
    config.data.validation_rows = 40
    # One length, hence one program a model; what they learn is no subject here.
    config.data.buckets = (16,)
    config.teacher.epochs, config.student.epochs = 3, 1
    with config.unlocked():
        config.variants = {
            "drop": {"quarantine": {"action": "drop"}},
            "blind": {"detection": {"groups": ("sources",)}},
            "few": {"quarantine": {"references": 40}},
            "same": {},
        }
        config.variants.long = {"student": {"epochs": 2}}
    names = [name for name in config.variants if name != "long"]
    # Before the arm that it goes on from, which stays the study's.
    config.arms = ("fine_tuned+long", "plain", "defended")
    config.arms += tuple(f"defended+{name}" for name in names)
    checked = check.check(config)
    found = run(config, folder / "run", reported=True)
    rows = {row["arm"]: row for row in found["rows"]}
    return checked, folder / "run", rows


def test_a_variant_without_changes_is_its_arm(varied):
    _, _, rows = varied
    ignored = ("arm", "step_seconds", "step_ratio")
    base, same = (
        {key: value for key, value in rows[arm].items() if key not in ignored}
        for arm in ("defended", "defended+same")
    )
    assert base == same


def test_a_variant_changes_its_own_arm_only(varied):
    _, _, rows = varied
    assert rows["defended"]["transfer_rows"] == rows["defended+blind"]["transfer_rows"]
    assert rows["defended+drop"]["transfer_rows"] < rows["defended"]["transfer_rows"]
    found = [rows[arm]["quarantine_recall"] for arm in ("defended", "defended+blind")]
    assert found[0] > found[1] == 0
    few = rows["defended"]["transfer_rows"] - rows["defended+few"]["transfer_rows"]
    assert few == 40


def test_what_a_variant_goes_on_from_is_the_study_s_own(varied):
    config, workdir, _ = varied
    done = {line["run"]: line["dispatch"] for line in metrics_of(workdir)}
    context = runtime.Context(config, workdir, None, 0)
    plain = artifacts.student_model(context, SCENARIO, "plain")
    examples = artifacts.transfer(context, SCENARIO).examples
    tokens = predict.tokenize(plain, examples, config.lengths)
    plan = plans.epochs_plan(tokens.lengths, config.student, config.lengths, 0)
    assert done["files/seed0/data/plain"] == len(plan)


def test_variants_share_the_teacher_and_have_trusted_models_of_their_own(varied):
    _, workdir, _ = varied
    assert len(list(workdir.rglob("teacher"))) == 1
    assert len(list(workdir.rglob("teacher_transfer_*"))) == 1
    trained = {path.parent.name for path in workdir.rglob("trusted_model_0")}
    assert trained == {"folds", "folds_40"}


def test_validation_rows_stand_in_for_the_test_rows(varied):
    config, workdir, _ = varied
    context = runtime.Context(config, workdir, None, 0)
    splits = scenarios.task_data(context.config, "files", 0).splits
    parts = [set(part.texts) for part in splits[:3]]
    assert [len(part) for part in parts] == [300 - 40 - 80, 80, 40]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    # The test file's rows are nowhere.
    text = (workdir.parent / "test.tsv").read_text()
    train = (workdir.parent / "train.tsv").read_text()
    unseen = {line.split("\t")[0] for line in text.splitlines()[1:]}
    unseen -= {line.split("\t")[0] for line in train.splitlines()[1:]}
    assert unseen
    assert not unseen & set.union(*parts)


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        ("a+b", {}, "variant's name"),
        ("a", {"teacher": {"epochs": 1}}, "variants.a one of kd"),
        ("a", {"kd": {"heat": 1}}, "variants.a.kd one of divergence"),
        ("a", {"kd": {"temperature": -1.0}}, "variants.a: .*kd.temperature"),
        ("a", {"detection": {"claims": ("source",)}}, "variants.a: .*claims"),
        ("a", {"prototypes": {"num": 6.5}}, "variants.a: "),
        ("a", {"quarantine": {"references": 81}}, "variants.a: .*references"),
        ("a", {"quarantine": {"references": 15}}, "variants.a: .*false_rejection"),
    ],
)
def test_what_a_variant_may_not_change_is_said(tmp_path, name, fields, match):
    config = tiny(tmp_path)
    with config.unlocked():
        config.variants = {name: fields}
    config.arms = (f"defended+{name}",)
    with pytest.raises(ValueError, match=match):
        check.check(config)


@pytest.mark.parametrize("arm", ["defended+", "defended@", "defended+@"])
def test_an_empty_name_is_refused(tmp_path, arm):
    config = tiny(tmp_path)
    config.arms = (arm,)
    with pytest.raises(ValueError, match=r"a name behind \+ and @"):
        check.check(config)


def test_a_variant_that_the_data_forbid_is_said_before_training(tmp_path):
    config = tiny(tmp_path)
    config.arms = ("defended+deep",)
    with config.unlocked():
        config.variants = {"deep": {"features": {"layers": (-9,)}}}
    check.check(config)
    with pytest.raises(ValueError, match=r"variants.deep: .*features.layers in -2..1"):
        run(config, tmp_path / "run")


def test_an_arm_with_an_unknown_variant_is_refused(tmp_path):
    config = tiny(tmp_path)
    config.arms = ("defended+wild",)
    with pytest.raises(ValueError, match=r"after \+, one of"):
        check.check(config)
