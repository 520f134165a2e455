"""Pipelines from private rows to a shipped model, several side by side."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from protojax.base import Examples
from protojax.data import batches
from protojax.data.tokens import Tokens
from protojax.federated import nodes
from protojax.models import EncoderConfig, init_model
from protojax.pipelines import Watch
from protojax.pipelines.privacy import (
    RECIPES,
    Noise,
    Recipe,
    Rows,
    _replicas,
    accounting,
    audit_of,
    guarantee_of,
    named,
    run_family,
    shadow_logits,
    shared_of,
)
from protojax.pipelines.privacy import shared as shared_lib
from protojax.pipelines.privacy import training as training_lib
from protojax.pipelines.privacy.answers import soft_answers, votes
from protojax.pipelines.privacy.stopping import epochs_of
from protojax.pipelines.settings import Encoder
from protojax.privacy import complementary_halves, require_stated
from protojax.training import processes, programs
from protojax.training.predict import Lengths
from tests.tiny_job import SIZES, clean_rows

LENGTHS = Lengths(8, (8,))
TINY = Encoder(scratch=SIZES, learning_rate=1e-2, epochs=2, dropout=0.0, batch_size=8)
NOISE = Noise(
    noise_multiplier=1.0, batch_size=32, epochs=1, microbatch=8, reproducible=True
)
BASE = Recipe(teacher=TINY, student=TINY, teacher_noise=NOISE, student_noise=NOISE)
NAMES = ("teacher", "student_hard")


def examples(count, seed):
    rows = clean_rows(count, seed)
    labels = np.array([int(row.label == "music") for row in rows], np.int32)
    return Examples([row.text for row in rows], None, labels)


ROWS = Rows(examples(80, 0), examples(24, 1), examples(16, 2), 2)
MEMBERS = np.arange(80) % 2 == np.arange(4)[:, None] % 2


def recipes(*names, base=None):
    plain = dataclasses.replace(BASE, teacher_noise=Noise(), student_noise=Noise())
    return {name: named(name, base or plain) for name in names}


def shadowed(folder, found=None, *, rows=ROWS, members=MEMBERS, **options):
    found = recipes(*NAMES) if found is None else found
    return shadow_logits(
        found, rows, members, folder, lengths=LENGTHS, vocab_size=200, **options
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, shadowed(folder)


def setting(devices=1, found=None, rows=ROWS):
    mesh = nodes.make_mesh(devices, jax.devices()[:devices])
    return shared_of(
        rows,
        list((found or recipes(*NAMES)).values()),
        _replicas.Machine(mesh),
        lengths=LENGTHS,
        vocab_size=200,
        seed=0,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_named_and_keep_what_they_share(name):
    found = named(name, Recipe())
    assert named(name, Recipe()) == found
    assert hash(found) == hash(named(name, Recipe()))
    assert found.student == Recipe().student
    noisy = found.teacher_noise.used, found.student_noise.used
    assert any(noisy) == name.startswith(("dp_", "student_of_dp"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answers": "votes"}, "shards > 1 for votes"),
        ({"shards": 2, "shipped": "teacher"}, "shards 1 where the teacher"),
        ({"answers": "hard", "temperature": 2.0}, "temperature 1 unless"),
        ({"vote_noise": 1.0}, "vote_noise 0 without votes"),
        ({"transfer": "member"}, "transfer one of public, members, written"),
        ({"smoothing": 0.1, "teacher_noise": NOISE}, "smoothing 0 with noise"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**changes)


def test_noise_is_given_once():
    with pytest.raises(ValueError, match="epsilon 0 with noise_multiplier"):
        Noise(epsilon=1.0, noise_multiplier=1.0)


def test_a_batch_gathered_on_the_device_is_that_of_the_host():
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(1, 9, (5, 8)), np.array([8, 3, 5, 2, 8])
    ids = np.where(np.arange(8) < lengths[:, None], ids, 7).astype(np.int32)
    tokens = Tokens(ids, (ids % 2).astype(np.int32), lengths.astype(np.int32), 7)
    labels, targets = np.arange(5, dtype=np.int32), rng.normal(size=(5, 2))
    rows = np.array([4, -1, 2, 1])
    wanted = batches.make_batch(
        tokens,
        labels,
        batches.Dispatch(8, rows[None]),
        teacher_logits=targets.astype(np.float32),
    )
    held = _replicas.held(tokens, nodes.make_mesh(1, jax.devices()[:1]))
    gather = jax.jit(_replicas.batch_of)
    found = gather(held, rows, labels, targets.astype(np.float32))
    for name in ("input_ids", "attention_mask", "labels", "where", "teacher_logits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name)[0])
    types = np.where(found.attention_mask, found.token_type_ids, 0)
    np.testing.assert_array_equal(types, wanted.token_type_ids[0])


def test_soft_answers_are_those_of_the_mean_probability():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    found = soft_answers(logits)
    for k, row in itertools.product(range(2), range(4)):
        each = [np.exp(z) / np.exp(z).sum() for z in logits[k, :, row]]
        np.testing.assert_allclose(np.exp(found[k, row]), np.mean(each, 0), rtol=1e-5)


def test_votes_are_counted_one_by_one():
    logits = np.random.default_rng(0).normal(size=(2, 5, 40, 3))
    found = votes(logits, 0.0, [np.random.default_rng(0)] * 2)
    for k, row in itertools.product(range(2), range(40)):
        counts = [0, 0, 0]
        for teacher in range(5):
            counts[int(np.argmax(logits[k, teacher, row]))] += 1
        assert found[k, row] == counts.index(max(counts))


def test_noise_of_votes_has_its_deviation():
    # Two teachers say class 0: the other wins where its noise is higher by 2.
    logits = np.tile(np.array([1.0, 0.0]), (1, 2, 20000, 1))
    found = votes(logits, 2.0, [np.random.default_rng(0)])
    # P(N(0, 2 * 2^2) > 2) = 1 - Phi(0.7071)
    assert abs(found.mean() - 0.23975) < 0.01


def test_pipelines_side_by_side_are_a_loop(whole):
    alone, traced = setting(), []
    private, _, test = alone.rows.places
    for number in (0, 3):
        traced.append(sum(programs.TRACES.values()))
        found = run_family(alone, recipes(*NAMES), MEMBERS[[number]], [number])
        for name, outcome in found.items():
            np.testing.assert_allclose(
                outcome.logits[0, private],
                whole[1][name].logits[number],
                rtol=1e-5,
                atol=1e-5,
            )
            said = outcome.logits[0, test].argmax(-1)
            accuracy = whole[1][name].accuracy[number]
            assert accuracy == np.mean(said == ROWS.test.labels)
    # Teachers and students of one kind share a program, and so do groups.
    assert sum(programs.TRACES.values()) == traced[1] <= traced[0] + 1


def test_pipelines_differ_and_learn_their_own_half(whole):
    logits = whole[1]["teacher"].logits
    assert not np.allclose(logits[0], logits[2])
    right = logits.argmax(-1) == ROWS.private.labels
    assert right[MEMBERS].mean() > right[~MEMBERS].mean()


def test_only_logits_are_kept(whole):
    folder, _ = whole
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 * 4
    for path in files:
        assert load_file(path)["logits"].shape == (96, 2)


def test_what_was_stopped_goes_on(whole, tmp_path):
    calls = itertools.count()

    def stop(units):
        if next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shadowed(tmp_path, recipes("teacher", "early"), watch=Watch(advance=stop))
    before = sorted(tmp_path.rglob("*.safetensors"))
    assert len(before) == 4
    # Another recipe of the same teacher, and one file that was damaged.
    damaged = before[1].read_bytes()
    before[1].write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    found = shadowed(tmp_path)
    for name in NAMES:
        np.testing.assert_array_equal(found[name].logits, whole[1][name].logits)


def test_nothing_is_computed_twice(whole):
    done = []
    shadowed(whole[0], watch=Watch(total=done.append, advance=done.append))
    assert done == [0]


def test_pipelines_of_whole_groups_may_differ_in_size(whole, tmp_path):
    _, before = whole
    uneven = MEMBERS.copy()
    uneven[1, :4] = True  # two rows more
    found = shadowed(tmp_path, recipes("teacher"), members=uneven, most_apart=2)
    logits = found["teacher"].logits
    # The others learn as they did.
    others = [0, 2, 3]
    np.testing.assert_array_equal(logits[others], before["teacher"].logits[others])
    assert not np.allclose(logits[1], before["teacher"].logits[1])
    with pytest.raises(ValueError, match="equally many in all pipelines, up to 1"):
        shadowed(tmp_path, recipes("teacher"), members=uneven, most_apart=1)


def test_other_rows_are_other_files(whole, tmp_path):
    names = {path.name for path in whole[0].rglob("*.safetensors")}
    labels = 1 - ROWS.private.labels
    other = ROWS._replace(private=ROWS.private._replace(labels=labels))
    shadowed(tmp_path, recipes("teacher"), rows=other)
    shadowed(tmp_path, recipes("teacher"), members=~MEMBERS)
    shadowed(tmp_path, recipes("teacher"), seed=1)
    found = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert len(found) == 12
    assert not names & found


def test_a_student_sees_public_rows_and_a_teacher_its_members():
    found = setting()
    private, _, _ = found.rows.places
    own = [private[MEMBERS[0]]]
    plan = training_lib._plans(own, TINY, found, [0], private=False)[0]
    seen = np.sort(plan[plan >= 0])
    np.testing.assert_array_equal(seen, np.repeat(own[0], TINY.epochs))
    # A student of members, or of written texts, in place of public rows is another.
    on = recipes("student", "student_on_members")
    on["student_written"] = dataclasses.replace(on["student"], transfer="written")
    with pytest.raises(ValueError, match="public, where nothing is written"):
        setting(found=on)
    rows = ROWS._replace(written=examples(20, 3))
    np.testing.assert_array_equal(rows.transfer("written"), 120 + np.arange(20))
    three = run_family(setting(found=on, rows=rows), on, MEMBERS[:1], [0])
    logits = [one.logits for one in three.values()]
    assert all(one.shape == (1, 140, 2) for one in logits)
    for first, second in itertools.combinations(logits, 2):
        assert not np.allclose(first, second)


def test_a_head_that_a_checkpoint_lacks_is_drawn_by_each_pipeline():
    config = EncoderConfig(
        family="bert", vocab_size=20, max_positions=8, num_labels=2, **SIZES
    )
    model = init_model(config, seed=7)
    head = ("pooler", "classifier")
    # The whole head is of the seed; of another seed it was read from a file.
    assert shared_lib.fresh_head(model, 7) == head
    assert shared_lib.fresh_head(model, 8) == ()
    read = {**model.params, "pooler": init_model(config, seed=3).params["pooler"]}
    assert shared_lib.fresh_head(model._replace(params=read), 7) == ("classifier",)
    learner = shared_lib.Learner(model, None, None, False, head)
    one, two = (training_lib.initial_params(learner, seed) for seed in (0, 1))
    for name, part in model.params.items():
        same = jax.tree.map(np.array_equal, one[name], two[name])
        assert all(jax.tree.leaves(same)) is (name not in head)
        if name not in head:
            assert one[name] is part
    alone = learner._replace(head=())
    assert training_lib.initial_params(alone, 0) is model.params


def test_shards_are_disjoint_and_hold_all_members():
    found, rows = setting(), np.flatnonzero(MEMBERS[0])
    family = recipes("shards_vote")["shards_vote"].family
    parts = training_lib._shards(found, rows, family, 0)
    assert [len(part) for part in parts] == [10] * 4
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), rows)


def test_every_kind_of_answer_trains_a_student():
    found = recipes("shards_mean", "shards_vote")
    both = run_family(setting(found=found), found, MEMBERS[:1], [0])
    assert not np.allclose(*(one.logits for one in both.values()))
    assert all(np.isfinite(one.logits).all() for one in both.values())


def test_secret_noise_is_drawn_anew_and_recorded_noise_is_nominal():
    logits = []
    for secret in (False, False, True, True):
        noise = dataclasses.replace(NOISE, reproducible=not secret)
        found = dataclasses.replace(BASE, shipped="teacher", teacher_noise=noise)
        alone = {"private": found}
        outcome = run_family(setting(found=alone), alone, MEMBERS[:1], [0])
        logits.append(outcome["private"].logits)
        assert guarantee_of(found, 40, 24).nominal is not secret
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[2], logits[3])


def test_epsilon_of_one_gaussian_is_that_of_its_formula():
    # The least over orders a of a / (2 s^2) + log(1/d) / (a - 1) is looser than ours.
    noise, delta = 4.0, 1e-5
    orders = 1 + np.arange(1, 2000) / 10
    loose = orders / (2 * noise**2) + np.log(1 / delta) / (orders - 1)
    found = accounting.epsilon_of(noise=noise, delta=delta)
    assert 0.75 * loose.min() < found <= loose.min()
    assert accounting.epsilon_of(noise=noise, delta=delta, num_steps=4) > found


def test_guarantees_are_stated_where_there_are_any():
    votes_ = Recipe(shards=4, answers="votes", vote_noise=8.0)
    stated = guarantee_of(votes_, 100, 10)
    wanted = accounting.epsilon_of(noise=8 / 2**0.5, delta=1e-4, num_steps=10)
    assert stated.epsilon == wanted
    # The student's noise does not protect what its teacher learned.
    assert guarantee_of(named("dp_student", Recipe()), 1000, 10) is None
    assert guarantee_of(named("student", Recipe()), 1000, 10) is None
    assert guarantee_of(named("dp_teacher_vacuous", Recipe()), 1000, 10).epsilon > 50


def test_what_states_no_epsilon_is_not_audited_and_a_broken_one_is_refuted():
    members = complementary_halves(200, 8, seed=0)
    labels, kinds = np.arange(200) % 2, np.full(200, "mislabelled")
    own = np.where(labels == np.arange(2)[:, None], 3.0, 0.0).T
    teacher = np.where(members[..., None], own, own[:, ::-1])
    given = teacher, teacher, members, labels
    assert audit_of(None, *given, kinds=kinds) is None
    # The noise of a guarantee, in a training that had none.
    stated = accounting.Guarantee(1.0, 1e-5, 4.0, False)
    found = audit_of(stated, *given, kinds=kinds)
    assert found.bound == found.control == found.ceiling > 1
    with pytest.raises(ValueError, match="The stated epsilon 1 does not hold"):
        require_stated(found.bound, stated.epsilon)
    # The same answers to members and others.
    silent = np.broadcast_to(own, teacher.shape)
    assert audit_of(stated, silent, None, *given[2:], kinds=kinds).bound == 0


def test_epochs_are_chosen_on_public_rows():
    found = epochs_of(
        examples(160, 5),
        dataclasses.replace(BASE, teacher_noise=Noise(), student_noise=Noise()),
        num_labels=2,
        rows=80,
        most=3,
        lengths=LENGTHS,
        vocab_size=200,
        seed=0,
    )
    assert found in (1, 2, 3)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (MEMBERS[:, 1:], r"members.shape \[pipelines, 80\]"),
        (np.arange(80) < np.array([[40], [41]]), "equally many in all pipelines"),
    ],
)
def test_members_that_do_not_fit_are_refused(members, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        shadowed(tmp_path, members=members)


def test_devices_that_the_environment_sets_are_kept():
    assert processes.use_all_cores() == jax.device_count()
