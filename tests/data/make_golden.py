"""Makes the golden checkpoints: tiny models of each family and what PyTorch computes.

Needs torch. Run from the root of the repository, for all families or the named ones:

    python tests/data/make_golden.py [FAMILY ...]

Each `golden_FAMILY` folder then holds what transformers saves (config.json,
model.safetensors, tokenizer) and golden.safetensors with the ids, mask and token types
of `TEXTS` and `PAIRS` and the logits and hidden states that PyTorch computes for them.
"""

import sys
from pathlib import Path

import numpy as np
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

HERE = Path(__file__).parent
TEXTS = ["a warm film", "dull", "the plot is thin and the end is cold", ""]
PAIRS = ["a cold film", "the end", "is it", "dull"]
WORDS = ["a", "and", "cold", "dull", "end", "film", "is", "plot", "the", "thin", "warm"]

# Settings differ from every default, so that a setting which is lost is noticed.
_SHARED = {
    "vocab_size": 24,
    "max_position_embeddings": 20,
    "id2label": dict(enumerate(["bad", "fair", "good"])),
}
_BERT_LIKE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.15,
}
_ROBERTA_LIKE = {
    **_SHARED,
    **_BERT_LIKE,
    "layer_norm_eps": 1e-2,
    "type_vocab_size": 1,
    "classifier_dropout": 0.3,
}
CONFIGS = {
    "bert": transformers.BertConfig(
        **_SHARED, **_BERT_LIKE, layer_norm_eps=1e-3, hidden_act="gelu_new"
    ),
    "roberta": transformers.RobertaConfig(**_ROBERTA_LIKE),
    "xlm-roberta": transformers.XLMRobertaConfig(**_ROBERTA_LIKE),
    "camembert": transformers.CamembertConfig(
        **_ROBERTA_LIKE, bos_token_id=5, eos_token_id=6
    ),
    "electra": transformers.ElectraConfig(
        **_SHARED,
        **_BERT_LIKE,
        embedding_size=12,
        layer_norm_eps=1e-3,
        hidden_act="relu",
        classifier_dropout=0.3,
    ),
    "mpnet": transformers.MPNetConfig(**_SHARED, **_BERT_LIKE, layer_norm_eps=1e-2),
    "distilbert": transformers.DistilBertConfig(
        **_SHARED,
        dim=16,
        n_layers=3,
        n_heads=2,
        hidden_dim=28,
        dropout=0.2,
        attention_dropout=0.15,
        seq_classif_dropout=0.3,
    ),
}
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# Before the words of a published vocabulary; the mask comes after them.
CAMEMBERT_TOKENS = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"]
CAMEMBERT_TOKENS += ["<s>", "</s>"]


def make_tokenizer(family: str) -> transformers.PreTrainedTokenizerBase:
    """Returns a tokenizer of the family's kind, with its special tokens."""
    pieces = [(f"▁{word}", -float(rank)) for rank, word in enumerate(WORDS, 1)]
    if family == "xlm-roberta":
        special = [(token, 0.0) for token in ROBERTA_TOKENS[:-1]]
        return transformers.XLMRobertaTokenizer(
            vocab=[*special, *pieces, ("<mask>", 0.0)], model_max_length=16
        )
    if family == "camembert":
        special = [(token, 0.0) for token in CAMEMBERT_TOKENS]
        return transformers.CamembertTokenizer(
            vocab=[*special, *pieces, ("<mask>", 0.0)], model_max_length=16
        )
    if family == "mpnet":
        tokens = [*ROBERTA_TOKENS[:-1], *WORDS, "[UNK]", "<mask>"]
        return transformers.MPNetTokenizer(
            vocab={token: i for i, token in enumerate(tokens)}, model_max_length=16
        )
    return make_word_level(family)


def make_word_level(family: str) -> transformers.PreTrainedTokenizerFast:
    """Returns a tokenizer of whole words."""
    special = ROBERTA_TOKENS if family == "roberta" else BERT_TOKENS
    vocab = {token: i for i, token in enumerate([*special, *WORDS])}
    if family == "roberta":
        first, pad, last, unknown, mask = special
        pair = f"{first} $A {last} {last} $B {last}"
    else:
        pad, unknown, first, last, mask = special
        pair = f"{first} $A {last} $B:1 {last}:1"
    tokenizer = Tokenizer(WordLevel(vocab, unk_token=unknown))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=pair,
        special_tokens=[(token, vocab[token]) for token in (first, last)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=16,
        unk_token=unknown,
        pad_token=pad,
        cls_token=first,
        sep_token=last,
        mask_token=mask,
    )


def make_model(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """Returns a model with weights so large that no part of it is without effect."""
    import torch  # not above: pytest imports this file also where torch is missing

    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    return model


def make_golden(family: str) -> None:
    """Writes one golden folder."""
    import torch

    folder = HERE / f"golden_{family}"
    tokenizer, model = make_tokenizer(family), make_model(CONFIGS[family])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    batch = tokenizer(
        TEXTS, PAIRS, padding=True, return_token_type_ids=True, return_tensors="np"
    )
    inputs = {name: torch.tensor(ids) for name, ids in batch.items()}
    if family in ("distilbert", "mpnet"):
        del inputs["token_type_ids"]
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    tensors = {name: ids.astype(np.int32) for name, ids in batch.items()}
    tensors["logits"] = output.logits.numpy()
    tensors["hidden_states"] = torch.stack(output.hidden_states).numpy()
    save_file(tensors, folder / "golden.safetensors")


if __name__ == "__main__":
    for name in sys.argv[1:] or CONFIGS:
        make_golden(name)
