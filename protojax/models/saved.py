"""Saved models with the SHA-256 of their files, so that damage is detected.

Next to a model's folder is a manifest, `model.sha256.json`. It is written before the
folder gets its name, so a model of a study always has its manifest. A model without one
was put there by hand, or by an earlier version, and is not checked.
"""

import json
import pathlib
import shutil

from protojax import storage
from protojax.models import Model, hf, language
from protojax.models.language import LanguageModel


def manifest_of(folder: pathlib.Path) -> pathlib.Path:
    """The file that holds the hashes of a model's folder.

    >>> manifest_of(pathlib.Path("teacher/model")).name
    'model.sha256.json'
    """
    return folder.with_name(f"{folder.name}.sha256.json")


def save(folder: pathlib.Path, model: Model | LanguageModel) -> None:
    """Writes a model and its manifest; an older model there is replaced."""
    with storage.atomic_folder(folder) as new:
        writes = isinstance(model, LanguageModel)
        (language.save_language_model if writes else hf.save_hf)(new, model)
        # Before the folder gets its name, so that no finished model lacks its manifest.
        storage.write_json(manifest_of(folder), _hashes(new))


def check(folder: pathlib.Path, *, run: pathlib.Path) -> None:
    """Checks the files of a model against its manifest, if it has one.

    Args:
        folder: the folder of the model.
        run: the folder to delete so that the model is trained again.

    Raises:
        ValueError: a file that is not as it was written, with its name and the remedy.
    """
    manifest = manifest_of(folder)
    if not manifest.exists():
        return
    remedy = f"Delete {run} and give the same command again: it is trained anew."
    try:
        expected = dict(json.loads(manifest.read_text()))
    except (ValueError, TypeError):
        raise ValueError(
            f"Expected {manifest} whole, found it damaged. {remedy}"
        ) from None
    found = _hashes(folder)
    for name, digest in expected.items():
        if found.get(name) != digest:
            state = "another" if name in found else "no such file"
            raise ValueError(
                f"Expected {folder / name} with the SHA-256 that it was written with, "
                f"found {state}. {remedy}"
            )


def remove(folder: pathlib.Path) -> None:
    """Removes a model and its manifest."""
    # The folder first: a model without its manifest would not be checked.
    shutil.rmtree(folder)
    manifest_of(folder).unlink(missing_ok=True)


def _hashes(folder: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder."""
    # A tokenizer with several chat templates has a folder of them.
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): storage.hash_file(path) for path in files
    }
