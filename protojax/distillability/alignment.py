"""Two tokenisations of one text, brought together at bytes where both have a cut.

Log probabilities of the tokens between two common cuts may be compared, whatever the
tokenizers. Spans are found from the offsets of tokens in the text, so that a token at
the beginning that stands for nothing, or a letter made of two tokens, breaks nothing.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from protojax import validate
from protojax.base import Array
from protojax.distillation import losses
from protojax.distillation.token_losses import SPARSE_DIVERGENCES

# What stands for a space at the beginning of a token, of byte pairs and of pieces.
_SPACES = ("Ġ", "▁")
_LEAST = -1e30


class Group(NamedTuple):
    """Tokens of two tokenisations that stand for the same bytes.

    Attributes:
        first: indices of the tokens of one.
        second: indices of the tokens of the other.
    """

    first: list[int]
    second: list[int]


def byte_spans(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """The bytes that each token of a text stands for.

    Characters between two tokens, such as a space that offsets leave out, belong to the
    later one. A token that stands for nothing has an empty span where it is.

    Args:
        text: the text that was tokenised.
        offsets: `[tokens]`, first and last (exclusive) character of each token in their
            order, (0, 0) of special tokens: `offset_mapping` of a fast tokenizer.

    Returns:
        `[tokens, 2]`, int, first and last (exclusive) byte in UTF-8.

    Raises:
        ValueError: an offset is not in the text.

    >>> byte_spans("é a", [(0, 0), (0, 1), (2, 3)]).tolist()
    [[0, 0], [0, 2], [2, 4]]
    """
    sizes = [len(letter.encode("utf-8", "surrogatepass")) for letter in text]
    bytes_before = np.concatenate([[0], np.cumsum(sizes, dtype=int)])
    found, end = [], 0
    for number, (start, stop) in enumerate(offsets):
        bound = f"ascending, in 0..{len(text)}"
        fits = 0 <= start <= stop <= len(text)
        validate.require(fits, f"offsets[{number}]", (start, stop), bound)
        if start == stop:
            found.append((end, end))
            continue
        first, last = bytes_before[start], bytes_before[stop]
        found.append((min(first, end), max(last, end)))
        end = max(end, last)
    return np.array(found, int).reshape(-1, 2)


def common_boundaries(first: ArrayLike, second: ArrayLike) -> list[Group]:
    """The smallest groups of tokens that stand for the same bytes in both.

    Args:
        first: `[tokens, 2]`, spans of one tokenisation, see `byte_spans`.
        second: `[other_tokens, 2]`, spans of the other, of the same text.

    Returns:
        Groups in the order of the text. Each token is in one; tokens that stand for
        nothing are with those before them, or with the first. No group without tokens.

    Raises:
        ValueError: one of the two has no tokens.

    >>> spans = [(0, 12)], [(0, 7), (7, 12)]
    >>> common_boundaries(*spans)  # "Hugging Face" and "Hugging", " Face"
    [Group(first=[0], second=[0, 1])]
    """
    spans = [np.asarray(side, int).reshape(-1, 2) for side in (first, second)]
    validate.positive(first=len(spans[0]), second=len(spans[1]))
    cuts = [_cuts(side) for side in spans]
    common = sorted({*cuts[0]} & {*cuts[1]})
    parts = []
    for side, found in zip(spans, cuts, strict=True):
        places = [0, *(found[byte] for byte in common), len(side)]
        parts.append([list(range(*pair)) for pair in itertools.pairwise(places)])
    return [Group(*pair) for pair in zip(*parts, strict=True)]


def _cuts(spans: np.ndarray) -> dict[int, int]:
    """Byte -> first token behind it, for bytes inside the text that no token spans."""
    before = np.maximum.accumulate(spans[:, 1])
    after = np.minimum.accumulate(spans[::-1, 0])[::-1]
    # The last of several: a token that stands for nothing stays with those before.
    return {
        int(before[place - 1]): place
        for place in range(1, len(spans))
        if before[place - 1] <= after[place] and 0 < before[place - 1] < before[-1]
    }


def span_log_probs(log_probs: ArrayLike, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """The log probability of each group of tokens, given the text before it.

    Args:
        log_probs: `[tokens]`, of each token given those before it.
        groups: indices of tokens, such as `[g.first for g in common_boundaries(a, b)]`.

    Returns:
        `[groups]`, float64. Of a text in this tokenisation; the text's own probability,
        over all its tokenisations, is larger.

    >>> span_log_probs([-1.0, -2.0, -4.0], [[0], [1, 2]]).tolist()
    [-1.0, -6.0]
    """
    values = np.asarray(log_probs, float)
    return np.array([values[list(group)].sum() for group in groups])


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
    return _sorted_l1(
        jax.nn.softmax(student_logits.astype(jnp.float32)),
        jax.nn.softmax(teacher_logits.astype(jnp.float32)),
    )


def _sorted_l1(first: Array, second: Array) -> Array:
    """`sorted_l1` of probabilities."""
    width = max(first.shape[-1], second.shape[-1])

    def sorted_probs(probs: Array) -> Array:
        falling = jnp.sort(probs, axis=-1, descending=True)
        lead = [(0, 0)] * (falling.ndim - 1)
        return jnp.pad(falling, [*lead, (0, width - falling.shape[-1])])

    return jnp.abs(sorted_probs(first) - sorted_probs(second)).sum(-1)


def matched_tokens(
    student: Mapping[str, int], teacher: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of tokens that are the same text in two vocabularies.

    A space at the beginning is the same however it is written, "Ġ" or "▁".

    Args:
        student: token -> id, `get_vocab()` of a tokenizer.
        teacher: token -> id.

    Returns:
        The student's ids and the teacher's, `[matched]` each, by the student's.

    >>> matched_tokens({"a": 0, "Ġb": 1, "c": 2}, {"▁b": 0, "a": 5})
    (array([0, 1], dtype=int32), array([5, 0], dtype=int32))
    """

    def plain(vocab: Mapping[str, int]) -> dict[str, int]:
        found = {}
        for token, number in vocab.items():
            for space in _SPACES:
                token = token.replace(space, " ")
            found.setdefault(token, number)
        return found

    ours, theirs = plain(student), plain(teacher)
    pairs = sorted((ours[token], theirs[token]) for token in ours.keys() & theirs)
    found = np.array(pairs, np.int32).reshape(-1, 2)
    return found[:, 0], found[:, 1]


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
    validate.one_of(SPARSE_DIVERGENCES, divergence=divergence)
    validate.non_negative(unmatched_weight=unmatched_weight)
    validate.shape(jnp.shape(student_ids), teacher_ids=teacher_ids)

    def parted(logits: Array, ids: Array) -> tuple[Array, Array]:
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        others = log_probs.at[..., ids].set(_LEAST)
        rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
        return jnp.concatenate([log_probs[..., ids], rest], axis=-1), jnp.exp(others)

    student, student_rest = parted(student_logits, jnp.asarray(student_ids))
    teacher, teacher_rest = parted(teacher_logits, jnp.asarray(teacher_ids))
    loss = losses.DIVERGENCES[divergence](student, teacher)
    if unmatched_weight:
        loss += unmatched_weight * _sorted_l1(student_rest, teacher_rest)
    return loss
