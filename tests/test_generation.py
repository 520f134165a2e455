"""Decoding of Markov chains against loops and by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from protojax.generation import beam_search, beams, filters, generate, sampling

STOP, PAD, ROWS = 3, 0, 4
STEPS = []


def start(params, input_ids, attention_mask, *, max_new):
    return input_ids[:, -1], params[input_ids[:, -1]]


def step(params, cache, tokens):
    """The cache is the last token; the host counts the calls."""
    jax.debug.callback(lambda: STEPS.append(1))
    return tokens, params[tokens]


def take_rows(cache, rows, *, same_sources=False):
    return cache[rows]


def prompts(last):
    """Prompts of one token, and rows that only fill the batch."""
    ids = np.zeros((max(ROWS, len(last)), 1), np.int32)
    ids[: len(last), 0] = last
    return jnp.array(ids), jnp.array(np.arange(len(ids)) < len(last), int)[:, None]


# Equal shapes and settings, so that the tests share programs.
def write(table, *last, max_new=5, stop_ids=(STOP,), pad_id=PAD, **options):
    given = start, step, jnp.array(table, jnp.float32), *prompts(last)
    settings = {"max_new": max_new, "stop_ids": stop_ids, "pad_id": pad_id}
    if "beams" in options:
        options["take_rows"] = take_rows
        found = beam_search(*given, **settings, **options)
    else:
        found = generate(*given, **settings, **options)
    found = jax.device_get(found)
    filled = jax.tree.map(lambda part: part[len(last) :], found)
    assert filled.ended.all()
    assert not filled.where.any()
    assert (filled.ids == pad_id).all()
    return jax.tree.map(lambda part: part[: len(last)], found)


def chain(seed=0, size=5):
    """Random logits of the next token, a row for each token; not normalised."""
    return np.random.default_rng(seed).normal(0, 2, (size, size)).astype(np.float32)


def walk(*path):
    """A chain that goes through the path with certainty."""
    table = np.full((5, 5), -50.0, np.float32)
    for here, there in itertools.pairwise(path):
        table[here, there] = 0
    return table


def normalised(table):
    table = table.astype(np.float64)
    return table - np.log(np.exp(table).sum(-1, keepdims=True))


def check(found, row, ids, table, last, stop_ids, pad):
    """Whether a row of `Generated` holds exactly the given text."""
    size = len(ids)
    assert found.where[row].tolist() == [True] * size + [False] * (5 - size)
    assert found.ids[row].tolist() == ids + [pad] * (5 - size)
    scores = [normalised(table)[pair] for pair in itertools.pairwise((last, *ids))]
    scores += [0.0] * (5 - size)
    np.testing.assert_allclose(found.log_probs[row], scores, atol=1e-5)
    assert found.ended[row] == (ids[-1] in stop_ids)


def greedy(table, last, stop_ids):
    ids = []
    while len(ids) < 5 and not (ids and ids[-1] in stop_ids):
        last = int(table[last].argmax())
        ids.append(last)
    return ids


@pytest.mark.parametrize(("stop_ids", "pad"), [((STOP,), PAD), ((1, STOP), STOP)])
def test_greedy_equals_a_loop(stop_ids, pad):
    sizes = set()
    for seed in range(6):
        table, last = chain(seed), (0, 1, 2, 4)
        found = write(table, *last, stop_ids=stop_ids, pad_id=pad)
        for row, token in enumerate(last):
            ids = greedy(table, token, stop_ids)
            check(found, row, ids, table, token, stop_ids, pad)
            sizes.add(len(ids))
    assert {1, 5} <= sizes


def test_steps_end_with_the_longest_text():
    # 1: 2, STOP; 2: STOP; 4: itself for ever. The first token takes no step.
    table = walk(1, 2, STOP)
    table[4, 4] = 0
    for last, expected in (((1, 2), 1), ((2, 2), 0), ((4, 2), 4)):
        STEPS.clear()
        write(table, *last)
        jax.effects_barrier()
        assert len(STEPS) == expected


def test_beams_end_with_the_last_row_that_may_improve():
    # Three complete texts of 1 after three tokens, so after two steps.
    table = walk(1, 2, STOP)
    table[4, 4] = table[1, STOP] = table[2, 2] = 0
    for last, expected in (((1, 1), 2), ((1, 4), 4)):
        STEPS.clear()
        write(table, *last, beams=3, early_stopping=True)
        jax.effects_barrier()
        assert len(STEPS) == expected


def test_a_padding_id_before_the_end_is_a_token():
    found = write(walk(1, PAD, 2, STOP), 1)
    assert found.ids.tolist() == [[PAD, 2, STOP, PAD, PAD]]
    assert found.where.tolist() == [[True, True, True, False, False]]


def test_one_token():
    found = write(walk(1, 2, STOP), 1, 2, max_new=1)
    assert found.ids.tolist() == [[2], [STOP]]
    assert found.ended.tolist() == [False, True]


# Filters


def kept_tokens(row, k, p):
    """The tokens that filters keep, by a loop."""
    order = sorted(range(len(row)), key=lambda token: -row[token])
    kept = {t for t in order if k == 0 or row[t] >= row[order[min(k, len(row)) - 1]]}
    probs = np.array([np.exp(row[t]) if t in kept else 0 for t in range(len(row))])
    probs /= probs.sum()
    total, nucleus = 0.0, set()
    for token in order:
        if token in kept and total < p:
            nucleus |= {t for t in kept if probs[t] == probs[token]}
            total += probs[token]
    return nucleus


@pytest.mark.parametrize("k", [0, 1, 3, 99])
def test_filters_equal_a_loop(k):
    rng = np.random.default_rng(0)
    # Small integers tie often.
    rows = rng.integers(0, 4, (20, 7)).astype(np.float32)
    for p in (1e-6, 0.3, 0.5, 0.9, 1.0):
        found = jnp.array(rows)
        if k:
            found = filters.keep_top_k(found, k)
        found = np.asarray(filters.keep_top_p(found, p))
        for row, left in zip(rows, found, strict=True):
            expected = kept_tokens(row.astype(float), k, p)
            assert {*np.flatnonzero(np.isfinite(left))} == expected
            np.testing.assert_array_equal(left[[*expected]], row[[*expected]])


def test_the_nucleus_at_its_border():
    row = np.log([0.5, 0.25, 0.125, 0.125, 1e-30, 1e-30, 1e-30])
    logits = jnp.array(np.tile(row, (20, 1)), jnp.float32)
    for p, kept in ((0.5, 1), (0.51, 2), (0.75, 2), (0.76, 4), (1.0, 4)):
        found = np.isfinite(filters.keep_top_p(logits, p)).sum(-1)
        assert (found == kept).all()


# Sampling

PROBS = np.array([0.4, 0.1, 0.25, 0.05, 0.2])
KEYS = jax.random.split(jax.random.key(0), 2000)


def draw(keys=KEYS, **options):
    table = np.tile(np.log(PROBS), (5, 1))
    given = {"temperature": 1.0, "max_new": 2, "stop_ids": (), "key": keys}
    return write(table, *[1] * len(KEYS), **given | options)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3, "top_p": 0.7, "keys": jax.random.key(1)}], ids=len
)
def test_frequencies_of_sampled_tokens(options):
    for temperature in (0.5, 1.0, 2.0):
        found = draw(temperature=temperature, **options)
        tempered = PROBS ** (1 / temperature)
        tempered /= tempered.sum()
        k, p = options.get("top_k", 0), options.get("top_p", 1)
        kept = kept_tokens(np.log(tempered), k, p)
        expected = np.array([tempered[t] if t in kept else 0 for t in range(5)])
        # Pairs of tokens: steps are independent, as are rows.
        expected = np.outer(expected, expected) * len(KEYS) / expected.sum() ** 2
        counts = np.zeros((5, 5))
        np.add.at(counts, tuple(found.ids.T), 1)
        assert not counts[expected == 0].any()
        some = expected > 0
        assert stats.chisquare(counts[some], expected[some]).pvalue > 0.001
        # Those of the model, whatever the sampling.
        np.testing.assert_allclose(found.log_probs, np.log(PROBS)[found.ids], atol=1e-5)


def test_a_row_with_its_own_key_does_not_depend_on_its_place():
    np.testing.assert_array_equal(draw(KEYS[::-1]).ids, draw().ids[::-1])


# Beams


def best_text(table, last, beams, stop_ids, penalty, early):
    """The text of the highest score, by a loop over lists of hypotheses."""
    table = normalised(table)
    running, closed = [((), 0.0)], []
    for size in range(1, 6):
        grown = [
            ((*ids, token), score + table[ids[-1] if ids else last, token])
            for ids, score in running
            for token in range(len(table))
        ]
        grown.sort(key=lambda item: -item[1])
        running = []
        for rank, (ids, score) in enumerate(grown):
            if ids[-1] in stop_ids or size == 5:
                if rank < beams:
                    closed.append((ids, score / size**penalty))
            elif len(running) < beams:
                running.append((ids, score))
        closed = sorted(closed, key=lambda item: -item[1])[:beams]
        if not running:
            break
        if len(closed) == beams:
            longest = early == "never" and penalty > 0
            hoped = running[0][1] / (5 if longest else size) ** penalty
            if early is True or hoped <= closed[-1][1]:
                break
    return [*closed[0][0]]


@pytest.mark.parametrize("early", [True, False, "never"])
def test_beams_equal_a_loop_over_hypotheses(early):
    last, stop_ids, rules = (0, 1, 2, 4), (STOP,), (True, False, "never")
    others = dict.fromkeys(rules, 0)
    for seed, penalty in itertools.product(range(12), (-0.5, 0.0, 1.0, 2.5)):
        table = chain(seed) / 2
        options = {"length_penalty": penalty, "early_stopping": early}
        found = write(table, *last, beams=3, **options)
        for row, token in enumerate(last):
            ids = best_text(table, token, 3, stop_ids, penalty, early)
            check(found, row, ids, table, token, stop_ids, PAD)
            for rule in rules:
                other = best_text(table, token, 3, stop_ids, penalty, rule)
                others[rule] += other != ids
    # The rules differ, so that each was tested.
    assert [rule for rule in rules if others[rule] == 0] == [early]


def test_one_beam_is_greedy():
    for seed in range(3):
        given = chain(seed), 0, 1, 2, 4
        found, expected = write(*given, beams=1), write(*given)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.where, expected.where)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_the_length_penalty_by_hand():
    # 1 -> STOP: log 0.5 = -0.69. 1 -> 2 -> STOP: log 0.45 = -0.80, -0.40 a token.
    table = np.full((5, 5), 1e-9)
    table[1, [STOP, 2]] = 0.5
    table[2, [STOP, 4]] = 0.9, 0.1
    for penalty, expected in ((0.0, [STOP]), (0.2, [STOP]), (0.3, [2, STOP])):
        # 0.80 / 2 ** penalty = 0.69 at penalty 0.204.
        found = write(np.log(table), 1, beams=3, length_penalty=penalty)
        assert found.ids[0, : len(expected)].tolist() == expected


def test_another_temperature_or_penalty_is_not_another_program():
    sizes = sampling._generate._cache_size(), beams._beam_search._cache_size()
    draw(temperature=0.7)
    write(chain(), 1, beams=3, length_penalty=0.7)
    assert sizes == (
        sampling._generate._cache_size(),
        beams._beam_search._cache_size(),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new": 0}, "max_new > 0"),
        ({"stop_ids": [-1]}, "stop_ids >= 0"),
        ({"temperature": -1.0}, "temperature >= 0"),
        ({"temperature": 1.0}, "key a PRNG key"),
        ({"top_k": 3}, "temperature > 0"),
        ({"top_p": 0.0}, "top_p > 0"),
        ({"top_p": 1.5}, "top_p in"),
        ({"beams": 0}, "beams > 0"),
        ({"beams": 2, "early_stopping": "always"}, "early_stopping True, False"),
        ({"beams": 2, "early_stopping": None}, "early_stopping True, False"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        write(chain(), 1, **options)
