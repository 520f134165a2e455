"""Files and folders: whole or not at all, and nobody else's."""

import json
import os
import subprocess
import sys
import uuid

import jax.numpy as jnp
import numpy as np
import pytest

from protojax import storage
from protojax.storage import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def temporary(name, kind):
    return f".{name}.protojax-{uuid.uuid4().hex}.{kind}"


class Stop(BaseException):
    """What no `except Exception` stops, as a signal."""


@pytest.mark.parametrize("error", [OSError, Stop])
def test_a_file_that_could_not_be_written_leaves_the_older_one(tmp_path, error):
    path = tmp_path / "new" / "a.json"
    storage.write_json(path, {"a": 1})

    def fail():
        with storage.atomic(path) as file:
            file.write(b"half")
            assert len(names(path.parent)) == 2
            raise error

    with pytest.raises(error):
        fail()
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(path.parent) == ["a.json"]


def test_json_that_is_none_leaves_the_older_one(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, [1])
    with pytest.raises(TypeError):
        storage.write_json(path, object())
    assert path.read_text() == "[\n 1\n]\n"
    assert names(tmp_path) == ["a.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with storage.atomic(path) as one, storage.atomic(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"  # the last to be whole
    assert names(tmp_path) == ["a"]


def test_all_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace, rename = [], os.fsync, os.replace, os.rename
    monkeypatch.setattr(os, "fsync", lambda n: done.append("sync") or fsync(n))
    monkeypatch.setattr(os, "replace", lambda *a: done.append("name") or replace(*a))
    monkeypatch.setattr(os, "rename", lambda *a: done.append("name") or rename(*a))
    storage.write_json(tmp_path / "a.json", 1)
    assert done == ["sync", "name", "sync"]
    done.clear()
    with storage.atomic_folder(tmp_path / "b") as folder:
        (folder / "c").mkdir(parents=True)
        (folder / "c" / "d").write_text("")
    assert done == [*["sync"] * 3, "name", "sync"]


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("error", [OSError, Stop])
@pytest.mark.parametrize("moment", ["block", "rename"])
def test_a_folder_that_could_not_be_written(
    tmp_path, monkeypatch, older, error, moment
):
    path = tmp_path / "a"
    if older:
        path.mkdir()
        (path / "older").touch()
    rename = os.rename

    def failing(source, target):
        if str(source).endswith(".new"):
            raise error
        return rename(source, target)

    def fail():
        with storage.atomic_folder(path) as new:
            new.mkdir()
            new.with_name(new.name + ".of-a-library").mkdir()
            if moment == "block":
                raise error
            monkeypatch.setattr(os, "rename", failing)

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["a"] if older else [])
    assert not older or names(path) == ["older"]


def test_a_folder_takes_the_place_of_a_file_and_of_a_link(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("file", "link"):
        with storage.atomic_folder(tmp_path / name) as new:
            new.mkdir()
            (new / "new").touch()
        assert names(tmp_path / name) == ["new"]
    assert names(tmp_path) == ["file", "link", "target"]
    assert names(tmp_path / "target") == ["kept"]


DIE = """
import os, sys
from protojax.storage import atomic, atomic_folder

rename = os.rename
def die(source, target):
    if str(source).endswith(".new"):
        os._exit(1)
    rename(source, target)
os.rename = die
with atomic(sys.argv[1] + "/b") as file, atomic_folder(sys.argv[1] + "/a") as new:
    new.mkdir()
"""


def test_a_folder_set_aside_by_a_killed_process_comes_back(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "older").touch()
    command = [sys.executable, "-c", DIE, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 1
    assert [name.rpartition(".")[2] for name in names(tmp_path)] == [
        "new",
        "old",
        "tmp",
    ]
    place = tmp_path / "a"
    assert names(storage.set_aside(tmp_path)[place]) == ["older"]
    storage.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a"]
    assert names(place) == ["older"]
    assert storage.set_aside(tmp_path) == {}


def test_what_was_replaced_does_not_come_back(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / temporary("a", "old") / "older").mkdir(parents=True)
    assert storage.set_aside(tmp_path) == {}
    storage.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


def test_only_our_leftovers_are_removed(tmp_path):
    ours = [temporary("a.json", "tmp"), temporary("a b", "new")]
    ours.append(temporary("step_00000001", "new") + ".orbax-checkpoint-tmp")
    mark = uuid.uuid4().hex
    foreign = [
        *(
            ".git",
            ".env",
            ".venv",
            ".lock",
            ".ipynb_checkpoints",
            "a.tmp",
            "step_1.tmp",
        ),
        *(".a.json.123", f".a.{mark}.new", f".a.{mark}.old", f"a.protojax-{mark}.tmp"),
        *(f".protojax-{mark}.tmp", f".a.protojax-{mark}", f".a.protojax-{mark}.tmpx"),
        f".a.protojax-{mark[1:]}.tmp",
    ]
    for folder in (tmp_path, tmp_path / "sub"):
        folder.mkdir(exist_ok=True)
        for number, name in enumerate([*ours, *foreign]):
            if number % 2:
                (folder / name).mkdir()
                (folder / name / "content").touch()
            else:
                (folder / name).touch()
    inside = [tmp_path / ".hidden" / ours[0], tmp_path / "elsewhere" / ours[0]]
    for path in inside:
        path.parent.mkdir()
        path.touch()
    (tmp_path / "sub" / "link").symlink_to(tmp_path / "elsewhere")
    storage.remove_leftovers(tmp_path)
    rest = [".hidden", "elsewhere", "sub"]
    assert names(tmp_path) == sorted([*foreign, *rest])
    assert names(tmp_path / "sub") == sorted([*ours, *foreign, "link"])
    storage.remove_leftovers(tmp_path / "sub", below=True)
    assert names(tmp_path / "sub") == sorted([*foreign, "link"])
    assert all(path.exists() for path in inside)


def test_a_link_with_a_temporary_name_goes_and_its_target_stays(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").touch()
    (tmp_path / temporary("a", "new")).symlink_to(tmp_path / "target")
    storage.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["target"]
    assert names(tmp_path / "target") == ["kept"]


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    storage.remove_leftovers(tmp_path / "missing", below=True)
    assert names(tmp_path) == []


def test_arrays_hash_by_name_type_shape_and_bytes():
    array = np.arange(6, dtype=np.float32)
    cases = [
        {"a": array},
        {"b": array},
        {"a": array.astype(np.float64)},
        {"a": array.reshape(2, 3)},
        {"a": array[::-1]},
        {"a": array, "b": array},
        {},
    ]
    hashes = [files.hash_arrays(case) for case in cases]
    hashes.append(files.hash_arrays(cases[0], "part"))
    assert len(set(hashes)) == len(hashes)
    assert files.hash_arrays({"a": jnp.arange(6.0)}) == hashes[0]
    assert files.hash_arrays({"a": np.repeat(array, 2)[::2]}) == hashes[0]
    with pytest.raises(ValueError, match="dtype plain"):
        files.hash_arrays({"a": np.array([None])})


def test_a_file_is_hashed_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.hash_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
