"""A scan of a transfer set for what it holds of the private rows.

A student learns what its transfer set says, and answers about texts like a secret's
context bring the secret back even where no row holds it (8.65 of 13.3 bits through 200
innocent sentences of the same form). Synthetic text of a teacher holds secrets in
clear. So a set is scanned before it is used, and a scan that fails is an error.
"""

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from protojax import validate
from protojax.privacy.probes import Secret

_logger = logging.getLogger("protojax")
# What happens to rows that hold something of a private one.
OVERLAPS = ("error", "drop")
_WORD = re.compile(r"\w+")
_DIGIT = re.compile(r"\d")
# A slot of a template, or a word.
_PART = re.compile(r"\{.*?\}|\w+")
# Pairs of rows compared at once: bounds the memory of the products.
_PAIRS = 10_000_000
# An odd multiplier of a polynomial hash modulo 2^64.
_BASE = np.uint64(0x9E3779B97F4A7C15)


class Overlap(NamedTuple):
    """Which transfer rows hold something of the private rows, and how.

    Attributes:
        exact: `[rows]`, bool, a member's text, whatever case, punctuation and spaces.
        ngram: `[rows]`, bool, a sequence of words that a member has too.
        near: `[rows]`, bool, shingles much like a member's.
        template: `[rows]`, bool, a secret's context with another code or owner, or a
            member's text with other digits.
        secret: `[rows]`, bool, a planted secret in clear.
    """

    exact: np.ndarray
    ngram: np.ndarray
    near: np.ndarray
    template: np.ndarray
    secret: np.ndarray

    @property
    def failed(self) -> np.ndarray:
        """The rows that hold anything, `[rows]`, bool."""
        return np.any(list(self), axis=0)

    def counts(self) -> dict[str, int]:
        """The number of rows that fail each check."""
        return {name: int(rows.sum()) for name, rows in self._asdict().items()}


def scan(
    texts: Sequence[str],
    members: Sequence[str],
    *,
    secrets: Sequence[Secret] = (),
    templates: Sequence[str] = (),
    ngram: int = 8,
    shingle: int = 5,
    similarity: float = 0.7,
) -> Overlap:
    """The overlap of a transfer set with private rows and secrets.

    Near-duplicates have a Jaccard similarity |A ∩ B| / |A ∪ B| of their sets of
    `shingle` characters (Broder 1997); sets are compared by hashes of 64 bits, without
    sampling, so nothing near is missed.

    Args:
        texts: `[rows]`, the transfer set.
        members: all private candidates, whether members or not.
        secrets: that were planted in them.
        templates: further sentences with slots in braces that no row may have.
        ngram: words of a shared sequence.
        shingle: characters.
        similarity: from which a row is a near-duplicate, in (0, 1].

    Raises:
        ValueError: on numbers out of range, or a template without a word.

    >>> found = scan(["Play some jazz!", "stop"], ["play some jazz"])
    >>> found.failed.tolist(), found.counts()["exact"]
    ([True, False], 1)
    """
    validate.positive(ngram=ngram, shingle=shingle)
    validate.require(0 < similarity <= 1, "similarity", similarity, "in (0, 1]")
    rows, private = (
        [_WORD.findall(text.casefold()) for text in part] for part in (texts, members)
    )
    plain, known = ([" ".join(words) for words in part] for part in (rows, private))
    texts_of_members = set(known)
    return Overlap(
        np.array([text in texts_of_members for text in plain], bool),
        _shared_ngrams(rows, private, ngram),
        _near_duplicates(plain, known, shingle, similarity),
        _templates(plain, known, [*templates, *(one.template for one in secrets)]),
        _in_clear(plain, secrets),
    )


def require_clean(overlap: Overlap, *, accepted: Sequence[str] = ()) -> None:
    """Raises, with counts but no text, unless all rows pass.

    Args:
        overlap: such as from `scan`.
        accepted: names of checks that may fail, such as "ngram".

    Raises:
        ValueError: for rows that fail, or a check that does not exist.

    >>> require_clean(scan(["stop"], ["play some jazz"]))
    """
    for name in accepted:
        validate.one_of(Overlap._fields, accepted=name)
    counts = {
        name: count
        for name, count in overlap.counts().items()
        if count and name not in accepted
    }
    if counts:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(
            f"Expected a transfer set without private text, found {found} of "
            f"{len(overlap.exact)} rows. Keep those alone for which `failed` is False."
        )


def clean_rows(
    texts: Sequence[str], members: Sequence[str], *, action: str, name: str
) -> np.ndarray:
    """The rows that hold nothing of a private one, `[rows]`, bool.

    Args:
        texts: `[rows]`, the transfer set.
        members: all private texts.
        action: "error", or "drop", which logs how many rows are left out.
        name: of the rows, for messages.

    Raises:
        ValueError: with counts but no text, where there are such rows and the action is
            "error", or none is left.

    >>> kept = clean_rows(["stop"], ["play some jazz"], action="drop", name="public")
    >>> kept.tolist()
    [True]
    """
    validate.one_of(OVERLAPS, action=action)
    found = scan(texts, members)
    if action == "error":
        try:
            require_clean(found)
        except ValueError as error:
            raise ValueError(f"{error} Or --overlap drop.") from error
    counts = ", ".join(f"{check}: {n}" for check, n in found.counts().items() if n)
    dropped = int(found.failed.sum())
    bound = f"some that hold nothing of private rows ({counts})"
    left = dropped < len(texts)
    validate.require(left, f"number of {name} rows", len(texts), bound)
    if dropped:
        _logger.warning(
            "%d of %d %s rows hold something of private rows and are left out (%s).",
            dropped,
            len(texts),
            name,
            counts,
        )
    return ~found.failed


def _windows(symbols: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all windows of a size, and the row of each; none spans two rows."""
    lengths = np.array([len(row) for row in symbols], np.int64)
    joined = np.concatenate([np.empty(0, np.uint64), *symbols]).astype(np.uint64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    count = max(0, len(joined) - size + 1)
    found = np.zeros(count, np.uint64)
    for place in range(size):
        # Modulo 2^64, as unsigned integers wrap.
        found = found * _BASE + (joined[place : place + count] + np.uint64(1))
    inside = owner[:count] == owner[size - 1 : size - 1 + count]
    return found[inside], owner[:count][inside]


def _shared_ngrams(
    rows: Sequence[Sequence[str]], private: Sequence[Sequence[str]], size: int
) -> np.ndarray:
    ids: dict[str, int] = {}
    coded = [
        [
            np.array([ids.setdefault(w, len(ids)) for w in words], np.uint64)
            for words in p
        ]
        for p in (rows, private)
    ]
    own, owner = _windows(coded[0], size)
    shared = np.zeros(len(rows), bool)
    shared[owner[np.isin(own, _windows(coded[1], size)[0])]] = True
    return shared


def _near_duplicates(
    texts: Sequence[str], members: Sequence[str], size: int, similarity: float
) -> np.ndarray:
    found = np.zeros(len(texts), bool)
    padded = [
        # A text shorter than a shingle is one shingle.
        np.frombuffer(text.ljust(size).encode("utf-32-le"), np.uint32)
        for text in (*texts, *members)
    ]
    hashes, owner = _windows(padded, size)
    names, column = np.unique(hashes, return_inverse=True)
    ones = np.ones(len(owner), np.float32)
    shape = (len(padded), len(names))
    sets = sparse.csr_matrix((ones, (owner, column)), shape)
    # Shingles that repeat within a text count once.
    sets.data[:] = 1
    sizes = np.asarray(sets.sum(1)).ravel()
    others, own = sets[len(texts) :].T.tocsr(), sizes[len(texts) :]
    step = max(1, _PAIRS // max(1, len(members)))
    for start in range(0, len(texts), step):
        stop = min(start + step, len(texts))
        shared = (sets[start:stop] @ others).tocoo()
        union = sizes[start + shared.row] + own[shared.col] - shared.data
        found[start + shared.row[shared.data >= similarity * union]] = True
    return found


def _templates(
    texts: Sequence[str], members: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    patterns = []
    for template in dict.fromkeys(templates):
        parts = _PART.findall(template.casefold())
        words = any(part[0] != "{" for part in parts)
        validate.require(words, "templates", template, "to have words beside slots")
        # Up to four words in a slot: a name, a number that is written in groups.
        pieces = [
            r"\w+(?: \w+){0,3}" if part[0] == "{" else re.escape(part) for part in parts
        ]
        patterns.append(r"\b" + " ".join(pieces) + r"\b")
    pattern = re.compile("|".join(patterns)) if patterns else None
    # Members that hold a number are templates of their own.
    masked = {_DIGIT.sub("#", text) for text in members if _DIGIT.search(text)}
    return np.array(
        [
            bool(pattern is not None and pattern.search(text))
            or (bool(_DIGIT.search(text)) and _DIGIT.sub("#", text) in masked)
            for text in texts
        ],
        bool,
    )


def _in_clear(texts: Sequence[str], secrets: Sequence[Secret]) -> np.ndarray:
    """Rows with a secret's sentence, or with owner and code in whatever sentence."""
    plain = [
        tuple(
            " ".join(_WORD.findall(part.casefold())) for part in (one.owner, one.code)
        )
        for one in secrets
    ]
    found = [
        any(f" {code} " in text and f" {owner} " in text for owner, code in plain)
        for text in (f" {text} " for text in texts)
    ]
    return np.array(found, bool)
