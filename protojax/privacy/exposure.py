"""A language model's knowledge of a secret, and whether it can be made to tell it."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree

# (state, tokens [rows]) -> (state, logits [rows, vocab]) of the next token.
StepFn = Callable[[PyTree, Array], tuple[PyTree, Array]]


def exposure(log_probs: np.ndarray, secret: int | np.ndarray) -> float | np.ndarray:
    """The bits by which a model narrows down a secret among all n candidates.

        log2 n - log2 rank

    Ties rank the secret last, so a model that knows nothing exposes 0 bits. A secret
    that was never trained on has 1 / ln 2 = 1.44 bits in the mean over many, not 0.

    Args:
        log_probs: `[..., n]`, of each candidate.
        secret: `[...]`, the index of the true one.

    Returns:
        `[...]`, in [0, log2 n].

    Raises:
        ValueError: on NaN, or a secret that is no candidate.

    Source: Carlini et al. 2019, arXiv:1802.08232, who take the expected rank of ties.

    >>> exposure(np.arange(1024.0), 1023)
    10.0
    """
    log_probs, secret = np.asarray(log_probs), np.asarray(secret)
    num_candidates = log_probs.shape[-1]
    validate.shape(log_probs.shape[:-1], secret=secret)
    inside = bool(((secret >= 0) & (secret < num_candidates)).all())
    validate.require(inside, "secret", secret.tolist(), f"in [0, {num_candidates})")
    num_nan = int(np.isnan(log_probs).sum())
    validate.require(num_nan == 0, "num_nan", num_nan, "of log_probs to be 0")
    own = np.take_along_axis(log_probs, secret[..., None], axis=-1)
    bits = np.log2(num_candidates) - np.log2((log_probs >= own).sum(-1))
    return bits if bits.ndim else float(bits)


def suffix_tree_log_probs(
    step: StepFn, state: PyTree, logits: Array, alphabet: Array, length: int
) -> Array:
    """The log probability of every string of some symbols after a prompt.

    Prefixes are computed once for all strings that share them: (a^length - 1) / (a - 1)
    rows of steps instead of length * a^length, 1,111 for four digits. All prefixes of
    one length are one batch, the longest being a^(length - 1) rows.

    Args:
        step: appends a token to each row; its state's arrays have rows on the first
            axis, and scalars are common to all rows.
        state: the state of one row after the prompt, such as a cache.
        logits: `[1, vocab]`, of the next token.
        alphabet: `[a]`, int, the ids of the symbols.
        length: of the strings, at least 1.

    Returns:
        `[a ** length]`, float32, in the order of counting: the last symbol changes
        fastest. Their probabilities sum to that of "only such symbols", not to 1.

    Raises:
        ValueError: on a length below 1, no symbol, or more than one row.

    >>> chain = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    >>> step = lambda state, tokens: (state, chain[tokens])
    >>> found = suffix_tree_log_probs(step, (), chain[:1], jnp.arange(2), 2)
    >>> [round(float(p), 3) for p in jnp.exp(found)]
    [0.25, 0.25, 0.125, 0.375]
    """
    alphabet = jnp.asarray(alphabet)
    validate.positive(length=length, symbols=len(alphabet))
    validate.require(jnp.shape(logits)[0] == 1, "rows", jnp.shape(logits)[0], "1")
    log_probs = _extended(jnp.zeros(1), logits, alphabet)
    for _ in range(length - 1):
        tokens = jnp.tile(alphabet, len(log_probs) // len(alphabet))
        state, logits = step(_each(state, len(alphabet)), tokens)
        log_probs = _extended(log_probs, logits, alphabet)
    return log_probs


@functools.partial(jax.jit, static_argnums=1)
def _each(state: PyTree, times: int) -> PyTree:
    """The state with each row `times` times."""
    return jax.tree.map(
        lambda leaf: jnp.repeat(leaf, times, axis=0) if jnp.ndim(leaf) else leaf, state
    )


@jax.jit
def _extended(log_probs: Array, logits: Array, alphabet: Array) -> Array:
    """The log probabilities of all prefixes with each symbol appended."""
    new = jax.nn.log_softmax(jnp.float32(logits), axis=-1)[:, alphabet]
    return (log_probs[:, None] + new).reshape(-1)


def greedily_discoverable(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Whether the most probable token at each step spells the secret, `[secrets]`.

    Args:
        logits: `[secrets, length, vocab]`, of each token given the prompt and the
            secret's own tokens before it.
        ids: `[secrets, length]`, the secret's tokens.

    Raises:
        ValueError: on arrays that do not fit.

    Source: Carlini et al. 2023, arXiv:2202.07646.

    >>> logits = np.array([[[0.0, 1.0], [2.0, 1.0]]])
    >>> greedily_discoverable(logits, np.array([[1, 0]])).tolist()
    [True]
    """
    logits, ids = np.asarray(logits), np.asarray(ids)
    validate.shape(logits.shape[:-1], ids=ids)
    return (logits.argmax(-1) == ids).all(-1)


def attempts_needed(log_probs: np.ndarray, *, p: float) -> np.ndarray:
    """The samples that emit the secret at least once with probability p, `[secrets]`.

        n = log(1 - p) / log(1 - p_secret), rounded up

    Args:
        log_probs: `[secrets]`, of the whole secret after its prompt, under the very
            scheme that samples (temperature, top k).
        p: in (0, 1).

    Raises:
        ValueError: on p outside (0, 1), or log probabilities above 0.

    Source: Hayes et al. 2024, arXiv:2410.19482.

    >>> attempts_needed(np.log([0.5, 0.001, 1.0]), p=0.9).tolist()
    [4.0, 2302.0, 1.0]
    """
    log_probs = np.asarray(log_probs, np.float64)
    validate.require(0 < p < 1, "p", p, "in (0, 1)")
    known = bool((log_probs <= 0).all())
    validate.require(known, "log_probs", float(log_probs.max(initial=0)), "<= 0")
    # log1p, as 1 - p_secret has no digits left for rare secrets.
    with np.errstate(divide="ignore"):
        misses = np.log1p(-np.exp(log_probs))
        return np.maximum(1, np.ceil(np.log1p(-p) / misses))


def discoverable(log_probs: np.ndarray, *, n: int, p: float) -> np.ndarray:
    """Whether n samples emit the secret at least once with probability p, `[secrets]`.

        1 - (1 - p_secret)^n ≥ p

    Args:
        log_probs: as of `attempts_needed`.
        n: the samples that an attacker draws, at least 1.
        p: in (0, 1).

    Raises:
        ValueError: on n below 1, and as `attempts_needed`.

    Source: Hayes et al. 2024, arXiv:2410.19482.

    >>> discoverable(np.log([0.5, 0.001]), n=100, p=0.9).tolist()
    [True, False]
    """
    validate.positive(n=n)
    return attempts_needed(log_probs, p=p) <= n


def emitted(texts: Sequence[str], secrets: Sequence[str]) -> np.ndarray:
    """The number of texts that hold each secret, `[secrets]`, whatever case and spaces.

    Args:
        texts: `[texts]`, what a model wrote.
        secrets: `[secrets]`, such as whole planted sentences.

    Raises:
        ValueError: on an empty secret.

    >>> emitted(["The PIN of ba do  is 0042.", "no"], ["pin of ba do is 0042"]).tolist()
    [1]
    """
    texts, secrets = (
        [" ".join(t.casefold().split()) for t in x] for x in (texts, secrets)
    )
    validate.require(all(secrets), "secrets", "an empty one", "not empty")
    return np.array([sum(one in text for text in texts) for one in secrets], np.int64)
