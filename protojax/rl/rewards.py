"""Rewards of texts: what verifiers say of them, and what a proxy thinks of them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import SequenceBatch
from protojax.data.tokens import encode
from protojax.distillability import text_log_prob
from protojax.models.language import LanguageModel
from protojax.rl.rollouts import Prompts, Rollout, score_fn
from protojax.rl.verifiers import VERIFIERS, VerifierFn

# The shortest padded length of re-tokenised texts; each further one is twice as long.
_SHORTEST = 32


class Proxy(NamedTuple):
    """A frozen model that scores texts, with the prompts as it reads them.

    Attributes:
        model: with its tokenizer.
        prompts: all prompts, by `read_prompts`.
        same_tokens: whether its tokens are the policy's, so that the drawn ids
            themselves are scored.
        least: a bound on the log probability of each token, None for none.
    """

    model: LanguageModel
    prompts: Prompts
    same_tokens: bool
    least: float | None


def same_tokens(one: LanguageModel, other: LanguageModel) -> bool:
    """Whether two models have the same tokens, those that end a text among them.

    Args:
        one: a model with its tokenizer.
        other: likewise.
    """
    if one.config.end_ids != other.config.end_ids:
        return False
    same = one.tokenizer is other.tokenizer
    return same or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def proxy_log_prob(
    proxy: Proxy, rows: np.ndarray, texts: Sequence[str], found: Rollout
) -> np.ndarray:
    """The log probability of each emitted text under a proxy.

    Σ_t max(log π_proxy(token_t), least) over the proxy's own tokens, with the token
    that ends a text where the policy ended it. With another tokenizer than the
    policy's this is a lower bound: other ways to write the same text in tokens are not
    summed (arXiv:2512.14954).

    Args:
        proxy: the proxy.
        rows: `[texts]`, the prompt of each text.
        texts: the texts, see `texts_of`.
        found: the rollout, on the host.

    Returns:
        `[texts]`, float64, nats a text.
    """
    ids, where = found.sequences.output_ids, found.sequences.output_weights > 0
    model = proxy.model
    if not proxy.same_tokens:
        ids, where = _tokens(model, texts, np.asarray(found.ended))
    # The embedding may be padded differently: such an id is no token of the proxy's.
    known = ids < model.config.vocab_size
    prompts = proxy.prompts.take(rows)
    batch = SequenceBatch(
        input_ids=jnp.asarray(prompts.input_ids),
        attention_mask=jnp.asarray(prompts.attention_mask),
        output_ids=jnp.asarray(np.where(known & where, ids, 0), jnp.int32),
        output_weights=jnp.asarray(where, jnp.float32),
        where=jnp.ones(len(ids), bool),
    )
    scores = np.asarray(score_fn(model.config)(model.params, batch))
    floor = -100.0 if proxy.least is None else proxy.least
    scores = np.where(known, scores, floor)
    return np.asarray(text_log_prob(scores, where, least=proxy.least), np.float64)


def task_rewards(
    verifiers: Sequence[str | VerifierFn],
    prompts: Sequence[str],
    texts: Sequence[str],
    answers: Sequence[str],
    ended: np.ndarray,
) -> np.ndarray:
    """The task reward of each text: the product of what all verifiers give.

    A text that was cut, because it did not end in time, gets 0.

    >>> found = task_rewards(["arithmetic", "equations"], ["", ""],
    ...     ["1 + 1 = 3, so 2", "1 + 1 = 2"], ["2", "2"], np.array([True, True]))
    >>> found.tolist()
    [0.0, 1.0]

    Args:
        verifiers: names in `VERIFIERS`, or functions `(prompt, text, answer) -> float`.
        prompts: `[texts]`, as the user's file has them.
        texts: `[texts]`.
        answers: `[texts]`.
        ended: `[texts]`, bool.

    Returns:
        `[texts]`, float64, in [0, 1].

    Raises:
        ValueError: no verifier, an unknown one, or a reward outside [0, 1].
    """
    validate.positive(verifiers=len(verifiers))
    validate.same_length(prompts=prompts, texts=texts, answers=answers, ended=ended)
    found = np.asarray(ended, float)
    for verifier in verifiers:
        if isinstance(verifier, str):
            validate.one_of(VERIFIERS, verifier=verifier)
            verifier = VERIFIERS[verifier]
        for row in np.flatnonzero(found):
            reward = float(verifier(prompts[row], texts[row], answers[row]))
            name = f"the reward of {getattr(verifier, '__name__', verifier)}"
            validate.require(0 <= reward <= 1, name, reward, "in [0, 1]")
            found[row] *= reward
    return found


def _tokens(
    model: LanguageModel, texts: Sequence[str], ended: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of texts as another model's tokens, none cut."""
    rows = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    most = max(len(ids) for ids in rows) + 1
    width = _SHORTEST
    while width < most:
        width *= 2
    found = encode(model.tokenizer, texts, max_length=width, pad_id=0, special=False)
    ids, lengths = found.input_ids.copy(), found.lengths
    ids[np.flatnonzero(ended), lengths[ended]] = model.config.end_ids[0]
    return ids, np.arange(width) < (lengths + ended)[:, None]
