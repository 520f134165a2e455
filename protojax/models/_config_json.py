"""The config.json of a checkpoint, checked before a model is built.

The file may come from an untrusted source. Every error is an OSError or a ValueError in
one line that names the file.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from protojax import validate

# What a field of config.json may hold.
FLAG, INTEGER, NAME, NUMBER = "true or false", "an integer", "a name", "a finite number"
SIZE = "an integer, a dimension of some tensor"
_POINTER = b"version https://git-lfs.github.com/spec/"


def one_line(error: BaseException) -> str:
    """The type and message of an error, in one line of limited length."""
    # The text may be the file's own, which must not fill a log or forge lines of it.
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said if len(said) <= 300 else said[:297] + '...'}"


def refuse_pointer(path: Path) -> None:
    """Raises where a file is only the Git LFS pointer to a large one.

    Args:
        path: a file.

    Raises:
        OSError: on a Git LFS pointer.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise OSError(
                f"{path} is an LFS pointer: git lfs pull, in its repository, gets the "
                "file that it stands for."
            )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is not JSON, or not an object.
    """
    refuse_pointer(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)}).") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ValueError(f"Expected a JSON object in {path}, found a {kind}.")
    return found


def read_config(folder: Path, families: Collection[str]) -> dict[str, Any]:
    """The content of config.json of a checkpoint of a known family.

    Args:
        folder: the checkpoint.
        families: the known families.

    Raises:
        OSError: where there is none, or only an adapter.
        ValueError: on another family.
    """
    path = folder / "config.json"
    # With the package peft installed, transformers would apply the adapter to the
    # model.
    if (folder / "adapter_config.json").exists():
        raise OSError(
            f"{folder} holds adapter_config.json, an adapter: merge it first, with "
            "model.merge_and_unload() of the package peft, and save what that returns."
        )
    if not path.is_file():
        raise FileNotFoundError(f"No config.json in {folder}: not a checkpoint.")
    raw = read_object(path)
    family = raw.get("model_type")
    # No nearest name is suggested: another family is not a typing error.
    known = f"one of {', '.join(families)}, the families that protojax has,"
    require(family in list(families), "model_type", family, known, path)
    return raw


def check_values(
    path: Path,
    fields: Mapping[str, str],
    kinds: Mapping[str, str],
    values: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises on a value of another kind, or on a size that no tensor has.

    Args:
        path: of config.json, for messages.
        fields: our name of a field -> that in config.json.
        kinds: our name -> what it holds, `NUMBER` where it has none.
        values: our name -> the value found.
        shapes: of the tensors.

    Raises:
        ValueError: on the first value that is refused.
    """
    # The file may claim any size; no more is allocated than the tensors fill.
    largest = max((max(s) for s in shapes.values() if s and 0 not in s), default=0)
    for ours, theirs in fields.items():
        value, kind = values[ours], kinds.get(ours, NUMBER)
        flag = isinstance(value, bool)
        # True and False are integers in Python.
        fits = {
            FLAG: flag,
            NAME: isinstance(value, str),
            INTEGER: isinstance(value, int) and not flag,
            SIZE: isinstance(value, int) and not flag,
            NUMBER: isinstance(value, int | float)
            and not flag
            and math.isfinite(value),
        }[kind]
        require(fits, theirs, value, INTEGER if kind == SIZE else kind, path)
        if kind == SIZE:
            bound = f"<= {largest}, the largest dimension of the tensors"
            require(value <= largest, theirs, value, bound, path)


def check_depth(
    path: Path,
    name: str,
    layers: int,
    start: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises where config.json names more layers than the tensors may belong to.

    Args:
        path: of config.json, for messages.
        name: the field that says how many.
        layers: the value found.
        start: what names of tensors have before the number of their layer.
        shapes: of the tensors.

    Raises:
        ValueError: where there are fewer.
    """
    numbers = {
        name.removeprefix(start).split(".")[0]
        for name in shapes
        if name.startswith(start)
    }
    # Where all have other names, the list of these says more than their number.
    depth = len(numbers) or len(shapes)
    bound = f"<= {depth}, the layers of the tensors"
    require(layers <= depth, name, layers, bound, path)


def require(condition: bool, name: str, value: Any, allowed: str, path: Path) -> None:
    """Raises where a value of config.json is not allowed.

    Args:
        condition: whether it is.
        name: the field.
        value: the value found.
        allowed: what is allowed.
        path: of config.json.

    Raises:
        ValueError: unless the condition holds.
    """
    # Lists may be nested so deeply that they cannot be printed.
    shown = value if isinstance(value, str | int | float | None) else type(value)
    validate.require(condition, name, shown, f"{allowed} in {path}")
