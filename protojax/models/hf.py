"""Hugging Face checkpoints in and out: config.json, safetensors, tokenizer.

`load_hf` reads what transformers saves and `save_hf` writes what transformers loads.
Nothing here runs code from a checkpoint: no pickle is opened, no remote code is
trusted. The only file of protojax that imports transformers.
"""

import fnmatch
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import jax.numpy as jnp
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.flax import save_file

from protojax import models, storage, validate
from protojax.base import PyTree
from protojax.models import MODELS, EncoderConfig, Model
from protojax.models.layers import HEAD, PROBLEMS

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
_PROBLEM_TYPES = dict(
    zip(PROBLEMS, ["single_label_classification", "regression"], strict=True)
)
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_LEAVES = {
    "bias": "bias",
    "embedding": "weight",
    "kernel": "weight",
    "scale": "weight",
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
    """Returns a checkpoint as a model for classification or regression.

    A checkpoint without a head (a bare or masked-language encoder) gets a fresh one,
    and a warning on the logger "protojax" says so. A head for another number of labels
    is an error.

    Args:
        name_or_path: a local folder, or a name on the Hugging Face Hub.
        num_labels: logits per row; 1 for regression.
        problem: "classification" or "regression".
        dtype: "float32" or "bfloat16", what the body computes in.
        products: see `EncoderConfig`.
        attention: see `EncoderConfig`.
        remat: recompute each layer in the backward pass to save memory.
        layers: which encoder layers to keep, rising; all by default.
        seed: of a fresh head.
        revision: branch, tag or commit on the Hub.

    Raises:
        OSError: where the checkpoint cannot be had or lacks a file.
        ValueError: where protojax has no such family, or the tensors do not fit; one
            message names all of them.
    """
    folder = _fetch(name_or_path, revision)
    config = _read_config(
        folder,
        num_labels=num_labels,
        problem=problem,
        dtype=dtype,
        products=products,
        attention=attention,
        remat=remat,
    )
    model = Model(config, _read_params(folder, config, seed), load_tokenizer(folder))
    return models.select_layers(model, layers) if layers else model


def save_hf(folder: str | Path, model: Model) -> None:
    """Writes a folder that transformers loads as `AutoModelForSequenceClassification`.

    The folder is written under a temporary name beside its place and then renamed. An
    older checkpoint there is replaced; a folder that holds anything else is refused.

    Args:
        folder: where to; its parents are made.
        model: what to save, with its tokenizer if it has one.

    Raises:
        FileExistsError: where the folder holds what this function never writes.
    """
    folder = Path(folder).resolve()
    foreign = _foreign_files(folder)
    if foreign:
        raise FileExistsError(
            f"{folder} holds {', '.join(foreign)}: more than a checkpoint. "
            "Save to a folder of its own."
        )
    with storage.atomic_folder(folder) as new:
        new.mkdir()
        _write_config(new, model.config)
        _write_params(new, model)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)


def load_tokenizer(folder: str | Path) -> transformers.PreTrainedTokenizerBase | None:
    """Returns the tokenizer of a local checkpoint, None where there is none.

    Args:
        folder: with tokenizer.json or the older vocabulary files.
    """
    folder = Path(folder)
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return None
    return transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def wrap_tokenizer(
    tokenizer: Any, *, max_length: int = 512, **special_tokens: str
) -> transformers.PreTrainedTokenizerFast:
    """Returns a transformers tokenizer around one of the package `tokenizers`.

    It returns token types, as BERT's does.

    >>> from tokenizers import Tokenizer
    >>> from tokenizers.models import WordLevel
    >>> vocab = {"[PAD]": 0, "[UNK]": 1, "good": 2}
    >>> wrapped = wrap_tokenizer(Tokenizer(WordLevel(vocab, unk_token="[UNK]")))
    >>> wrapped("good").input_ids, wrapped.pad_token, wrapped.cls_token
    ([2], '[PAD]', None)

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        max_length: tokens that the model reads at most.
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
    """Returns the local folder of a checkpoint, downloading it if it has to."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    try:
        fetched = huggingface_hub.snapshot_download(
            str(name_or_path),
            revision=revision,
            allow_patterns=_FILES,
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


def _read_config(folder: Path, **settings: Any) -> EncoderConfig:
    """Returns the config of a checkpoint and of what the caller wants from it."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"No config.json in {folder}: not a checkpoint.")
    raw = json.loads(path.read_text())
    validate.one_of(MODELS, model_type=raw.get("model_type"))
    for name, allowed in {
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }.items():
        found = raw.get(name, allowed)
        validate.require(found == allowed, name, found, f"{allowed!r} in config.json")
    # AutoConfig, because config.json leaves out what equals transformers' defaults.
    found = transformers.AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    ).to_dict()
    family = MODELS[raw["model_type"]]
    values = {ours: found[theirs] for ours, theirs in family.fields.items()}
    if values["classifier_dropout"] is None:
        values["classifier_dropout"] = values["dropout"]
    return EncoderConfig(family=raw["model_type"], **values, **family.fixed, **settings)


def _write_config(folder: Path, config: EncoderConfig) -> None:
    """Writes config.json as transformers does."""
    family = MODELS[config.family]
    values = {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    saved = transformers.AutoConfig.for_model(
        config.family,
        architectures=[family.architecture],
        id2label={i: f"LABEL_{i}" for i in range(config.num_labels)},
        label2id={f"LABEL_{i}": i for i in range(config.num_labels)},
        problem_type=_PROBLEM_TYPES[config.problem],
        dtype="float32",
        **values,
    )
    saved.save_pretrained(folder)


class _Tensor(NamedTuple):
    """A tensor of a checkpoint: which parameter, of which shape there, transposed."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


def _tensors(config: EncoderConfig) -> dict[str, _Tensor]:
    """Returns what a classifier's checkpoint holds, by name."""
    tensors = {}
    for path, leaf in flatten_dict(models.param_shapes(config)).items():
        module, kind = "/".join(path[:-1]), path[-1]
        layer = re.match(r"layers_(\d+)/", module)
        if layer:
            module = module.replace(layer[0], "layers_{i}/", 1)
        name = MODELS[config.family].modules[module].format(i=layer and layer[1])
        transposed = kind == "kernel"
        shape = leaf.shape[::-1] if transposed else leaf.shape
        tensors[f"{name}.{_LEAVES[kind]}"] = _Tensor(path, shape, transposed)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint."""
    single, index = (
        folder / "model.safetensors",
        folder / "model.safetensors.index.json",
    )
    if single.is_file():
        return [single]
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        files = [folder / Path(shard).name for shard in sorted(shards)]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}.")
        return files
    raise FileNotFoundError(
        f"No model.safetensors in {folder}. If it holds pytorch_model.bin instead: "
        "that is a pickle, which can run any code, and protojax opens none. If you "
        "trust it, convert it once where PyTorch is installed: transformers."
        "AutoModelForSequenceClassification.from_pretrained(OLD).save_pretrained(NEW)."
    )


def _read_params(folder: Path, config: EncoderConfig, seed: int) -> PyTree:
    """Returns the parameters of a checkpoint, a missing head drawn from the seed."""
    prefix = MODELS[config.family].prefix
    expected = {
        name.removeprefix(prefix): tensor for name, tensor in _tensors(config).items()
    }
    found = {}
    for path in _weight_files(folder):
        file = safe_open(path, framework="flax")
        for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
            found[_plain_name(name, prefix)] = (file, name)
    shapes = {
        name: tuple(file.get_slice(stored).get_shape())
        for name, (file, stored) in found.items()
    }
    held = {tensor.path[0] for name, tensor in expected.items() if name in found}
    fresh = [module for module in HEAD if module not in held]
    expected = {n: t for n, t in expected.items() if t.path[0] not in fresh}
    _check(folder, config, expected, shapes)
    flat = {}
    for name, tensor in expected.items():
        file, stored = found[name]
        value = file.get_tensor(stored).astype(jnp.float32)
        flat[tensor.path] = value.T if tensor.transposed else value
    if fresh:
        absent = " and no ".join(fresh)
        _LOG.warning("%s has no %s: drawn from seed %d.", folder, absent, seed)
        shapes = models.param_shapes(config)
        head = {module: shapes[module] for module in fresh}
        flat |= flatten_dict(models.init_params(head, seed=seed))
    return unflatten_dict(flat)


def _plain_name(name: str, prefix: str) -> str:
    """Returns a tensor's name without prefix and in today's spelling."""
    name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def _check(
    folder: Path,
    config: EncoderConfig,
    expected: dict[str, _Tensor],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Raises one error that lists every tensor that does not fit."""
    extra = sorted(shapes.keys() - expected.keys())
    ignored = [n for n in extra if n.startswith(MODELS[config.family].ignored)]
    if ignored:
        _LOG.info("%s: ignored %s.", folder, ", ".join(ignored))
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": [name for name in extra if name not in ignored],
        "mis-shaped": [
            f"{name} {shapes[name]} instead of {tensor.shape}"
            for name, tensor in expected.items()
            if shapes.get(name, tensor.shape) != tensor.shape
        ],
    }
    if not any(problems.values()):
        return
    lines = [f"The tensors in {folder} do not fit {config.family}."]
    for kind, names in problems.items():
        if names:
            lines.append(f"  {len(names)} {kind}: {', '.join(names)}")
    for name, tensor in expected.items():
        labels = shapes.get(name, (config.num_labels,))[0]
        if tensor.path == ("classifier", "kernel") and labels != config.num_labels:
            lines.append(
                f"  Its classifier has {labels} labels, found num_labels="
                f"{config.num_labels}. For another task start from a checkpoint "
                "without a classifier."
            )
    raise ValueError("\n".join(lines))


def _write_params(folder: Path, model: Model) -> None:
    """Writes model.safetensors under the names of a classifier's checkpoint."""
    params = flatten_dict(model.params)
    tensors = {}
    for name, tensor in _tensors(model.config).items():
        value = jnp.asarray(params[tensor.path], jnp.float32)
        tensors[name] = value.T if tensor.transposed else value
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read.
    path.chmod((folder / "config.json").stat().st_mode)


def _foreign_files(folder: Path) -> list[str]:
    """Returns what a folder holds that `save_hf` never writes."""
    return sorted(
        path.name
        for path in (folder.iterdir() if folder.exists() else ())
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in _WRITTEN)
    )
