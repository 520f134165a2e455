"""The calibration of a teacher: rollouts, rewards, the loop, and its command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from protojax import rl
from protojax.base import SequenceBatch
from protojax.models import wrap_tokenizer
from protojax.models.language import apply_fn, head_fn, init_model
from protojax.rl import calibration, problems, rewards, rollouts
from protojax.training.programs import TRACES
from protojax.training.trainer import Store
from tests import writers

SIGNS = "0123456789+="
SETTINGS = rl.Calibration(
    learning_rate=1e-2,
    steps=3,
    prompts=2,
    draws=3,
    passes=2,
    minibatches=2,
    max_new=4,
    held_out=0.3,
    evaluate_every=2,
    kl_budget=1e6,
    skill_loss=1.0,
    least_prob=1e-4,
)


def tokenizer(signs=SIGNS):
    """A token a character, with an end token that is the padding as well."""
    vocab = {sign: number for number, sign in enumerate(["<e>", *signs])}
    made = Tokenizer(WordLevel(vocab, unk_token="<e>"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return wrap_tokenizer(made, pad_token="<e>", eos_token="<e>")


def model(seed, signs=SIGNS):
    words = tokenizer(signs)
    config = writers.language_config(
        family="llama",
        vocab_size=len(words),
        encoder_layers=0,
        end_ids=(0,),
        hidden_size=8,
        head_dim=4,
        intermediate_size=8,
    )
    found = init_model(config, seed=seed, tokenizer=words)
    # Far from uniform, so that texts differ in their probability.
    return found._replace(params=jax.tree.map(lambda x: 8 * x, found.params))


TEACHER, PROXY = model(0), model(1)
PROBLEMS = rl.Problems(
    [f"{a}+{b}=" for a in range(3) for b in (1, 12)],
    [str(a + b) for a in range(3) for b in (1, 12)],
)


def world(proxy=PROXY, verifiers=("arithmetic",), **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return problems.build_world(TEACHER, proxy, PROBLEMS, settings, verifiers)


def drawn(place, key=0):
    rows = np.array([0, 1])
    key = jax.random.key(key)
    return problems.draw(place, TEACHER.params, rows, key, draws=3)


@pytest.fixture(scope="module")
def found():
    return drawn(world())


@jax.jit
def next_logits(params, ids, mask):
    given = SequenceBatch(ids, mask, ids[:, :1], mask[:, :1], mask[:, 0] > 0)
    states = apply_fn(TEACHER.config)(params, given).states
    return head_fn(TEACHER.config)(params, states)[0, 0]


def log_prob(of, prompt, ids):
    """The log probability of a text, by a forward pass over each prefix."""
    seen = of.tokenizer(prompt)["input_ids"]
    whole, total = np.zeros((1, 10), np.int32), 0.0
    whole[0, : len(seen) + len(ids)] = [*seen, *ids]
    for place, number in enumerate(ids):
        mask = np.arange(10)[None] < len(seen) + place
        logits = np.asarray(
            next_logits(of.params, whole, mask.astype(np.int32)), np.float64
        )
        total += logits[number] - np.log(np.exp(logits).sum())
    return total


def test_log_probs_are_those_of_the_drawn_ids_with_one_stop_token(found):
    rollout, drawn_ = jax.device_get(found[0]), found[1]
    where = rollout.sequences.output_weights > 0
    assert drawn_.rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert where.sum(1).tolist() == drawn_.tokens.tolist()
    for row, tokens in enumerate(drawn_.tokens):
        ids = rollout.sequences.output_ids[row, :tokens].tolist()
        assert where[row, :tokens].all()
        assert drawn_.ended[row] == (ids[-1] == 0)
        assert 0 not in ids[:-1]
        text = "".join(SIGNS[number - 1] for number in ids if number)
        assert drawn_.texts[row] == text
    assert drawn_.ended.any()
    assert not drawn_.ended.all()
    # The policy is the original so far.
    np.testing.assert_array_equal(drawn_.log_prob, drawn_.reference_log_prob)
    assert not drawn_.kl.any()
    prompts = [PROBLEMS.prompts[row] for row in drawn_.rows]
    for row in (0, 5):
        ids = rollout.sequences.output_ids[row, : drawn_.tokens[row]]
        wanted = log_prob(TEACHER, prompts[row], ids.tolist())
        assert drawn_.log_prob[row] == pytest.approx(wanted, abs=1e-4)
        least = log_prob(PROXY, prompts[row], ids.tolist())
        # Without the bound on single tokens it would be the full sum.
        assert drawn_.proxy_log_prob[row] >= least - 1e-4


def test_a_proxy_with_another_tokenizer_scores_the_text(found):
    own = drawn(world(least_prob=0.0))[1]
    other = model(1, SIGNS[::-1])
    order = [0, *range(12, 0, -1)]
    # The same model of characters, whose ids are in another order.
    swapped = {"embedding": {"embedding": PROXY.params["embedding"]["embedding"]}}
    swapped["embedding"]["embedding"] = swapped["embedding"]["embedding"][
        np.array(order)
    ]
    params = {**PROXY.params, **swapped}
    if "head" in params:
        kernel = PROXY.params["head"]["kernel"]
        axis = kernel.shape.index(13)
        params["head"] = {"kernel": jnp.take(kernel, np.array(order), axis=axis)}
    place = world(other._replace(params=params), least_prob=0.0)
    assert not place.proxy.same_tokens
    found = drawn(place)[1]
    assert found.texts == own.texts
    np.testing.assert_allclose(found.proxy_log_prob, own.proxy_log_prob, atol=1e-4)
    np.testing.assert_allclose(
        found.calibration, found.proxy_log_prob - found.log_prob, atol=1e-4
    )


def test_a_proxy_that_writes_long_texts_in_shorter_tokens_sees_all_of_them():
    """Forty signs do not fit into the shortest length; no end is written where none is.

    The proxy scores a text of its own tokens as it would score the drawn ids.
    """
    place = world()
    texts, rows = ["1" * 40, "2+", ""], np.array([0, 1, 2])
    ids, where = rewards._tokens(PROXY, texts, np.array([False, True, True]))
    assert ids.shape == where.shape == (3, 64)
    assert where.sum(1).tolist() == [40, 3, 1]
    assert ids[0, :40].tolist() == [PROXY.tokenizer.convert_tokens_to_ids("1")] * 40
    assert (ids[1, 2], ids[2, 0]) == (0, 0)
    batch = SequenceBatch(
        *(np.zeros((3, 1), np.int32),) * 2, ids, where.astype(np.float32), rows >= 0
    )
    given = rollouts.Rollout(
        batch, *(np.zeros((3, 64)),) * 3, np.array([0, 1, 1], bool)
    )
    found = [
        rewards.proxy_log_prob(
            place.proxy._replace(same_tokens=same), rows, texts, given
        )
        for same in (True, False)
    ]
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert np.isfinite(found[0]).all()


def test_tokens_are_the_same_where_ends_and_words_are():
    assert rewards.same_tokens(TEACHER, PROXY)
    words = tokenizer("0123456789+-")
    assert not rewards.same_tokens(TEACHER, PROXY._replace(tokenizer=words))
    other = PROXY._replace(config=dataclasses.replace(PROXY.config, end_ids=(1,)))
    assert not rewards.same_tokens(TEACHER, other)


def test_a_reward_per_byte_is_that_of_the_text_divided_by_its_bytes(found):
    place = world(per="byte")
    bytes_ = problems._judged(place, found[1].rows, jax.device_get(found[0]))
    sizes = np.array([len(text.encode()) for text in found[1].texts])
    wanted = np.where(sizes > 0, found[1].calibration / np.maximum(sizes, 1), 0)
    np.testing.assert_allclose(bytes_.calibration, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": PROBLEMS._replace(answers=["1"])}, r"len\(answers\)=1"),
        ({"verifiers": []}, "verifiers > 0"),
        ({"verifiers": ["arithmetics"]}, "Did you mean 'arithmetic'"),
        ({"teacher": TEACHER._replace(tokenizer=None)}, "teacher with a tokenizer"),
        ({"proxy": PROXY._replace(tokenizer=None)}, "proxy with a tokenizer"),
        (
            {
                "proxy": PROXY._replace(
                    config=dataclasses.replace(PROXY.config, end_ids=())
                )
            },
            r"proxy\.end_ids a token that ends",
        ),
        (
            {
                "teacher": TEACHER._replace(
                    config=dataclasses.replace(TEACHER.config, max_positions=5)
                )
            },
            "max_new such that the teacher reads all of prompt and text, 5 tokens",
        ),
        (
            {"problems": PROBLEMS._replace(prompts=["", *PROBLEMS.prompts[1:]])},
            "prompt 0 with a token",
        ),
    ],
)
def test_models_and_problems_that_do_not_fit_are_named(changes, message):
    given = {"teacher": TEACHER, "proxy": PROXY, "problems": PROBLEMS}
    given |= {"settings": SETTINGS, "verifiers": ["arithmetic"], **changes}
    with pytest.raises(ValueError, match=message):
        problems.build_world(**given)


def test_prompts_are_padded_on_the_left():
    read = rollouts.read_prompts(TEACHER, ["1+2=", "1+12="])
    assert read.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert read.input_ids[0, 1:].tolist() == TEACHER.tokenizer("1+2=")["input_ids"]


def test_a_verifier_of_ones_own_and_a_reward_out_of_range():
    ended = np.array([True, True, False])
    given = (["a"] * 3, ["xx", "y", "xx"], ["2"] * 3, ended)
    found = rewards.task_rewards([lambda p, t, a: float(len(t) == int(a))], *given)
    assert found.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        rewards.task_rewards([lambda p, t, a: 2], *given)


def test_each_epoch_has_each_prompt_once():
    training, held = problems.split(6, SETTINGS)
    assert sorted([*training, *held]) == [*range(6)]
    epoch = [problems.rows_of(training, SETTINGS, number) for number in range(2)]
    assert sorted(np.concatenate(epoch)) == training.tolist()
    again = problems.rows_of(training, SETTINGS, 2)
    assert set(again) <= set(training)


def test_the_lesson_of_a_rollout(found):
    rollout, drawn_ = found
    order = calibration.step_rows(SETTINGS, 0)
    batch = calibration.lesson(rollout, drawn_, SETTINGS, 0.3, order)
    assert sorted(order[:2].ravel()) == [*range(6)]
    assert batch.kl_weights.shape == (4, 3)
    groups = (2, 3)
    wanted = rl.calibrated_advantage(
        drawn_.task.reshape(groups), drawn_.calibration.reshape(groups), 1.0
    ).ravel()
    np.testing.assert_allclose(batch.advantages, wanted[order], rtol=1e-5)
    np.testing.assert_array_equal(
        batch.old_log_probs, np.asarray(rollout.log_probs)[order]
    )
    settings = dataclasses.replace(SETTINGS, kl="reward", eta=0.0)
    moved = drawn_._replace(reference_log_prob=drawn_.log_prob - np.arange(6))
    batch = calibration.lesson(rollout, moved, settings, 0.3, order)
    task = rl.group_normalize(drawn_.task.reshape(groups)).ravel()
    wanted = task - 0.3 * np.array([-1.5, 0, 1.5] * 2)
    np.testing.assert_allclose(batch.advantages, wanted[order], atol=1e-6)
    assert not batch.kl_weights.any()


def test_beta_rises_above_the_target_only():
    settings = rl.Calibration(beta=0.1, kl_target=2.0)
    assert calibration.adapted(0.1, 2.2, settings) == pytest.approx(0.105)
    assert calibration.adapted(0.1, 99.0, settings) == pytest.approx(0.11)
    assert calibration.adapted(0.2, 1.9, settings) == pytest.approx(0.195)
    assert calibration.adapted(0.1, 0.0, settings) == 0.1


def test_skill_has_fallen_where_chance_does_not_explain_it():
    def solved(count, of=100):
        task = (np.arange(of) < count).astype(float)
        return problems.Drawn(np.arange(of), [], task, *[task] * 7)

    assert not calibration.skill_fell(solved(90), solved(99), 0.05)
    assert calibration.skill_fell(solved(80), solved(99), 0.05)
    assert not calibration.skill_fell(solved(80), solved(99), 0.2)


class KilledError(Exception):
    """What ends a run in the middle."""


def calibrate(store=None, after=None, **changes):
    def on_rollout(record):
        if record["rollout"] == after:
            raise KilledError

    settings = dataclasses.replace(SETTINGS, **changes)
    return calibration.calibrate(
        TEACHER,
        PROXY,
        PROBLEMS,
        settings,
        verifiers=["arithmetic"],
        store=store,
        on_rollout=on_rollout,
    )


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    before = sum(TRACES.values())
    whole = calibrate()
    # Rollout, proxy and step, and no other program for evaluations.
    assert sum(TRACES.values()) - before <= 3
    store = Store(tmp_path, every=1)
    with pytest.raises(KilledError):
        calibrate(store, after=2)
    traced = sum(TRACES.values())
    resumed = calibrate(store)
    assert sum(TRACES.values()) == traced
    jax.tree.map(
        np.testing.assert_array_equal, resumed.teacher.params, whole.teacher.params
    )
    assert resumed.history == whole.history
    assert resumed.after.texts == whole.after.texts
    assert [one["rollouts"] for one in whole.evaluations] == [0, 2, 3]
    assert (whole.stopped, whole.rollouts, len(whole.history)) == ("steps", 3, 3)
    assert json.loads(json.dumps(whole.history)) == whole.history
    moved = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), whole.teacher.params, TEACHER.params
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
    # Nothing is left to do, and the result is the same.
    assert calibrate(store).history == whole.history


def test_it_stops_at_the_budget_and_keeps_a_teacher_within_it():
    found = calibrate(kl_target=1e-9, kl_budget=1e-9)
    assert (found.stopped, found.rollouts) == ("kl_budget", 0)
    assert len(found.history) == 2
    jax.tree.map(np.testing.assert_array_equal, found.teacher.params, TEACHER.params)
    assert found.before.texts == found.after.texts


def test_ten_rollouts_above_the_budget_end_it_before_an_evaluation():
    found = calibrate(kl_target=1e-9, kl_budget=1e-9, evaluate_every=100, steps=20)
    assert (found.stopped, found.rollouts) == ("kl_budget", 0)
    assert len(found.history) == 10
    assert len(found.evaluations) == 1
    assert np.mean([one["kl"] for one in found.history]) > 1e-9


def test_lost_skill_ends_it_with_the_teacher_before():
    learned = []
    found = calibration.calibrate(
        TEACHER,
        PROXY,
        PROBLEMS,
        # With this seed both held-out texts end in time.
        dataclasses.replace(SETTINGS, skill_loss=0.05, evaluate_every=1, seed=29),
        # Solved until something was learned.
        verifiers=[lambda prompt, text, answer: float(not learned)],
        on_rollout=learned.append,
    )
    # Of two held-out texts none: at most 1 - √0.05 = 78 % with 95 % confidence.
    assert found.before.solved.tolist() == [True, True]
    assert (found.stopped, found.rollouts, len(found.history)) == ("skill", 0, 1)
    jax.tree.map(np.testing.assert_array_equal, found.teacher.params, TEACHER.params)


def test_the_sign_of_eta_is_the_direction():
    found = []
    for eta in (1.0, -1.0):
        changes = {"eta": eta, "steps": 20, "beta": 0.02, "evaluate_every": 100}
        history = calibrate(**changes).history
        found.append(np.mean([one["calibration"] for one in history[-10:]]))
    assert found[0] > found[1] + 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": 6}, "prompts <= 4"),
        ({"draws": 1}, "draws > 1"),
        ({"minibatches": 4}, "divisor of prompts"),
        ({"kl_budget": 1.0}, "kl_budget >= kl_target"),
        ({"eta": float("nan")}, "eta finite"),
        ({"per": "word"}, "per one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        world(**changes)


def test_answers_that_no_text_has_are_refused():
    broken = PROBLEMS._replace(answers=["1", "none", *PROBLEMS.answers[2:]])
    with pytest.raises(ValueError, match="answer 1 with a number"):
        problems.build_world(TEACHER, PROXY, broken, SETTINGS, ["arithmetic"])
