"""Probabilities of tokens that teach a student with another tokenizer.

Where both go on with the same token behind the same text, both say what comes next.
Tokens that are one text in both vocabularies are compared by name, all others as one
outcome and by their sorted probabilities; elsewhere the text itself teaches.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax import validate
from protojax.base import Array, LossFn, PyTree, SequenceApplyFn, SequenceBatch
from protojax.distillation.token_losses import (
    SPARSE_DIVERGENCES,
    masked_mean,
    over_tokens,
    sparse_divergence,
    targets_of,
    token_log_probs,
)

# A log probability of what a teacher does not have and its student may.
_LEAST = -20.0


class Targets(NamedTuple):
    """A teacher's distribution over tokens, as a student with others can read it.

    Attributes:
        top_ids: `[..., k]`, int32, the most probable tokens that both have, as the
            student's ids.
        top_log_probs: `[..., k]`, float32, their log probabilities.
        rest_log_prob: `[...]`, float32, of all other tokens together.
        others: `[..., width]`, float32, the largest probabilities of tokens that the
            student does not have, falling.
    """

    top_ids: Array
    top_log_probs: Array
    rest_log_prob: Array
    others: Array


class OtherTokens(NamedTuple):
    """Texts in a student's tokens, and what a teacher with others says along them.

    Attributes:
        batch: the texts.
        begins: `[batch, output_length]`, bool, the tokens that the teacher has at this
            place as well; at the others the text alone teaches.
        targets: of the teacher where these begin, `[batch, output_length, ...]`.
    """

    batch: SequenceBatch
    begins: Array
    targets: Targets

    @property
    def where(self) -> Array:
        """The rows that are no padding, `[batch]`, as of any batch."""
        return self.batch.where


def matched_tokens(
    student: Mapping[str, int], teacher: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of tokens that are the same text in two vocabularies.

    Args:
        student: text -> id; tokenizers spell texts in their own ways, see
            `pipelines.distillability.token_texts`.
        teacher: text -> id.

    Returns:
        The student's ids and the teacher's, `[matched]` each, by the student's.

    >>> matched_tokens({"a": 0, " b": 1, "c": 2}, {" b": 0, "a": 5})
    (array([0, 1], dtype=int32), array([5, 0], dtype=int32))
    """
    both = student.keys() & teacher.keys()
    pairs = sorted((student[text], teacher[text]) for text in both)
    found = np.array(pairs, np.int32).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def sorted_l1(student_logits: Array, teacher_logits: Array) -> Array:
    """The distance of two distributions whose tokens are not the same.

    Σ_i |p_(i) − q_(i)|, both sorted, the shorter one filled up with zeros

    Args:
        student_logits: `[..., vocabulary]`.
        teacher_logits: `[..., other_vocabulary]`.

    Returns:
        `[...]`, float32, in [0, 2].

    Raises:
        ValueError: the leading axes differ.

    >>> p, q = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.25, 0.25, 0.5])
    >>> round(float(sorted_l1(jnp.log(q), jnp.log(p))), 4)
    0.4

    References:
        "Universal logit distillation" of Boizard et al., 2024, arXiv:2402.12030.
    """
    lead = jnp.shape(student_logits)[:-1]
    validate.shape(lead, teacher_logits=teacher_logits[..., 0])
    width = max(student_logits.shape[-1], teacher_logits.shape[-1])
    student, teacher = (
        _falling(jax.nn.softmax(x.astype(jnp.float32)), width)
        for x in (student_logits, teacher_logits)
    )
    return jnp.abs(student - teacher).sum(-1)


def matched_targets(
    teacher_logits: Array,
    student_ids: Array,
    teacher_ids: Array,
    *,
    k: int,
    width: int,
) -> Targets:
    """A teacher's distribution as what a student with other tokens can read of it.

    Args:
        teacher_logits: `[..., vocabulary]`, without rows that stand for no token.
        student_ids: `[matched]`, int32, see `matched_tokens`.
        teacher_ids: `[matched]`, int32.
        k: tokens that are kept of those that both have, at most all of them.
        width: probabilities that are kept of tokens that the student does not have.

    Returns:
        The targets, `[...]` each.

    Raises:
        ValueError: the ids do not match in number, there are none, or k is out of its
            bounds.

    >>> logits = jnp.log(jnp.array([0.5, 0.125, 0.125, 0.25]))
    >>> both = jnp.array([7, 9]), jnp.array([1, 3])
    >>> found = matched_targets(logits, *both, k=1, width=3)
    >>> found.top_ids.tolist(), found.others.tolist()
    ([9], [0.5, 0.125, 0.0])
    """
    validate.shape(jnp.shape(student_ids), teacher_ids=teacher_ids)
    validate.positive(student_ids=len(student_ids), width=width)
    bound = f"in 1..{len(teacher_ids)}, the tokens that both have"
    validate.require(1 <= k <= len(teacher_ids), "k", k, bound)
    logits = teacher_logits.astype(jnp.float32)
    _, places = jax.lax.top_k(logits[..., teacher_ids], k)
    top = targets_of(logits, jnp.asarray(teacher_ids)[places])
    student_ids = jnp.asarray(student_ids, jnp.int32)
    return Targets(student_ids[places], *top, _others(logits, teacher_ids, width))


def across_divergence(
    student_logits: Array,
    targets: Targets,
    student_ids: Array,
    *,
    divergence: str = "forward_kl",
    unmatched_weight: float = 1.0,
) -> Array:
    """The divergence of a student from a teacher with other tokens.

    D over the kept tokens that both have and, as one more outcome, all others together
    + unmatched_weight · Σ_i |p_(i) − q_(i)| over tokens that the other does not have,
    sorted, the largest `width` of them

    Args:
        student_logits: `[..., vocabulary]`.
        targets: `[...]`, of the teacher.
        student_ids: `[matched]`, int32, all tokens that both have.
        divergence: a name in `token_losses.SPARSE_DIVERGENCES`.
        unmatched_weight: of the second part, >= 0.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: the shapes do not fit, the divergence is unknown, the weight is
            negative.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> both = jnp.array([2, 0]), jnp.array([1, 2])
    >>> targets = matched_targets(logits[jnp.array([1, 2, 0])], *both, k=1, width=2)
    >>> round(abs(float(across_divergence(logits, targets, both[0]))), 6)
    0.0
    """
    validate.non_negative(unmatched_weight=unmatched_weight)
    ids, log_probs, rest, _ = targets
    if divergence == "reverse_kl":
        # The student's own tokens are no mistake without bound.
        rest = jnp.maximum(rest, _LEAST)
    loss = sparse_divergence(
        student_logits, ids, log_probs, rest, divergence=divergence
    )
    if unmatched_weight:
        width = targets.others.shape[-1]
        others = _others(student_logits.astype(jnp.float32), student_ids, width)
        loss += unmatched_weight * jnp.abs(others - targets.others).sum(-1)
    return loss


def _others(logits: Array, matched: Array, width: int) -> Array:
    """The largest probabilities of tokens that are not matched, `[..., width]`."""
    probs = jax.nn.softmax(logits)
    return _falling(probs.at[..., jnp.asarray(matched)].set(0), width)


def _falling(probs: Array, width: int) -> Array:
    """The largest probabilities, the largest first, filled up with zeros."""
    most = min(width, probs.shape[-1])
    found, _ = jax.lax.top_k(probs, most)
    lead = [(0, 0)] * (found.ndim - 1)
    return jnp.pad(found, [*lead, (0, width - most)])


def cross_tokenizer_loss(
    student_logits: Array,
    teacher_logits: Array,
    student_ids: Array,
    teacher_ids: Array,
    *,
    divergence: str = "forward_kl",
    unmatched_weight: float = 1.0,
) -> Array:
    """The divergence of two models whose vocabularies have some tokens in common.

    D over the matched tokens and, as one more outcome, all others together
    + unmatched_weight · Σ_i |p_(i) − q_(i)| over the others, sorted

    It is 0 where both agree on the matched tokens and have equal sorted probabilities
    of the others.

    Args:
        student_logits: `[..., vocabulary]`, where a common group begins.
        teacher_logits: `[..., other_vocabulary]`, likewise.
        student_ids: `[matched]`, int32, see `matched_tokens`.
        teacher_ids: `[matched]`, int32.
        divergence: a name in `token_losses.SPARSE_DIVERGENCES`.
        unmatched_weight: of the second part, >= 0.

    Returns:
        `[...]`, float32.

    Raises:
        ValueError: the ids do not match in number, the divergence is unknown, the
            weight is negative.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> same = jnp.array([0])
    >>> loss = cross_tokenizer_loss(logits, logits[jnp.array([0, 2, 1])], same, same)
    >>> round(abs(float(loss)), 6)
    0.0

    References:
        Boizard et al., 2024, arXiv:2402.12030, for what does not match; GOLD in TRL for
        the two parts, which has no outcome for the rest, so that a student may leave
        the matched tokens.
    """
    count = len(student_ids)
    width = max(student_logits.shape[-1], teacher_logits.shape[-1])
    targets = matched_targets(
        teacher_logits, student_ids, teacher_ids, k=count, width=width
    )
    return across_divergence(
        student_logits,
        targets,
        student_ids,
        divergence=divergence,
        unmatched_weight=unmatched_weight,
    )


def across_loss(
    apply: SequenceApplyFn,
    head: Callable[[PyTree, Array], Array],
    *,
    student_ids: Sequence[int],
    divergence: str = "forward_kl",
    unmatched_weight: float = 1.0,
    vocabulary: int | None = None,
    length: int | None = None,
    chunk: int = 256,
) -> LossFn:
    """The loss of a student on texts of a teacher with another tokenizer.

    mean_t of `across_divergence` where both models begin the same token t,
    and of −log q(output_t | source, output_{<t}) elsewhere

    A token of the teacher's that the student splits is part of the rest where it might
    come next, so that the student gives its first piece less than the teacher would.

    Args:
        apply: the student up to its head.
        head: `(params, states [..., dim]) -> logits [..., vocabulary]`.
        student_ids: all tokens that both have, see `matched_tokens`.
        divergence: a name in `token_losses.SPARSE_DIVERGENCES`.
        unmatched_weight: see `across_divergence`.
        vocabulary: see `distillation.sequence_loss`.
        length: see `distillation.sequence_loss`.
        chunk: see `distillation.sequence_loss`.

    Returns:
        A `LossFn` that reads `OtherTokens`.

    Raises:
        ValueError: an option out of its bounds.

    References:
        The parts are those of `cross_tokenizer_loss`. GOLD in TRL multiplies the
        probabilities of the tokens between two cuts; here the text itself teaches
        there, and where both go on with different tokens.
    """
    validate.one_of(SPARSE_DIVERGENCES, divergence=divergence)
    validate.non_negative(unmatched_weight=unmatched_weight)
    validate.positive(chunk=chunk, student_ids=len(student_ids))
    matched = np.asarray(student_ids, np.int32)

    def loss_fn(params, given, prototypes, step, key):
        del prototypes, step
        batch = given.batch
        states = apply(params["model"], batch, key=key).states

        def of_tokens(states: Array, ids: Array, begins: Array, *targets: Array):
            logits = head(params["model"], states)[..., :vocabulary]
            known = across_divergence(
                logits,
                Targets(*targets),
                matched,
                divergence=divergence,
                unmatched_weight=unmatched_weight,
            )
            return jnp.where(begins, known, -token_log_probs(logits, ids))

        columns = states, batch.output_ids, given.begins, *given.targets
        tokens = over_tokens(of_tokens, *columns, chunk=chunk)
        return masked_mean(tokens, batch.output_weights, length=length), {}

    return loss_fn
