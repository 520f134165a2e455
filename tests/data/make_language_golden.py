"""Makes the golden checkpoints of language models, and what PyTorch computes with them.

Needs torch. Run from the root of the repository, for all variants or the named ones:

    python tests/data/make_language_golden.py [VARIANT ...]

Each folder of `golden_language` then holds what transformers saves (config.json,
generation_config.json, model.safetensors, tokenizer) and golden.safetensors: ids and
mask of prompts, the 32 tokens that PyTorch writes after each without sampling, and
their logits.
"""

import sys
from pathlib import Path

import numpy as np
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

HERE = Path(__file__).parent / "golden_language"
STEPS = 32
WORDS = ["a", "and", "cold", "dull", "end", "film", "is", "plot", "the", "thin", "warm"]
OWN_HEAD = ("t5-gated", "mt5")
TOKENS = ["<pad>", "</s>", "<unk>", "<s>"]
CHAT = "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}"

# Settings differ from every default, so that a setting which is lost is noticed. The
# vocabulary has more rows than the tokenizer has tokens.
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
_T5 = {
    "vocab_size": 24,
    "d_model": 12,
    "d_kv": 4,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "layer_norm_epsilon": 1e-3,
    "dropout_rate": 0.2,
    "decoder_start_token_id": 3,
    **_IDS,
}
_LLAMA = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    **_IDS,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "t5": transformers.T5Config(**_T5),
    "t5-gated": transformers.T5Config(
        **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "mt5": transformers.MT5Config(**_T5, feed_forward_proj="gated-gelu"),
    "gpt2": transformers.GPT2Config(
        vocab_size=24,
        n_positions=64,
        n_embd=12,
        n_layer=2,
        n_head=3,
        n_inner=20,
        activation_function="gelu",
        layer_norm_epsilon=1e-3,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.2),
        **_IDS,
    ),
    "llama": transformers.LlamaConfig(
        **{**_LLAMA, "eos_token_id": [1, 2]},
        head_dim=6,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=ROPE,
    ),
    "llama-tied": transformers.LlamaConfig(
        **_LLAMA, tie_word_embeddings=True, attention_dropout=0.2
    ),
    "qwen2": transformers.Qwen2Config(**_LLAMA, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(
        **_LLAMA, head_dim=6, rope_parameters={"rope_type": "default", "rope_theta": 99}
    ),
    "bart": transformers.BartConfig(
        vocab_size=24,
        max_position_embeddings=40,
        d_model=12,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        activation_function="relu",
        dropout=0.2,
        scale_embedding=True,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **_IDS,
    ),
}


def make_tokenizer(chat: bool) -> transformers.PreTrainedTokenizerFast:
    """Returns a tokenizer of whole words, which ends each text."""
    vocab = {token: i for i, token in enumerate([*TOKENS, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    pad, end, unknown, start = TOKENS
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=16,
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        bos_token=start,
        chat_template=CHAT if chat else None,
    )


def make_model(
    config: transformers.PreTrainedConfig, *, own_head: bool = False, seed: int = 0
) -> transformers.PreTrainedModel:
    """Returns a model with weights so large that no part of it is without effect."""
    import torch  # not above: pytest imports this file also where torch is missing

    torch.manual_seed(seed)
    kind = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        kind = transformers.AutoModelForSeq2SeqLM
    model = kind.from_config(config).eval()
    if own_head:
        # transformers ties every T5; a file with two different tensors unties it.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    is_t5 = config.model_type in ("t5", "mt5")
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            # Not the frequencies of rotary positions, which are buffers.
            if value.requires_grad or name == "final_logits_bias":
                value.add_(torch.randn_like(value) * 0.25)
        if is_t5:
            # Else each token repeats the one before it.
            model.shared.weight.mul_(0.2)
            if own_head:
                model.lm_head.weight.mul_(0.2)
    return model


def make_prompts(left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and mask of prompts of 1 to 5 tokens, padded on one side."""
    lengths, rng = np.array([5, 1, 3]), np.random.default_rng(0)
    mask = np.arange(5) < lengths[:, None]
    mask = mask[:, ::-1] if left else mask
    return np.where(mask, rng.integers(4, 24, mask.shape), 0), mask.astype(int)


def run_torch(model: transformers.PreTrainedModel, ids, mask, steps: int = STEPS):
    """Returns the tokens that a model writes without sampling, and their logits."""
    import torch

    # No token ends an output, so that all have the same length.
    model.generation_config.eos_token_id = None
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    # Without a cache: that of transformers has as many layers as a T5's encoder.
    whole = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, use_cache=False
    )
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(**inputs, decoder_input_ids=whole[:, :-1]).logits
            return whole[:, 1:].numpy(), logits.numpy()
        length = ids.shape[1]
        seen = torch.cat([inputs["attention_mask"], torch.ones(len(ids), steps)], 1)
        places = (seen.cumsum(1) - 1).clamp(min=0).long()
        inputs = {"attention_mask": seen[:, :-1], "position_ids": places[:, :-1]}
        logits = model(whole[:, :-1], **inputs).logits[:, length - 1 :]
    return whole[:, length:].numpy(), logits.numpy()


def make_golden(name: str) -> None:
    """Writes one golden folder."""
    own_head = name in OWN_HEAD
    model, folder = make_model(CONFIGS[name], own_head=own_head), HERE / name
    model.save_pretrained(folder)
    make_tokenizer(chat=name == "llama").save_pretrained(folder)
    ids, mask = make_prompts(left=not model.config.is_encoder_decoder)
    written, logits = run_torch(model, ids, mask)
    assert (logits.argmax(-1) == written).all()
    best = np.sort(logits)[..., -2:]
    print(
        name, f"{logits.std():.2f} {np.diff(best).min():.1e}", len(np.unique(written))
    )
    tensors = {"input_ids": ids, "attention_mask": mask, "output_ids": written}
    tensors = {key: value.astype(np.int32) for key, value in tensors.items()}
    # Those of the first tokens: the others are shown to be the largest.
    tensors["logits"] = np.ascontiguousarray(logits[:, :8])
    save_file(tensors, folder / "golden.safetensors")


if __name__ == "__main__":
    for name in sys.argv[1:] or CONFIGS:
        make_golden(name)
