"""Hugging Face checkpoints in and out: config.json, safetensors, tokenizer.

`load_hf` reads what transformers saves and `save_hf` writes what transformers loads.
Nothing here runs code from a checkpoint: no pickle is opened, no remote code is
trusted. The only file of protojax that imports transformers.
"""

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import transformers
from flax.traverse_util import flatten_dict
from safetensors.flax import save_file

from protojax import storage, validate
from protojax.models import _config_json, _tensors
from protojax.models.encoder import MODELS, Model, select_layers

_LOG = logging.getLogger("protojax")
_FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]  # all that is ever read
_WRITTEN = [
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer*",
    "vocab.*",
]
_VOCABULARIES = ["tokenizer.json", "vocab.txt", "vocab.json", "*.model"]
_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def load_hf(
    name_or_path: str | Path,
    *,
    num_labels: int,
    problem: str = "classification",
    dtype: str = "float32",
    products: str = "float32",
    attention: str | None = None,
    remat: bool = False,
    layers: Sequence[int] = (),
    seed: int = 0,
    revision: str | None = None,
) -> Model:
    """A checkpoint as a model for classification or regression.

    A checkpoint without a head (a bare or masked-language encoder) gets a fresh one,
    and a warning on the logger "protojax" says so. A head for another number of labels
    or another problem is an error. The names of its classes are those of config.json;
    a fresh head has none.

    Args:
        name_or_path: a local folder, `~` for the home folder, or a name on the Hugging
            Face Hub.
        num_labels: logits per row; 1 for regression.
        problem: "classification" or "regression".
        dtype: "float32" or "bfloat16", what the body computes in.
        products: see `EncoderConfig`.
        attention: see `EncoderConfig`.
        remat: recompute each layer in the backward pass to save memory.
        layers: the encoder layers to keep, ascending; all by default.
        seed: the seed of a fresh head.
        revision: branch, tag or commit on the Hub.

    Raises:
        OSError: where the checkpoint is not available, lacks a file or holds an
            incomplete one.
        ValueError: where protojax has no such family, config.json or the tokenizer
            contradicts the tensors, a weight is not finite, or tensors do not fit; one
            message names all of them.
    """
    folder = _fetch(name_or_path, revision)
    path = folder / "config.json"
    raw = _config_json.read_config(folder)
    # The headers come first: they bound the sizes that config.json may give.
    found = _tensors.headers(folder, raw["model_type"])
    values, tokenizer = _with_defaults(path), load_tokenizer(folder)
    config = _config_json.encoder_config(
        path,
        raw["model_type"],
        values,
        {name: stored.shape for name, stored in found.items()},
        pad_id=None if tokenizer is None else tokenizer.pad_token_id,
        num_labels=num_labels,
        problem=problem,
        dtype=dtype,
        products=products,
        attention=attention,
        remat=remat,
    )
    _check_tokenizer(folder, tokenizer, config.vocab_size)
    own_head = "classifier" not in _tensors.fresh_modules(config, found)
    if own_head:
        _config_json.check_problem(path, raw, problem)
    params = _tensors.read_params(folder, config, found, seed)
    # After the tensors: their error is clearer where the number of labels differs.
    names = _config_json.label_names(path, raw, num_labels) if own_head else ()
    model = Model(config, params, tokenizer, names)
    return select_layers(model, layers) if layers else model


def class_names(
    name_or_path: str | Path, revision: str | None = None
) -> tuple[str, ...]:
    """The names of a classifier's classes, LABEL_0 and so on where it has none.

    Read before `load_hf`, whose number of labels must be that of the checkpoint.

    Args:
        name_or_path: a local folder, `~` for the home folder, or a name on the Hugging
            Face Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        OSError: where the checkpoint is not available or lacks a file.
        ValueError: where it has no classifier, or names that are not those of classes.
    """
    folder = _fetch(name_or_path, revision)
    path, raw = folder / "config.json", _config_json.read_config(folder)
    stored = _tensors.headers(folder, raw["model_type"])
    if not any(name.startswith("classifier.") for name in stored):
        raise ValueError(
            f"{folder} holds an encoder without a classifier: it was not trained for "
            "any classes."
        )
    # With transformers' default of two classes, where config.json names none.
    found = {str(key): name for key, name in _with_defaults(path)["id2label"].items()}
    names = _config_json.label_names(path, {**raw, "id2label": found}, len(found))
    return names or tuple(_config_json.placeholders(len(found)).values())


def save_hf(folder: str | Path, model: Model) -> None:
    """Writes a folder that transformers loads as `AutoModelForSequenceClassification`.

    The folder is written under a temporary name next to its path and then renamed. An
    older checkpoint there is replaced; a folder that holds anything else is refused.

    Args:
        folder: the target; its parents are created.
        model: the model to save, with its tokenizer and the names of its classes if it
            has them.

    Raises:
        FileExistsError: where the folder holds files that this function never writes.
        ValueError: where there is not one name per class.
    """
    # Resolved, so that the target of a link is replaced and not the link.
    folder = _expanded(folder).resolve()
    foreign = _foreign_files(folder)
    if foreign:
        raise FileExistsError(
            f"{folder} holds {', '.join(foreign)}: more than a checkpoint. "
            "Save to a folder of its own."
        )
    with storage.atomic_folder(folder) as new:
        new.mkdir()
        _write_config(new, model)
        _write_params(new, model)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)


def load_tokenizer(folder: str | Path) -> transformers.PreTrainedTokenizerBase | None:
    """The tokenizer of a local checkpoint, None where there is none.

    Args:
        folder: with tokenizer.json or the older vocabulary files.

    Raises:
        OSError: on a file that is only a Git LFS pointer.
        ValueError: where the files are not those of a tokenizer.
    """
    folder = _expanded(folder)
    files = [path for pattern in _VOCABULARIES for path in folder.glob(pattern)]
    if not files:
        return None
    for path in files:
        _config_json.refuse_pointer(path)
    try:
        # No code of the checkpoint runs, and no name in it makes a download.
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of three libraries
        # The error is of the last of several readers that were tried.
        remedy = " To read *.model alone: pip install sentencepiece protobuf."
        remedy *= all(path.suffix == ".model" for path in files)
        raise ValueError(
            f"The files in {folder} make no tokenizer "
            f"({_config_json.one_line(error)}).{remedy}"
        ) from error


def wrap_tokenizer(
    tokenizer: Any, *, max_length: int = 512, **special_tokens: str
) -> transformers.PreTrainedTokenizerFast:
    """A transformers tokenizer around one of the package `tokenizers`.

    It returns token types, as BERT's does.

    >>> from tokenizers import Tokenizer
    >>> from tokenizers.models import WordLevel
    >>> vocab = {"[PAD]": 0, "[UNK]": 1, "good": 2}
    >>> wrapped = wrap_tokenizer(Tokenizer(WordLevel(vocab, unk_token="[UNK]")))
    >>> wrapped("good").input_ids, wrapped.pad_token, wrapped.cls_token
    ([2], '[PAD]', None)

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        max_length: the most tokens that the model reads.
        **special_tokens: such as `pad_token="<pad>"`. By default those of BERT that
            are in the vocabulary.

    Raises:
        ValueError: on a special token that is not in the vocabulary.
    """
    vocab = tokenizer.get_vocab()
    for name, token in special_tokens.items():
        validate.require(token in vocab, name, token, "in the vocabulary")
    known = {name: token for name, token in _BERT_TOKENS.items() if token in vocab}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **(known | special_tokens),
    )


def _fetch(name_or_path: str | Path, revision: str | None) -> Path:
    """The local folder of a checkpoint, which is downloaded if necessary."""
    folder = _expanded(name_or_path)
    if folder.is_dir():
        return folder
    try:
        fetched = huggingface_hub.snapshot_download(
            str(name_or_path),
            revision=revision,
            # No pickles, which can run code, and no weights for other frameworks.
            allow_patterns=_FILES,
            # Folders hold exports to other formats, such as ONNX.
            ignore_patterns=["*/*"],
        )
    except Exception as error:  # of the Hub's own, HTTP and system libraries alike
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{str(name_or_path)!r} is no local folder, and could not be had from the "
            f"Hugging Face Hub ({type(error).__name__}: {reason}). Give the path of a "
            "folder with config.json and model.safetensors; or check the name, the "
            "connection and, for a private model, the login; or set HF_HUB_OFFLINE=1 "
            "to use what was downloaded before."
        ) from error
    return Path(fetched)


def _expanded(folder: str | Path) -> Path:
    """The path with `~` replaced by the home folder."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:  # the home of a user that does not exist
        raise OSError(f"{str(folder)!r}: {error}") from error


def _with_defaults(path: Path) -> dict[str, Any]:
    """The content of config.json, with transformers' defaults for missing fields."""
    try:
        # Read by transformers, since config.json omits what equals its defaults.
        return transformers.AutoConfig.from_pretrained(
            str(path.parent), local_files_only=True, trust_remote_code=False
        ).to_dict()
    except Exception as error:  # of three libraries
        raise ValueError(
            f"{path} is no config ({_config_json.one_line(error)})."
        ) from error


def _check_tokenizer(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    """Raises on tokens that the word embedding has no row for."""
    if tokenizer is None:
        _LOG.warning(
            "%s holds no tokenizer, none of %s: the model reads ids, no text.",
            folder,
            ", ".join(_VOCABULARIES),
        )
        return
    vocab = tokenizer.get_vocab()
    token = max(vocab, key=vocab.get, default="")
    # Not the number of tokens: ids may have gaps.
    largest = vocab.get(token, -1)
    if largest >= vocab_size:
        raise ValueError(
            f"Expected ids < {vocab_size}, the rows of the word embedding, from the "
            f"tokenizer in {folder}, found id {largest} of token {token!r}. Give the "
            "checkpoint the tokenizer it was trained with, or resize its embedding: "
            "model.resize_token_embeddings(len(tokenizer)) of transformers."
        )


def _write_config(folder: Path, model: Model) -> None:
    """Writes config.json in the form of transformers."""
    config = model.config
    placeholders = _config_json.placeholders(config.num_labels)
    names = list(model.label_names or placeholders.values())
    one_each = len(set(names)) == len(names) == config.num_labels
    bound = f"{config.num_labels} different ones, or none"
    validate.require(one_each, "label_names", tuple(names), bound)
    family = MODELS[config.family]
    values = {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    # transformers has no number that stands for "as wide as the layers".
    if values.get("embedding_size") == 0:
        values["embedding_size"] = config.hidden_size
    # The tokenizer's, since CamemBERT has others than transformers takes by default.
    for name in ("bos_token_id", "eos_token_id"):
        number = getattr(model.tokenizer, name, None)
        values |= {} if number is None else {name: number}
    saved = transformers.AutoConfig.for_model(
        config.family,
        architectures=[family.architecture],
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type=_config_json.PROBLEM_TYPES[config.problem],
        # The type of the file, whatever the model computes in.
        dtype="float32",
        **values,
    )
    saved.save_pretrained(folder)


def _write_params(folder: Path, model: Model) -> None:
    """Writes model.safetensors under the names of a classifier's checkpoint."""
    params = flatten_dict(model.params)
    tensors = {}
    for name, tensor in _tensors.expected_tensors(model.config).items():
        value = jnp.asarray(params[tensor.path], jnp.float32)
        tensors[name] = value.T if tensor.transposed else value
    path = folder / "model.safetensors"
    # Older versions of transformers refuse a file without it.
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors creates files that only their owner can read.
    path.chmod((folder / "config.json").stat().st_mode)


def _foreign_files(folder: Path) -> list[str]:
    """The files of a folder that `save_hf` never writes."""
    return sorted(
        path.name
        for path in (folder.iterdir() if folder.exists() else ())
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in _WRITTEN)
    )
