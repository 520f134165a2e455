import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protojax.base import Examples
from protojax.data.tokens import tokenize
from protojax.data.wordpiece import SPECIAL_TOKENS, train_wordpiece

TEXTS = [
    "play some music on spotify",
    "playing the song I watched yesterday",
    "rate this movie five stars",
    "Añade música a mi lista",
    "book a table for two, please!",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS * 5, vocab_size=240)


def test_special_tokens_come_first(tokenizer):
    assert [tokenizer.token_to_id(name) for name in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    vocab = tokenizer.get_vocab()
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_vocabulary_is_as_large_as_asked():
    assert train_wordpiece(TEXTS * 5, vocab_size=200).get_vocab_size() == 200
    # Where there are no more pairs to join it is smaller.
    assert train_wordpiece(["a b"], vocab_size=9999).get_vocab_size() < 200


def test_frequent_words_are_whole(tokenizer):
    encoded = train_wordpiece(TEXTS * 5, vocab_size=600).encode("Play SOME Música!")
    assert encoded.tokens == ["[CLS]", "play", "some", "musica", "!", "[SEP]"]


def test_pairs_have_types(tokenizer):
    encoded = tokenizer.encode("a", "b b")
    assert encoded.tokens == ["[CLS]", "a", "[SEP]", "b", "b", "[SEP]"]
    assert encoded.type_ids == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("word", ["cf", "mn", "bb", "tq", "zzyzx", "q7", "~", "año"])
def test_unseen_words_are_spelt_out(tokenizer, word):
    encoded = tokenizer.encode(f"i {word} watched", add_special_tokens=False)
    assert "[UNK]" not in encoded.tokens
    spelt = "".join(token.removeprefix("##") for token in encoded.tokens[1:])
    assert spelt.startswith(word.replace("ñ", "n"))


def test_unseen_characters_are_unknown(tokenizer):
    assert tokenizer.encode("日", add_special_tokens=False).tokens == ["[UNK]"]
    learnt = train_wordpiece([*TEXTS, "日本"], vocab_size=300)
    assert learnt.encode("日", add_special_tokens=False).tokens == ["日"]


def test_marks_of_word_pieces_are_text(tokenizer):
    tokens = tokenizer.encode("##a", add_special_tokens=False).tokens
    assert tokens == ["#", "#", "a"]


def test_decoding_joins_the_pieces(tokenizer):
    text = "play zzyzx please"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_same_texts_same_tokenizer(tokenizer):
    assert train_wordpiece(TEXTS * 5, vocab_size=240).to_str() == tokenizer.to_str()
    # The order of hash tables differs between processes, so ask another one too.
    script = (
        "from tests.test_tokenizer import TEXTS, train_wordpiece\n"
        "tokenizer = train_wordpiece(TEXTS * 5, vocab_size=240)\n"
        "import sys; sys.stdout.buffer.write(tokenizer.to_str().encode())"
    )
    other = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert other.stdout.decode() == tokenizer.to_str()


def test_vocabulary_too_small_for_the_characters():
    with pytest.raises(ValueError, match=r"vocab_size >= \d+, the special tokens and"):
        train_wordpiece(TEXTS, vocab_size=100)


def test_tokenize_with_a_fast_tokenizer(tokenizer):
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    examples = Examples(
        ["play some music", "a"], ["b", "word " * 99_999], np.zeros(2, np.int32)
    )
    tokens = tokenize(fast, examples, max_length=16)
    for row in range(2):
        encoded = fast(
            examples.texts[row],
            examples.pairs[row],
            truncation=True,
            max_length=16,
            return_token_type_ids=True,
        )
        length = tokens.lengths[row]
        assert tokens.input_ids[row, :length].tolist() == encoded["input_ids"]
        types = tokens.token_type_ids[row]
        assert types[:length].tolist() == encoded["token_type_ids"]
        assert not tokens.input_ids[row, length:].any()
        assert not types[length:].any()
    assert tokens.lengths[1] == 16
    single = tokenize(fast, examples._replace(pairs=None), max_length=16)
    assert single.input_ids[1, :4].tolist() == [
        2,
        fast.convert_tokens_to_ids("a"),
        3,
        0,
    ]
