"""The folder of a checkpoint as transformers knows it: fetched, and written anew.

The only file of protojax that imports transformers. Nothing here runs code from a
checkpoint: no pickle is opened, no remote code is trusted.
"""

import contextlib
import fnmatch
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers

from protojax import storage, validate
from protojax.models import _config_json

_LOG = logging.getLogger("protojax")
_FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]  # all that is ever read
_WRITTEN = [
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
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


def fetch(
    name_or_path: str | Path, revision: str | None, *, further: Sequence[str] = ()
) -> Path:
    """The local folder of a checkpoint, which is downloaded if necessary.

    Args:
        name_or_path: a local folder, `~` for the home folder, or a name on the Hugging
            Face Hub.
        revision: branch, tag or commit on the Hub.
        further: patterns of files that are downloaded too.

    Raises:
        OSError: where the checkpoint is not available.
    """
    folder = _expanded(name_or_path)
    if folder.is_dir():
        return folder
    try:
        fetched = huggingface_hub.snapshot_download(
            str(name_or_path),
            revision=revision,
            # No pickles, which can run code, and no weights for other frameworks.
            allow_patterns=[*_FILES, *further],
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


def with_defaults(path: Path) -> dict[str, Any]:
    """The content of config.json, with transformers' defaults for missing fields.

    Args:
        path: of config.json.

    Raises:
        ValueError: where transformers refuses it.
    """
    try:
        # Read by transformers, since config.json omits what equals its defaults.
        return transformers.AutoConfig.from_pretrained(
            str(path.parent), local_files_only=True, trust_remote_code=False
        ).to_dict()
    except Exception as error:  # of three libraries
        raise ValueError(
            f"{path} is no config ({_config_json.one_line(error)})."
        ) from error


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
    if not files and not _reads_bytes(folder):
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
        remedy *= bool(files) and all(path.suffix == ".model" for path in files)
        raise ValueError(
            f"The files in {folder} make no tokenizer "
            f"({_config_json.one_line(error)}).{remedy}"
        ) from error


def check_tokenizer(folder: Path, tokenizer: Any, vocab_size: int) -> None:
    """Raises on tokens that the word embedding has no row for.

    Args:
        folder: the checkpoint, for messages.
        tokenizer: its tokenizer; None makes a warning.
        vocab_size: the rows of the word embedding.

    Raises:
        ValueError: on an id beyond them.
    """
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


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write a checkpoint into, which then replaces the older one.

    Args:
        folder: the target; its parents are created.

    Raises:
        FileExistsError: where it holds files that are no part of a checkpoint.
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
        yield new


def write_config(folder: Path, family: str, values: dict[str, Any]) -> None:
    """Writes config.json in the form of transformers.

    Args:
        folder: of the checkpoint.
        family: as transformers calls it.
        values: fields of its config.
    """
    # The type of the file, whatever the model computes in.
    config = transformers.AutoConfig.for_model(family, dtype="float32", **values)
    config.save_pretrained(folder)


def _expanded(folder: str | Path) -> Path:
    """The path with `~` replaced by the home folder."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:  # the home of a user that does not exist
        raise OSError(f"{str(folder)!r}: {error}") from error


def _reads_bytes(folder: Path) -> bool:
    """Whether the tokenizer is ByT5's, which has no vocabulary."""
    path = folder / "tokenizer_config.json"
    read = _config_json.read_object(path) if path.is_file() else {}
    return read.get("tokenizer_class") == "ByT5Tokenizer"


def _foreign_files(folder: Path) -> list[str]:
    """The files of a folder that are no part of a checkpoint."""
    return sorted(
        path.name
        for path in (folder.iterdir() if folder.exists() else ())
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in _WRITTEN)
    )
