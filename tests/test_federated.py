"""Studies over many nodes: who holds what, who learns what, what is sent."""

import functools
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from experiments import runtime
from experiments.arms import ARMS, communication_cost, federated, merges
from experiments.study import check
from experiments.study.defaults import federation
from experiments.world import artifacts, scenarios, trusted_model
from experiments.world.evidence import World
from experiments.world.scenarios import Scenario
from protojax import prototypes
from protojax.federated import communication, node_checkpoint
from protojax.models import hf
from protojax.training import programs
from tests import golden
from tests.test_study import forget, metrics_of, run, run_killed, tiny

# All of four nodes that are dealt alike: what has a shape of its own is compiled anew.
FEDERATIONS = {
    "server": {"nodes": 4, "rounds": 2},
    "ring": {
        "nodes": 4,
        "topology": "ring",
        "rounds": 2,
        "partition": "dirichlet",
        "partition_args": {"alpha": 5.0, "min_rows": 20},
    },
    "hostile": {
        "nodes": 4,
        "rounds": 2,
        "hostile": 1,
        "update_attack": "scale",
        "aggregator": "median",
        "prototypes": "local",
        "prototype_attack": "send_nan_vectors",
        "prototype_precision": "int8",
        "trusted_model": "weights",
    },
}
RUNS = ("clean", "plain@server", "defended@server", "plain@ring", "defended@hostile")


def make_config(folder, **changes):
    config = tiny(folder)
    config.arms = RUNS
    config.federations = {
        name: federation(**settings) for name, settings in FEDERATIONS.items()
    }
    del config.attacks["logits"]
    config.data.transfer_rows = 204
    config.detection.claims = ("teacher",)
    config.prototypes.num = 4
    config.student.epochs = 12
    config.update_from_flattened_dict(changes)
    return config


MERGED = []  # the prototypes of all nodes after each merge


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federated")
    forget()
    programs.TRACES.clear()
    config = make_config(folder)
    check.check(config)
    merge = merges.merge_prototypes

    def watched(*args):
        state = merge(*args)
        MERGED.append(jax.device_get(state.nodes.prototypes))
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merges, "merge_prototypes", watched)
        found = run(config, folder / "run", reported=True)
    return config, folder / "run", found, dict(programs.TRACES)


def test_no_figure_of_the_federations_moves(finished):
    golden.skip_elsewhere("federated")
    _, _, found, _ = finished
    golden.check("federated", golden.figures(found["rows"]))


def context_of(config, workdir):
    class Bar:
        def update(self, *args, **settings):
            pass

    return runtime.Context(check.check(config), workdir, Bar(), 0)


def rows_of(found):
    return {row["arm"]: row for row in found["rows"]}


def test_every_arm_has_its_row(finished):
    config, workdir, found, _ = finished
    rows = rows_of(found)
    assert set(rows) == set(RUNS)
    for name, row in rows.items():
        _, _, where = name.partition("@")
        assert 0 <= row["clean_metric"] <= 1
        assert row["null_asr"] == rows["clean"]["asr"]
        if not where:
            assert "node_accuracies" not in row
            continue
        honest = config.federations[where].nodes - config.federations[where].hostile
        assert len(row["node_accuracies"]) == honest
        assert row["worst_node"] == min(row["node_accuracies"])
        assert row["node_variance"] == pytest.approx(np.var(row["node_accuracies"]))
    assert "worst node" in (workdir / "results.md").read_text()
    assert "defended@hostile" in (workdir / "report.html").read_text()


def test_nodes_learn_what_one_place_would(finished):
    rows = rows_of(finished[2])
    assert rows["plain@server"]["clean_metric"] > 0.7
    assert rows["plain@server"]["transfer_rows"] == rows["clean"]["transfer_rows"]
    # All references are learned from once, by whichever node.
    assert rows["defended@server"]["transfer_rows"] == 204 + 80


def test_each_step_is_compiled_at_most_once_a_shape(finished):
    traces = finished[3]
    assert set(traces.values()) == {1}, traces
    # Nodes weigh as many rows as they have, and in the trusted model's arm they have
    # more.
    assert sum(name.startswith("merge") for name, _ in traces) == 4


def test_a_server_has_one_student_and_neighbours_one_each(finished):
    _, workdir, _, _ = finished
    folder = workdir / "files/seed0/data"
    hf.load_hf(folder / "plain@server/model", num_labels=2)
    students = [
        hf.load_hf(folder / f"plain@ring/node_00{node}/model", num_labels=2)
        for node in range(4)
    ]
    weights = [student.params["classifier"]["kernel"] for student in students]
    assert not np.array_equal(weights[0], weights[1])


def test_traffic_is_that_of_the_arrays(finished):
    config, workdir, found, _ = finished
    rows = rows_of(found)
    student = hf.load_hf(workdir / "files/seed0/data/plain@server/model", num_labels=2)
    # Width 16 to the teacher's 24, learned with the student.
    size = communication.num_bytes(student.params) + 16 * 24 * 4
    plain = rows["plain@server"]["traffic"]
    assert plain == {
        "parameters_per_round": size,
        "prototypes_per_round": 0,
        "prototypes_once": 0,
        "trusted_model_once": 0,
        "total": 2 * 2 * size,
    }
    ours = rows["defended@server"]["traffic"]
    held = 4 * (24 * 4 + 4 + 4)
    assert ours["prototypes_once"] == held == rows["defended@server"]["bytes_per_node"]
    context = context_of(config, workdir)
    references = scenarios.task_data(context.config, "files", 0).splits.references
    assert ours["trusted_model_once"] == communication.text_bytes(references)
    assert ours["total"] == plain["total"] + held + ours["trusted_model_once"]
    # Two neighbours hear what a node of a ring sends.
    assert rows["plain@ring"]["traffic"]["parameters_per_round"] == 2 * size
    assert rows["defended@server"]["prototype_error"] == 0
    assert 0 < rows["defended@hostile"]["prototype_error"] < 0.01
    assert rows["plain@server"]["prototype_error"] is None
    hostile = rows["defended@hostile"]["traffic"]
    assert hostile["prototypes_per_round"] == 4 * (24 + 4 + 4 + 4)
    folder = workdir / "files/seed0/no_attack/folds"
    models = [hf.load_hf(path, num_labels=2) for path in folder.glob("*/model")]
    sizes = [communication.num_bytes(model.params) for model in models]
    assert len(sizes) == 3
    assert hostile["trusted_model_once"] == sum(sizes)


def test_nodes_hear_what_all_would_hear_together(finished):
    config, workdir, _, _ = finished
    context = context_of(config, workdir)
    whole = Scenario("files", 0, "data", "server")
    together = trusted_model.folds(context, whole.whole)
    count = len(together.on_rows.classes)
    for node, rows in enumerate(scenarios.node_rows(context.config, whole)):
        world = World(context, whole._replace(node=node))
        evidence, folds = world.evidence(), world.folds()
        np.testing.assert_array_equal(
            folds.on_rows.logits, together.on_rows.logits[rows]
        )
        np.testing.assert_array_equal(
            folds.readers[: len(rows)], together.readers[rows]
        )
        assert len(folds.readers) - len(rows) == len(together.readers) - count == 80
        again = world.ask("again", evidence.transfer)
        np.testing.assert_allclose(again.logits, evidence.teacher.logits, atol=1e-5)


def test_hostile_nodes_hold_all_the_poison(finished):
    config, workdir, _, _ = finished
    context = context_of(config, workdir)
    scenario = Scenario("files", 0, "data", "hostile")
    truth = scenarios.poisoned(context.config, scenario.whole).rows
    dealt = scenarios.node_rows(context.config, scenario.clean)
    parts = scenarios.node_rows(context.config, scenario)
    assert [len(rows) for rows in parts] == [len(rows) for rows in dealt]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(truth)))
    found = [
        int(scenarios.poisoned(context.config, scenario._replace(node=node)).rows.sum())
        for node in range(4)
    ]
    assert found[:3] == [0, 0, 0]
    assert sum(found) == truth.sum() > 0
    # Without an attack nobody is given anything, and nobody is hostile.
    assert not federated.hostile_nodes(
        context.config.federations["hostile"], scenario.clean
    ).any()


def test_hostile_nodes_do_not_defend(finished):
    config, workdir, _, _ = finished
    context = context_of(config, workdir)
    scenario = Scenario("files", 0, "data", "hostile")
    recipes = federated.node_recipes(context, scenario, ARMS["defended"])
    assert [recipe.verdict is None for recipe in recipes] == [False] * 3 + [True]
    for recipe in recipes[3:]:
        np.testing.assert_array_equal(
            recipe.columns["assigned_class"], recipe.examples.labels
        )
        assert recipe.objective == recipes[0].objective
    assert len({recipe.prototypes.vectors.shape for recipe in recipes}) == 1


def test_nodes_share_the_references_out(finished):
    config, workdir, _, _ = finished
    context = context_of(config, workdir)
    scenario = Scenario("files", 0, "data", "server")
    shares = [
        scenarios.own_references(context.config, scenario._replace(node=node))
        for node in range(4)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(80))


def test_broadcast_prototypes_are_the_servers(finished):
    config, workdir, _, _ = finished
    context = context_of(config, workdir)
    scenario = Scenario("files", 0, "data", "server")
    own = artifacts.constraint_prototypes(context, scenario.whole)
    for node in range(4):
        held = artifacts.held_prototypes(context, scenario._replace(node=node))
        jax.tree.map(np.testing.assert_array_equal, held, own)
    saved = prototypes.load_prototypes(
        workdir / "files/seed0/data/defended@server/prototypes_0.safetensors"
    )
    np.testing.assert_array_equal(saved.vectors, own.vectors[0])


def test_local_prototypes_are_exported_as_the_nodes_end_with_them(finished):
    config, workdir, _, _ = finished
    folder = workdir / "files/seed0/data/defended@hostile"
    assert not list(folder.glob("prototypes_*"))
    assert len(MERGED) == config.federations.hostile.rounds
    context = context_of(config, workdir)
    for node in range(4):
        exported = prototypes.load_prototypes(
            folder / f"node_{node:03d}/prototypes_0.safetensors"
        )
        last = jax.tree.map(lambda leaf, node=node: leaf[node, 0], MERGED[-1])
        jax.tree.map(np.testing.assert_array_equal, exported, last)
        scenario = Scenario("files", 0, "data", "hostile", node)
        first = artifacts.held_prototypes(context, scenario)
        assert not np.array_equal(exported.vectors, first.vectors[0])


def test_what_a_node_that_does_not_defend_says_in_a_column_of_a_defence(finished):
    config, workdir, _, _ = finished
    context = context_of(config, workdir)
    recipe = ARMS["plain"].recipe(
        World(context, Scenario("files", 0, "data", "hostile", 3))
    )
    labels = federated._claimed(recipe, "assigned_class")
    np.testing.assert_array_equal(labels, recipe.examples.labels)
    with pytest.raises(ValueError, match="columns of a hostile node"):
        federated._claimed(recipe, "teacher_attention")


def test_what_the_teacher_says_of_references_is_computed_once(finished, monkeypatch):
    config, workdir, _, _ = finished
    context, asked = context_of(config, workdir), []
    predicted = artifacts.predicted

    def counted(context, name, *rest):
        asked.append(name)
        return predicted(context, name, *rest)

    monkeypatch.setattr(artifacts, "predicted", counted)
    scenario = Scenario("files", 0, "data", "hostile")
    found = [
        artifacts.reference_outputs(context, scenario._replace(node=node))
        for node in (0, 1, 0)
    ]
    assert asked == ["files/seed0/data/teacher_references"]
    assert found[0] is found[1] is found[2]


def test_a_killed_federation_resumes_to_the_same_numbers(finished, tmp_path):
    config, workdir, expected, _ = finished
    changed = config.copy_and_resolve_references()
    changed.arms = ("clean", "defended@hostile", "plain@ring")
    found = run_killed(changed, tmp_path / "run", dispatches=35)
    before, after = rows_of(expected), rows_of(found)
    for arm in changed.arms:
        for measure in ("clean_metric", "asr", "node_accuracies", "traffic"):
            assert after[arm].get(measure) == before[arm].get(measure)
    for name in ("plain@ring/node_001", "defended@hostile"):
        students = [
            hf.load_hf(root / "files/seed0/data" / name / "model", num_labels=2)
            for root in (workdir, tmp_path / "run")
        ]
        jax.tree.map(
            np.testing.assert_array_equal, *(student.params for student in students)
        )
    held = list((workdir / "files/seed0/data/defended@hostile").rglob("prototypes_*"))
    assert len(held) == 4
    for path in held:
        other = tmp_path / "run" / path.relative_to(workdir)
        assert other.read_bytes() == path.read_bytes()
    metrics = metrics_of(tmp_path / "run")
    keys = [(line["run"], line["dispatch"]) for line in metrics]
    assert len(keys) == len(set(keys))


def test_finished_federations_keep_a_checkpoint_if_asked(finished, tmp_path):
    config = finished[0].copy_and_resolve_references()
    config.keep_checkpoints, config.arms = True, ("plain@server",)
    teacher = "files/seed0/data/teacher"
    shutil.copytree(finished[1] / teacher, tmp_path / "run" / teacher)
    run(config, tmp_path / "run")
    folder = tmp_path / "run/files/seed0/data/plain@server/checkpoints"
    assert node_checkpoint.latest_step(folder, 4) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("plain@four",)}, "one of hostile, ring, server"),
        ({"arms": ("plian@server",)}, "Did you mean 'plain'"),
        ({"federations.server.nodes": 0}, "federations.server.nodes > 0"),
        ({"federations.server.rounds": 0}, "federations.server.rounds > 0"),
        ({"federations.server.hostile": 4}, r"hostile in 0..3"),
        ({"federations.server.partition": "idd"}, "Did you mean 'iid'"),
        ({"federations.server.topology": "rings"}, "Did you mean 'ring'"),
        ({"federations.server.aggregator": "krum"}, "num_byzantine"),
        ({"federations.server.update_attack": "scale"}, "without .*hostile"),
        ({"federations.server.prototypes": "remote"}, "prototypes one of"),
        ({"federations.server.prototype_precision": "int9"}, "'int8'"),
        ({"federations.server.prototype_decay": 2.0}, r"prototype_decay in \[0, 1\]"),
        ({"federations.ring.partition_args.alpha": 0.0}, "alpha > 0"),
        (
            {
                "federations.server.topology": "given",
                "federations.server.mixing": ((1.0,),),
            },
            "a row a node",
        ),
    ],
)
def test_bad_federations_are_named(tmp_path, change, message):
    config = make_config(tmp_path)
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        check.check(config)


def test_too_few_neighbours_for_a_rule_are_named(tmp_path):
    config = make_config(tmp_path)
    config.federations.ring = federation(
        nodes=8,
        topology="ring",
        aggregator="trimmed_mean",
        aggregator_args={"num_byzantine": 2},
    )
    with pytest.raises(ValueError, match=r"Expected federations\.ring\.num_nodes >= 5"):
        check.check(config)


def test_sources_decide_where_rows_go(tmp_path):
    config = make_config(tmp_path)
    for name in ("train", "test"):
        path = tmp_path / f"{name}.tsv"
        lines = path.read_text().splitlines()
        marked = [lines[0] + "\tsite"] + [
            f"{line}\tsite{i % 7}" for i, line in enumerate(lines[1:])
        ]
        path.write_text("\n".join(marked) + "\n")
    config.data.files.source = "site"
    config.federations.server.partition = "source"
    context = context_of(config, tmp_path / "run")
    scenario = Scenario("files", 0, None, "server")
    parts = scenarios.node_rows(context.config, scenario)
    sources = np.array(
        scenarios.task_data(context.config, "files", 0).splits.transfer.sources
    )
    owners = [set(sources[rows]) for rows in parts]
    assert set.union(*owners) == {f"site{i}" for i in range(7)}
    assert sum(map(len, owners)) == 7


def test_a_partition_by_source_needs_sources(tmp_path):
    config = make_config(tmp_path)
    config.federations.server.partition = "source"
    context = context_of(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"data\.files\.source"):
        scenarios.node_rows(context.config, Scenario("files", 0, None, "server"))


def test_rules_without_weights_ignore_them():
    section = ml_collections.FrozenConfigDict(federation(nodes=2))
    rule = merges.rule_of(section, weighted=False)
    updates = np.array([[0.0], [2.0]], np.float32)
    assert rule(updates, weights=np.array([1e30, 1.0])).tolist() == [1.0]
    assert merges.rule_of(section, weighted=False) is rule
    assert isinstance(rule, functools.partial)


def test_a_detector_without_a_trusted_model_is_sent_none(finished):
    config, workdir, _, _ = finished
    context = context_of(config, workdir)
    name = next(iter(context.config.federations))
    scenario = Scenario("files", 0, "data", name)
    sent = {
        arm: communication_cost.count_bytes(
            context,
            scenario,
            ARMS[arm].recipe(World(context, scenario)),
            links=1,
            params_bytes=4,
        )["trusted_model_once"]
        for arm in ("cube", "defended")
    }
    assert sent["cube"] == 0 < sent["defended"]
