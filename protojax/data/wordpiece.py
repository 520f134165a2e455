"""A word-piece tokenizer trained on the given texts, for models trained from scratch.

It works like BERT's uncased tokenizer, with a vocabulary learned from the texts. All
single characters are in that vocabulary, so a word never seen in training, such as a
trigger, is encoded by its letters and not as `[UNK]`.
"""

import string
from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from protojax import validate

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(texts: Sequence[str], *, vocab_size: int) -> Tokenizer:
    """A word-piece tokenizer trained on texts; the same texts give the same one.

    Texts are cleaned, lower-cased and stripped of accents, split at white space and
    punctuation, and encoded as `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, where `B
    [SEP]` has type 1. `[PAD]` is 0.

    Args:
        texts: the texts to learn the word pieces from.
        vocab_size: the largest number of word pieces, special tokens included.

    Returns:
        The tokenizer.

    Raises:
        ValueError: if the vocabulary cannot hold the special tokens and the characters.

    >>> tokenizer = train_wordpiece(["play some music", "play it"], vocab_size=200)
    >>> tokenizer.encode("Play cf", "it").tokens
    ['[CLS]', 'play', 'c', '##f', '[SEP]', 'it', '[SEP]']
    """
    tokenizer = _bert_tokenizer({})
    alphabet = set(string.ascii_lowercase + string.digits + string.punctuation)
    for text in texts:
        alphabet.update(tokenizer.normalizer.normalize_str(text))
    # Sorted, because a set of strings has another order in every process.
    alphabet = sorted(char for char in alphabet if not char.isspace())
    # The trainer numbers the inner characters in the order of a hash table and breaks
    # ties by number; naming them as special tokens fixes the order. The tokenizer that
    # is returned is built anew, so they are not special in it.
    fixed = [*SPECIAL_TOKENS, *(f"##{char}" for char in alphabet)]
    smallest = len(fixed) + len(alphabet)
    bound = f">= {smallest}, the special tokens and the characters"
    validate.require(vocab_size >= smallest, "vocab_size", vocab_size, bound)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _bert_tokenizer(tokenizer.get_vocab())


def _bert_tokenizer(vocab: dict[str, int]) -> Tokenizer:
    """A tokenizer with BERT's pipeline and the given vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if vocab:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, vocab[name]) for name in ("[CLS]", "[SEP]")],
        )
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
