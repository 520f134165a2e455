"""A tiny model that writes, by hand, and batches for it."""

import jax.numpy as jnp
import numpy as np

from protojax.base import SequenceBatch, SequenceOutput
from protojax.models.language import LanguageConfig

VOCABULARY, DIM = 11, 8


def writer_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"words": (VOCABULARY, DIM), "mix": (DIM, DIM), "head": (DIM, VOCABULARY)}
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def writer_apply(params, batch, *, key=None, hidden_states=False):
    """State t is made of the mean of the source and the sum of outputs before t."""
    del key
    source = params["words"][batch.input_ids]
    if batch.perturbation is not None:
        source += batch.perturbation
    states = source, jnp.tanh(source @ params["mix"])
    mask = batch.attention_mask[..., None]
    mean = (states[1] * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
    said = params["words"][batch.output_ids][:, :-1]
    before = jnp.pad(jnp.cumsum(said, axis=1), ((0, 0), (1, 0), (0, 0)))
    written = jnp.tanh((mean[:, None] + before) @ params["mix"])
    return SequenceOutput(written, states if hidden_states else ())


def writer_head(params, states):
    return states @ params["head"]


def sequence_batch(rows=5, seed=0, k=3):
    rng = np.random.default_rng(seed)
    masks = [
        np.arange(width) < rng.integers(2, width + 1, (rows, 1)) for width in (6, 4)
    ]
    ids = [rng.integers(1, VOCABULARY, mask.shape) * mask for mask in masks]
    logits = rng.normal(size=(*masks[1].shape, VOCABULARY)).astype(np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    top = np.argsort(-probs, axis=-1)[..., :k]
    top_probs = np.take_along_axis(probs, top, axis=-1)
    return SequenceBatch(
        input_ids=ids[0].astype(np.int32),
        attention_mask=masks[0].astype(np.int32),
        output_ids=ids[1].astype(np.int32),
        output_weights=masks[1].astype(np.float32),
        where=np.ones(rows, bool),
        top_ids=top.astype(np.int32),
        top_log_probs=np.log(top_probs),
        rest_log_prob=np.log(1 - top_probs.sum(-1)),
        teacher_features=rng.normal(size=(rows, 1, DIM)).astype(np.float32),
        assigned_class=rng.integers(0, 3, rows).astype(np.int32),
    )


def language_config(**changes):
    """A tiny model of each kind; encoder_layers=0 gives a decoder only."""
    sizes = {
        "family": "t5",
        "vocab_size": 12,
        "hidden_size": 16,
        "num_layers": 1,
        "encoder_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 32,
        "positions": "rotary",
        "end_ids": (1,),
    }
    return LanguageConfig(**{**sizes, **changes})


class Letters:
    """A tokenizer with an id a letter, and an end token behind a source."""

    pad_token_id = None
    name_or_path = "letters"

    def __init__(self, letters="abcdefgh"):
        self.ids = {letter: number + 2 for number, letter in enumerate(letters)}

    def __len__(self):
        return len(self.ids) + 2

    def get_vocab(self):
        return {"<pad>": 0, "</s>": 1, **self.ids}

    def num_special_tokens_to_add(self, pair=False):
        return 1

    def __call__(self, texts, pairs, *, add_special_tokens, max_length, **_):
        room = max_length - add_special_tokens
        rows = [[self.ids[letter] for letter in text][:room] for text in texts]
        rows = [row + [1] * add_special_tokens for row in rows]
        return {"input_ids": rows, "token_type_ids": [[0] * len(row) for row in rows]}
