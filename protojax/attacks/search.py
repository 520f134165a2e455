"""An adaptive trigger: words that make a trusted model predict the target.

The group test looks for rows whose label contradicts the trusted model's prediction. An
attacker who knows the trusted model searches for words that change that prediction.
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
    """A trigger found word by word, each the best one after those found before.

    w_i = argmax_w mean_x score(insert(x, w_1 … w_{i−1} w))

    Args:
        score: texts -> `[texts]`, higher for texts closer to the attacker's aim; called
            once per word of the trigger, with all candidates in all texts.
        texts: the texts to insert the trigger into, of classes other than the target.
        candidates: the words to choose from; each is used once at most.
        num_words: words of the trigger.
        insert: `(text, words) -> text`.

    Returns:
        The words in their order, and the mean score with all of them. Of words with
        equal scores the first is taken.

    Raises:
        ValueError: fewer candidates than words, or no text.

    >>> count_of_a = lambda texts: np.array([text.count("a") for text in texts])
    >>> join = lambda text, words: f"{text} {words}"
    >>> greedy_words(count_of_a, ["x"], ["ab", "ca", "aa"], num_words=2, insert=join)
    (('aa', 'ab'), 3.0)

    References:
        Wallace et al., 2019, arXiv:1908.07125 (universal triggers). Unlike
        there, candidates are tried out, not chosen by gradients, so that any score can
        be used.
    """
    validate.positive(num_words=num_words)
    # A repeated candidate would be scored twice and could be chosen twice.
    found, left, best = (), list(dict.fromkeys(candidates)), 0.0
    bound = f">= num_words={num_words}"
    validate.require(len(left) >= num_words, "candidates", len(left), bound)
    validate.require(len(texts) > 0, "texts", len(texts), "at least one")
    for _ in range(num_words):
        tried = [" ".join((*found, word)) for word in left]
        # One call for all candidates, so that the model sees large batches.
        changed = [insert(text, words) for words in tried for text in texts]
        means = np.asarray(score(changed)).reshape(len(left), len(texts)).mean(1)
        chosen = int(means.argmax())
        found, best = (*found, left.pop(chosen)), float(means[chosen])
    return found, best
