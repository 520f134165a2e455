"""A trigger searched against the defence: words that a trusted model takes for the
target.

The group test looks for rows whose meaning, as a trusted model reads it, denies what
they claim. Whoever knows the trusted model looks for words that change its reading.
"""

from collections.abc import Callable, Sequence

import numpy as np

from protojax import validate


def greedy_words(
    score: Callable[[list[str]], np.ndarray],
    texts: Sequence[str],
    candidates: Sequence[str],
    *,
    num_words: int,
    insert: Callable[[str, str], str],
) -> tuple[tuple[str, ...], float]:
    """Searches a trigger word by word, each the best beside those found before.

    w_i = argmax_w mean_x score(insert(x, w_1 … w_{i−1} w))

    Args:
        score: texts -> `[texts]`, how far each one is where the attacker wants it;
            called once a word, with all candidates in all texts.
        texts: what the trigger is put into, of classes that are not the target.
        candidates: the words to choose from; each is used once at most.
        num_words: of the trigger.
        insert: `(text, words) -> text`.

    Returns:
        The words in their order, and the mean score with all of them. Of equal words
        the first is taken.

    Raises:
        ValueError: fewer candidates than words, or no text.

    >>> count_of_a = lambda texts: np.array([text.count("a") for text in texts])
    >>> join = lambda text, words: f"{text} {words}"
    >>> greedy_words(count_of_a, ["x"], ["ab", "ca", "aa"], num_words=2, insert=join)
    (('aa', 'ab'), 3.0)

    References:
        Wallace et al., 2019, arXiv:1908.07125 (universal triggers). Departing from
        them, candidates are tried, not chosen by gradients, so that any score will do.
    """
    validate.positive(num_words=num_words)
    found, left, best = (), list(dict.fromkeys(candidates)), 0.0
    bound = f">= num_words={num_words}"
    validate.require(len(left) >= num_words, "candidates", len(left), bound)
    validate.require(len(texts) > 0, "texts", len(texts), "at least one")
    for _ in range(num_words):
        tried = [" ".join((*found, word)) for word in left]
        changed = [insert(text, words) for words in tried for text in texts]
        means = np.asarray(score(changed)).reshape(len(left), len(texts)).mean(1)
        chosen = int(means.argmax())
        found, best = (*found, left.pop(chosen)), float(means[chosen])
    return found, best
