"""The differences between families of language models in their checkpoints."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from protojax.models import _config_json, _tensors
from protojax.models.language.config import LanguageConfig


class Source(NamedTuple):
    """The content of a checkpoint that its config is made from.

    Attributes:
        path: of config.json, for messages.
        raw: the content of config.json.
        values: the same, with transformers' defaults for missing fields.
        tensors: by plain name.
    """

    path: Path
    raw: Mapping[str, Any]
    values: Mapping[str, Any]
    tensors: Mapping[str, _tensors.Stored]

    def require(self, condition: bool, name: str, value: Any, allowed: str) -> None:
        """Raises where a value of config.json is not allowed.

        Args:
            condition: whether it is.
            name: the field.
            value: the value found.
            allowed: what is allowed.

        Raises:
            ValueError: unless the condition holds.
        """
        _config_json.require(condition, name, value, allowed, self.path)


class LanguageFamily(NamedTuple):
    """The parts in which one family's checkpoints differ from others.

    Attributes:
        architecture: the transformers class that a saved checkpoint names.
        prefix: the prefix of the body's tensors in checkpoints of that class; those of
            the bare body have none.
        modules: `(gated) -> {parameter path: checkpoint name}`, for a perceptron that
            is gated or not; `{i}` stands for a layer. Parameters with one name lie
            side by side in its tensor, in this order. A path may end with a leaf, and
            the name is then the whole one.
        fields: field of `LanguageConfig` -> field of config.json.
        fixed: fields of `LanguageConfig` with the only value that the family allows.
        demanded: fields of config.json with the only value that is computed.
        read: `(source) -> fields of LanguageConfig` that no field of config.json holds
            as it is; it raises ValueError on what is not computed.
        write: `(config) -> fields of config.json`, the inverse.
        twins: plain names under which a checkpoint may hold the word embedding too.
        ignored: patterns of plain names that the model does not use.
        transposed: whether checkpoints hold linear layers as `[out, in]`.
    """

    architecture: str
    prefix: str
    modules: Callable[[bool], Mapping[str, str]]
    fields: Mapping[str, str]
    fixed: Mapping[str, Any]
    demanded: Mapping[str, Any]
    read: Callable[[Source], dict[str, Any]]
    write: Callable[[LanguageConfig], dict[str, Any]]
    twins: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    transposed: bool = True


def within(module: str, name: str, parts: Mapping[str, str]) -> dict[str, str]:
    """A map from parameter path to checkpoint name, of a module's parts.

    >>> within("mlp", "layers.{i}.mlp", {"up": "up_proj"})
    {'mlp/up': 'layers.{i}.mlp.up_proj'}

    Args:
        module: the path of the module.
        name: its name in a checkpoint.
        parts: path within the module -> name within its own.
    """
    return {f"{module}/{path}": f"{name}.{part}" for path, part in parts.items()}
