"""Hugging Face checkpoints in and out: config.json, safetensors, tokenizer.

`load_hf` reads what transformers saves and `save_hf` writes what transformers loads.
Nothing here runs code from a checkpoint: no pickle is opened, no remote code is
trusted.
"""

from collections.abc import Sequence
from pathlib import Path

from flax.traverse_util import flatten_dict

from protojax import validate
from protojax.models import _encoder_json, _encoder_tensors, _hub, _tensors
from protojax.models._hub import load_tokenizer, wrap_tokenizer
from protojax.models.encoder import MODELS, Model, select_layers

__all__ = ["class_names", "load_hf", "load_tokenizer", "save_hf", "wrap_tokenizer"]


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
    folder = _hub.fetch(name_or_path, revision)
    path = folder / "config.json"
    raw = _encoder_json.read_config(folder)
    # The headers come first: they bound the sizes that config.json may give.
    found = _encoder_tensors.headers(folder, raw["model_type"])
    values, tokenizer = _hub.with_defaults(path), load_tokenizer(folder)
    config = _encoder_json.encoder_config(
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
    _hub.check_tokenizer(folder, tokenizer, config.vocab_size)
    own_head = "classifier" not in _encoder_tensors.fresh_modules(config, found)
    if own_head:
        _encoder_json.check_problem(path, raw, problem)
    params = _encoder_tensors.read_params(folder, config, found, seed)
    # After the tensors: their error is clearer where the number of labels differs.
    names = _encoder_json.label_names(path, raw, num_labels) if own_head else ()
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
    folder = _hub.fetch(name_or_path, revision)
    path, raw = folder / "config.json", _encoder_json.read_config(folder)
    stored = _encoder_tensors.headers(folder, raw["model_type"])
    if not any(name.startswith("classifier.") for name in stored):
        raise ValueError(
            f"{folder} holds an encoder without a classifier: it was not trained for "
            "any classes."
        )
    # With transformers' default of two classes, where config.json names none.
    found = {
        str(key): name for key, name in _hub.with_defaults(path)["id2label"].items()
    }
    names = _encoder_json.label_names(path, {**raw, "id2label": found}, len(found))
    return names or tuple(_encoder_json.placeholders(len(found)).values())


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
    with _hub.new_folder(folder) as new:
        _write_config(new, model)
        params = flatten_dict(model.params)
        expected = _encoder_tensors.expected_tensors(model.config)
        _tensors.write(new, expected, params)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)


def _write_config(folder: Path, model: Model) -> None:
    """Writes config.json in the form of transformers."""
    config = model.config
    placeholders = _encoder_json.placeholders(config.num_labels)
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
    values |= {
        "architectures": [family.architecture],
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": _encoder_json.PROBLEM_TYPES[config.problem],
    }
    _hub.write_config(folder, config.family, values)
