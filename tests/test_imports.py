"""Imports go one way, and importing the library stays cheap."""

import ast
import functools
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Room -> its floor: a room imports from lower floors only, and from itself.
LIBRARY = {
    **dict.fromkeys(("base", "validate"), 0),
    "storage": 1,
    **dict.fromkeys(("data", "prototypes", "models", "evals", "attacks"), 2),
    **dict.fromkeys(("distillation", "detection", "generation", "privacy"), 3),
    **dict.fromkeys(("training", "distillability"), 4),
    **dict.fromkeys(("federated", "reports", "rl"), 5),
    "pipelines": 6,
    "cli": 7,
}
STUDIES = {
    **dict.fromkeys(("settings", "errors"), 0),
    "runtime": 1,
    "world": 2,
    "arms": 3,
    "study": 4,
    "systems": 5,
    "reports": 6,
    "configs": 7,
    **dict.fromkeys(("bench", "run", "standin"), 8),
}
# What a room may not import though it is on a lower floor: statistics take arrays.
BANNED = {
    "detection": {"storage", "models", "attacks", "evals"},
    "prototypes": {"models"},
    "evals": {"storage", "data", "models", "prototypes", "attacks"},
    "privacy": {"storage", "data", "models", "prototypes", "attacks"},
}


@functools.cache
def nodes(path):
    """The nodes of a file's syntax tree, parsed once for all tests."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path):
    """The dotted names that a file imports, `from a import b` as `a.b`."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


@functools.cache
def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def room(path, folder):
    return path.relative_to(ROOT / folder).with_suffix("").parts[0]


@pytest.mark.parametrize(
    ("folder", "floors"), [("protojax", LIBRARY), ("experiments", STUDIES)]
)
def test_rooms_import_lower_floors_only(folder, floors):
    for path in files(folder):
        own = room(path, folder)
        if own in ("__init__", "__main__"):
            continue
        for name in imports(path):
            package, _, inner = name.partition(".")
            assert package != "tests", f"{path}: {name}"
            if folder == "protojax":
                assert package != "experiments", f"{path}: {name}"
            if package != folder or inner == "__version__":
                continue
            other = inner.split(".")[0]
            lower = floors[other] < floors[own] and other not in BANNED.get(own, ())
            assert other == own or lower, f"{path} imports {name}"


def test_private_files_are_seen_from_their_own_room_only():
    for folder in ("protojax", "experiments"):
        for path in files(folder):
            for name in imports(path):
                package, _, inner = name.partition(".")
                if package not in ("protojax", "experiments"):
                    continue
                if inner == "__version__":
                    continue
                parts = inner.split(".")
                hidden = any(part.startswith("_") for part in parts)
                own = package == folder and parts[0] == room(path, folder)
                assert own or not hidden, f"{path} imports {name}"


def test_rooms_are_small_and_show_their_names():
    for folder in ("protojax", "experiments"):
        for path in files(folder):
            lines = len(path.read_text().splitlines())
            if path.name == "__init__.py":
                assert lines <= 40, path
        for place in {path.parent for path in files(folder)}:
            assert (place / "__init__.py").exists(), place
            assert len([*place.glob("[!_]*.py")]) <= 12, place


def test_files_are_short():
    for folder in ("protojax", "experiments"):
        for path in files(folder):
            lines = len(path.read_text().splitlines())
            assert lines <= 400, f"{path} has {lines} lines"


def test_functions_are_short():
    for folder in ("protojax", "experiments"):
        for path in files(folder):
            for node in nodes(path):
                if isinstance(node, ast.FunctionDef):
                    documented = ast.get_docstring(node) is not None
                    body = node.body[documented:] or node.body
                    lines = body[-1].end_lineno - body[0].lineno + 1
                    assert lines <= 60, f"{path}: {node.name} has {lines} lines"


@pytest.mark.parametrize(
    ("package", "owner"),
    [
        ("transformers", "protojax/models/_hub.py"),
        ("datasets", "experiments/world/tasks.py"),
    ],
)
def test_one_file_owns_a_package(package, owner):
    users = {
        str(path.relative_to(ROOT))
        for folder in ("protojax", "experiments")
        for path in files(folder)
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert users == {owner}


# The last two are extras: imported where they are used, by importlib.
@pytest.mark.parametrize(
    "banned", ["pickle", "flax.nnx", "torch", "jax_privacy", "dp_accounting"]
)
def test_nobody_imports(banned):
    for folder in ("protojax", "experiments"):
        for path in files(folder):
            assert not any(name.startswith(banned) for name in imports(path)), path


# Rooms, and what they load neither themselves nor by the rooms of the lines above.
LIGHT = {
    ("detection", "privacy"): (
        *("transformers", "flax", "ml_collections", "sklearn", "datasets"),
        *("huggingface_hub", "requests", "httpx"),
    ),
    ("data", "prototypes", "evals", "attacks", "distillation", "training"): (
        *("transformers", "datasets", "huggingface_hub", "requests", "httpx"),
    ),
}
LOADED = """
import importlib, json, sys
for rooms, banned in json.loads(sys.argv[1]):
    for name in rooms:
        importlib.import_module(f"protojax.{name}")
    print(json.dumps([name for name in banned if name in sys.modules]))
"""


def test_importing_a_room_loads_no_heavy_library():
    """In one process, since what an earlier room loads is there for the later ones."""
    found = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps([*LIGHT.items()])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines() == ["[]"] * len(LIGHT)


def test_the_command_line_answers_without_the_libraries_of_the_commands():
    code = (
        "import protojax.cli, sys; protojax.cli.main([]);"
        "print([m for m in ('jax', 'numpy', 'experiments') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]))
def test_no_placeholder_is_left(path):
    assert not re.search(r"@[A-Z]{3,}@|TODO|FIXME", path.read_text())


def test_the_map_in_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    for path in files("protojax"):
        name = path.relative_to(ROOT / "protojax").parts[0]
        if name not in ("__init__.py", "__main__.py", "validate.py"):
            assert name in readme, name
