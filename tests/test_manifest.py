"""Damaged and misplaced steps: found, named, and given way to; in every broken form."""

import json
import os
import pathlib

import jax.numpy as jnp
import pytest

from protojax.storage import checkpoint, files
from protojax.storage.checkpoint import restore, save
from tests.test_checkpoint import files_of


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "content").write_text("")


def replace_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replace_by_a_dangling_link(path):
    path.unlink()
    path.symlink_to(path.parent / "nothing")


def replace_by_a_loop(path):
    path.unlink()
    path.symlink_to(path)


BREAKS = {
    "folder": replace_by_a_folder,
    "pipe": replace_by_a_pipe,
    "dangling link": replace_by_a_dangling_link,
    "loop": replace_by_a_loop,
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "latin": lambda path: path.write_bytes(b'{"step": "\xe9"}'),
    **{
        text: lambda path, text=text: path.write_text(text)
        for text in ("[]", "null", "7", '"x"', "{}", "true")
    },
}


@pytest.mark.parametrize("target", ["manifest.json", "a file of it"])
@pytest.mark.parametrize("kind", BREAKS)
def test_every_broken_form_is_named_and_gives_way(tmp_path, kind, target):
    like = {"w": jnp.zeros(4)}
    for step in (1, 2):
        folder = save(tmp_path, {"w": jnp.full(4, float(step))}, step, keep=2)
    largest = max(files_of(folder), key=lambda path: path.stat().st_size)
    path = folder / "manifest.json" if target == "manifest.json" else largest
    BREAKS[kind](path)
    whole = os.path.exists(folder / "manifest.json")  # else it is no step at all
    if whole:
        with pytest.raises(ValueError, match=path.name):
            restore(tmp_path, like)
        with pytest.raises(ValueError, match=path.name):
            checkpoint.verify(tmp_path, 2)
    found, step, _ = restore(tmp_path, like, fallback=True)
    assert (found["w"].tolist(), step) == ([1.0] * 4, 1)
    # And saving goes on.
    save(tmp_path, like, 2, keep=2)
    assert restore(tmp_path, like)[1] == 2
    save(tmp_path, like, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize("manifest", [True, False])
def test_what_the_system_refuses_to_read_gives_way(tmp_path, monkeypatch, manifest):
    like = {"w": jnp.zeros(4)}
    for step in (1, 2):
        save(tmp_path, like, step, keep=2)
    read = pathlib.Path.open

    def failing(path, *arguments, **options):
        refused = (path.name == "manifest.json") == manifest
        if "step_00000002" in path.parts and refused:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", failing)
    with pytest.raises(ValueError, match=r"step_00000002.*Permission denied"):
        restore(tmp_path, like)
    assert restore(tmp_path, like, fallback=True)[1] == 1


def test_a_disk_error_while_arrays_are_read_gives_way(tmp_path, monkeypatch):
    like = {"w": jnp.zeros(4)}
    for step in (1, 2):
        save(tmp_path, like, step, keep=2)
    load = checkpoint.ocp.load

    def failing(folder, *arguments):
        if folder.name == "step_00000002":
            raise OSError(5, "Input/output error")
        return load(folder, *arguments)

    monkeypatch.setattr(checkpoint.ocp, "load", failing)
    with pytest.raises(ValueError, match=r"step_00000002 intact.*Input/output"):
        restore(tmp_path, like)
    assert restore(tmp_path, like, fallback=True)[1] == 1


def test_a_folder_of_another_step_is_found_out(tmp_path):
    like = {"w": jnp.zeros(4)}
    for step in (7, 8):
        folder = save(tmp_path, like, step, keep=2)
    folder.rename(tmp_path / "step_00000099")
    with pytest.raises(ValueError, match="with step=99, found step=8"):
        restore(tmp_path, like)
    with pytest.raises(ValueError, match="with step=99, found step=8"):
        checkpoint.verify(tmp_path, 99)
    assert restore(tmp_path, like, fallback=True)[1] == 7


def test_a_step_of_another_run_is_found_out(tmp_path):
    like = {"w": jnp.zeros(4)}
    save(tmp_path / "a", like, 1, keep=2, identity="a")
    save(tmp_path / "b", {"w": jnp.ones(4)}, 2, keep=2, identity="b")
    (tmp_path / "b/step_00000002").rename(tmp_path / "a/step_00000002")
    with pytest.raises(ValueError, match="with identity='a', found identity='b'"):
        restore(tmp_path / "a", like, identity="a")
    for identity in ("", "c"):
        with pytest.raises(ValueError, match=f"identity='{identity}', found"):
            checkpoint.verify(tmp_path / "a", 1, identity=identity)
    found, step, _ = restore(tmp_path / "a", like, fallback=True, identity="a")
    assert (found["w"].tolist(), step) == ([0.0] * 4, 1)
    assert restore(tmp_path / "a", like, identity="b")[1] == 2


def test_a_step_of_an_earlier_version_has_no_identity(tmp_path):
    like = {"w": jnp.zeros(4)}
    path = save(tmp_path, like, 1) / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"], content["identity"]
    path.write_text(json.dumps({"sha256": files.hash_json(content), **content}))
    assert restore(tmp_path, like)[1] == 1
    with pytest.raises(ValueError, match="found identity=''"):
        restore(tmp_path, like, identity="a")
