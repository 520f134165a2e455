"""Decoding of Markov chains against loops and by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from protojax.generation import beam_search, filters, generate

STOP, PAD = 3, 0


def start(params, input_ids, attention_mask, *, max_new):
    """The cache is the number of steps; a prompt ends at its right."""
    return jnp.zeros(len(input_ids), jnp.int32), params[input_ids[:, -1]]


def step(params, cache, tokens):
    return cache + 1, params[tokens]


def prompts(*last):
    ids = jnp.array(last, jnp.int32)[:, None]
    return ids, jnp.ones_like(ids)


def chain(seed=0, size=5):
    """The log-probabilities of the next token, a row for each token."""
    table = np.random.default_rng(seed).normal(0, 1.5, (size, size))
    return jax.nn.log_softmax(jnp.array(table, jnp.float32))


def greedy(table, last, max_new, stop_ids):
    ids, scores = [], []
    while len(ids) < max_new and not (ids and ids[-1] in stop_ids):
        row = np.asarray(table)[last]
        last = int(row.argmax())
        ids.append(last)
        scores.append(row[last] - np.log(np.exp(row).sum()))
    return ids, scores


def check(found, row, ids, scores, stop_ids, pad):
    """Whether a row of `Generated` holds exactly the given text."""
    size = len(ids)
    assert np.asarray(found.where[row]).sum() == size
    assert np.asarray(found.where[row, :size]).all()
    assert found.ids[row, :size].tolist() == ids
    assert set(found.ids[row, size:].tolist()) <= {pad}
    np.testing.assert_allclose(found.log_probs[row, :size], scores, atol=1e-5)
    assert not np.asarray(found.log_probs[row, size:]).any()
    assert bool(found.ended[row]) == (ids[-1] in stop_ids)


@pytest.mark.parametrize("pad", [0, STOP])
@pytest.mark.parametrize("stop_ids", [(STOP,), (1, STOP)])
def test_greedy_equals_a_loop(pad, stop_ids):
    table = 2 * chain(seed=4)  # not normalised
    ids, mask = prompts(0, 1, 2, 4)
    found = generate(
        start, step, table, ids, mask, max_new=6, stop_ids=stop_ids, pad_id=pad
    )
    sizes = set()
    for row in range(4):
        expected = greedy(table, int(ids[row, 0]), 6, stop_ids)
        check(found, row, *expected, stop_ids, pad)
        sizes.add(len(expected[0]))
    assert len(sizes) > 1


def walk(*path):
    """A chain that goes through the path with certainty."""
    table = np.full((5, 5), -50.0, np.float32)
    for here, there in itertools.pairwise(path):
        table[here, there] = 0
    return jnp.array(table)


def counted(steps):
    """A `step` that tells the host about each call."""

    def told(params, cache, tokens):
        jax.debug.callback(lambda: steps.append(1))
        return step(params, cache, tokens)

    return told


def test_steps_end_with_the_longest_text():
    # From 1: 2, STOP. From 2: STOP. From 4: itself for ever. The first token takes none.
    table = walk(1, 2, STOP).at[4, 4].set(0.0)
    steps = []
    told = counted(steps)
    for last, expected in (((1, 2), 1), ((2, 2), 0), ((4, 2), 4)):
        steps.clear()
        found = generate(
            start, told, table, *prompts(*last), max_new=5, stop_ids=[STOP], pad_id=PAD
        )
        jax.block_until_ready(found)
        jax.effects_barrier()
        assert len(steps) == expected


def test_beams_end_with_the_last_row_that_may_improve():
    # Two complete texts of each row after two tokens, so after one step.
    table = walk(1, 2, STOP).at[1, STOP].set(0.0)
    for last, expected in (((1, 1), 1), ((1, 4), 4)):
        steps = []
        found = search_beams(
            start, counted(steps), table.at[4, 4].set(0.0), *prompts(*last), beams=2,
            max_new=5, stop_ids=[STOP], pad_id=PAD, early_stopping=True,
        )  # fmt: skip
        jax.block_until_ready(found)
        jax.effects_barrier()
        assert len(steps) == expected


def search_beams(*args, **options):
    return beam_search(*args, take_rows=lambda cache, rows: cache[rows], **options)


@pytest.mark.parametrize("search", [generate, functools.partial(search_beams, beams=3)])
@pytest.mark.parametrize("pad", [PAD, STOP])
def test_rows_that_fill_the_batch_start_ended(search, pad):
    ids, mask = prompts(1, 4)
    found = search(
        start, step, walk(1, 2, STOP), ids, mask.at[1].set(0),
        max_new=3, stop_ids=[STOP], pad_id=pad,
    )  # fmt: skip
    assert found.ids.tolist() == [[2, STOP, pad], [pad] * 3]
    assert found.where.tolist() == [[True, True, False], [False] * 3]
    assert found.ended.tolist() == [True, True]


def test_a_padding_id_before_the_end_is_a_token():
    found = generate(
        start, step, walk(1, PAD, 2, STOP), *prompts(1),
        max_new=4, stop_ids=[STOP], pad_id=PAD,
    )  # fmt: skip
    assert found.ids.tolist() == [[PAD, 2, STOP, PAD]]
    assert found.where.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("search", [generate, functools.partial(search_beams, beams=2)])
def test_one_token_and_no_stop_id(search):
    table = walk(1, 2, STOP)
    one = search(start, step, table, *prompts(1), max_new=1, stop_ids=[2], pad_id=PAD)
    assert (one.ids.tolist(), one.ended.tolist()) == ([[2]], [True])
    cut = search(start, step, table, *prompts(1), max_new=1, stop_ids=[STOP], pad_id=0)
    assert (cut.ids.tolist(), cut.ended.tolist()) == ([[2]], [False])
    free = search(start, step, table, *prompts(1), max_new=2, stop_ids=[], pad_id=PAD)
    assert (free.ids.tolist(), free.ended.tolist()) == ([[2, STOP]], [False])


# Filters


def filtered(row, k, p):
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
@pytest.mark.parametrize("p", [1e-6, 0.3, 0.5, 0.9, 1.0])
def test_filters_equal_a_loop(k, p):
    rng = np.random.default_rng(0)
    # Small integers tie often.
    rows = rng.integers(0, 4, (20, 7)).astype(np.float32)
    found = jnp.array(rows)
    if k:
        found = filters.keep_top_k(found, k)
    found = np.asarray(filters.keep_top_p(found, p))
    for row, left in zip(rows, found, strict=True):
        expected = filtered(row.astype(float), k, p)
        assert {*np.flatnonzero(np.isfinite(left))} == expected
        np.testing.assert_array_equal(left[[*expected]], row[[*expected]])


def test_the_nucleus_at_its_border():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
    for p, kept in ((0.5, 1), (0.51, 2), (0.75, 2), (0.76, 4), (1.0, 4)):
        assert int(jnp.isfinite(filters.keep_top_p(logits, p)).sum()) == kept


# Sampling


def draw(table, rows, **options):
    ids, mask = prompts(*[1] * rows)
    found = generate(
        start, step, table, ids, mask,
        max_new=1, stop_ids=[], pad_id=PAD, key=jax.random.key(0), **options,
    )  # fmt: skip
    return np.asarray(found.ids)[:, 0], np.asarray(found.log_probs)[:, 0]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.7}])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_of_sampled_tokens(temperature, options):
    probs = np.array([0.4, 0.1, 0.25, 0.05, 0.2])
    table = jnp.broadcast_to(jnp.log(jnp.array(probs, jnp.float32)), (5, 5))
    tokens, log_probs = draw(table, 4000, temperature=temperature, **options)
    tempered = probs ** (1 / temperature)
    tempered /= tempered.sum()
    kept = filtered(np.log(tempered), options.get("top_k", 0), options.get("top_p", 1))
    expected = np.array([tempered[t] if t in kept else 0 for t in range(5)])
    expected *= 4000 / expected.sum()
    counts = np.bincount(tokens, minlength=5)
    assert not counts[expected == 0].any()
    some = expected > 0
    assert stats.chisquare(counts[some], expected[some]).pvalue > 0.001
    # Those of the model, whatever the sampling.
    np.testing.assert_allclose(log_probs, np.log(probs)[tokens], atol=1e-5)


def test_steps_and_rows_are_drawn_independently():
    ids, mask = prompts(*[1] * 2000)
    found = generate(
        start, step, jnp.zeros((2, 2)), ids, mask, max_new=2, stop_ids=[], pad_id=PAD,
        key=jax.random.key(1), temperature=1.0,
    )  # fmt: skip
    counts = np.bincount(np.asarray(found.ids) @ [1, 2], minlength=4)
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_row_with_its_own_key_does_not_depend_on_its_place():
    keys = jax.random.split(jax.random.key(0), 6)
    ids, mask = prompts(0, 1, 2, 4, 1, 2)

    def write(rows):
        return generate(
            start, step, chain(), ids[rows], mask[rows], max_new=5, stop_ids=[STOP],
            pad_id=PAD, key=keys[rows], temperature=1.0,
        ).ids  # fmt: skip

    order = jnp.array([3, 0, 5])
    np.testing.assert_array_equal(write(jnp.arange(6))[order], write(order))


# Beams


def best_text(table, last, beams, max_new, stop_ids, penalty, early):
    """The text of the highest score, by a loop over lists of hypotheses."""
    table = np.asarray(table, np.float64)
    table = table - np.log(np.exp(table).sum(-1, keepdims=True))
    running, closed = [((), 0.0)], []
    for size in range(1, max_new + 1):
        grown = [
            ((*ids, token), score + table[ids[-1] if ids else last, token])
            for ids, score in running
            for token in range(len(table))
        ]
        grown.sort(key=lambda item: -item[1])
        running = []
        for rank, (ids, score) in enumerate(grown):
            if ids[-1] in stop_ids or size == max_new:
                if rank < beams:
                    closed.append((ids, score / size**penalty))
            elif len(running) < beams:
                running.append((ids, score))
        closed = sorted(closed, key=lambda item: -item[1])[:beams]
        if not running:
            break
        if len(closed) == beams:
            longest = early == "never" and penalty > 0
            hoped = running[0][1] / (max_new if longest else size) ** penalty
            if early is True or hoped <= closed[-1][1]:
                break
    ids = closed[0][0]
    path = (last, *ids)
    return list(ids), [table[a, b] for a, b in zip(path, ids, strict=False)]


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.5])
def test_beams_equal_a_loop_over_hypotheses(early, penalty):
    last = (0, 1, 2, 4, 5)
    for seed, beams, stop_ids in ((0, 2, (STOP,)), (1, 4, (1, STOP))):
        table = chain(seed, size=6)
        found = search_beams(
            start, step, table, *prompts(*last), beams=beams, max_new=5,
            stop_ids=stop_ids, pad_id=PAD, length_penalty=penalty, early_stopping=early,
        )  # fmt: skip
        for row, token in enumerate(last):
            text = best_text(table, token, beams, 5, stop_ids, penalty, early)
            check(found, row, *text, stop_ids, PAD)


def test_the_ways_to_stop_differ():
    """A row must not stop because another one may, and each rule must matter."""
    seen = set()
    for seed in range(40):
        texts = [
            tuple(best_text(chain(seed, 6), 0, 2, 6, (STOP,), 2.0, early)[0])
            for early in (True, False, "never")
        ]
        seen |= {(a, b) for a in range(3) for b in range(3) if texts[a] != texts[b]}
    assert {(0, 1), (1, 2), (0, 2)} <= seen


def test_one_beam_is_greedy():
    ids, mask = prompts(0, 1, 2, 4)
    options = {"max_new": 6, "stop_ids": [STOP], "pad_id": PAD}
    for seed in range(3):
        given = start, step, chain(seed), ids, mask
        expected, found = generate(*given, **options), search_beams(
            *given, beams=1, **options
        )  # fmt: skip
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-5), found, expected
        )


def test_the_length_penalty_by_hand():
    # 1 -> STOP: log 0.5 = -0.69. 1 -> 2 -> STOP: log 0.45 = -0.80, -0.40 a token.
    table = np.full((5, 5), 1e-9)
    table[1, [STOP, 2]] = 0.5
    table[2, [STOP, 4]] = 0.9, 0.1
    for penalty, expected in ((0.0, [STOP]), (0.2, [STOP]), (0.3, [2, STOP])):
        # 0.80 / 2 ** penalty = 0.69 at penalty 0.204.
        found = search_beams(
            start, step, jnp.log(jnp.array(table, jnp.float32)), *prompts(1), beams=2,
            max_new=3, stop_ids=[STOP], pad_id=PAD, length_penalty=penalty,
        )  # fmt: skip
        assert found.ids[0, : len(expected)].tolist() == expected


def test_each_beam_goes_on_from_its_own_cache():
    """The next token depends on the sum of those before, which only the cache knows."""
    table = np.asarray(chain(seed=7, size=4))

    def begin(params, input_ids, attention_mask, *, max_new):
        return input_ids[:, -1] * 0, params[input_ids[:, -1] * 0]

    def summed(params, cache, tokens):
        cache = (cache + tokens) % len(table)
        return cache, params[cache]

    found = search_beams(
        begin, summed, jnp.array(table), *prompts(0), beams=64, max_new=3, stop_ids=[],
        pad_id=PAD, length_penalty=0.0,
    )  # fmt: skip
    every = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    score = {
        (a, b, c): table[0, a] + table[a, b] + table[(a + b) % 4, c]
        for a, b, c in every
    }
    assert tuple(found.ids[0].tolist()) == max(score, key=score.get)


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
    ],
)
def test_what_generate_refuses(options, message):
    given = {"max_new": 2, "stop_ids": [STOP], "pad_id": PAD} | options
    with pytest.raises(ValueError, match=message):
        generate(start, step, chain(), *prompts(0), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams > 0"),
        ({"early_stopping": "always"}, "early_stopping True, False"),
        ({"early_stopping": None}, "early_stopping True, False"),
    ],
)
def test_what_beam_search_refuses(options, message):
    given = {"beams": 2, "max_new": 2, "stop_ids": [STOP], "pad_id": PAD} | options
    with pytest.raises(ValueError, match=message):
        search_beams(start, step, chain(), *prompts(0), **given)
