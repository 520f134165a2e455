"""Imports go one way, and importing the library stays cheap."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MATHS = {
    "prototypes",
    "_kmeans",
    "geometry",
    "losses",
    "schedules",
    "neighbours",
    "outliers",
    "calibration",
    "consistency",
    "shared_tokens",
    "shortcuts",
    "_reductions",
    "premixing",
    "aggregation",
    "matching",
}
RUNTIME = {"batches", "data", "teacher", "checkpoint", "training", "nodes", "partition"}
# Part -> the parts of protojax it may import, beside base and _validate.
ALLOWED = {
    "base": set(),
    "_validate": set(),
    **dict.fromkeys(MATHS, MATHS),
    "distillation": MATHS,
    "defenses": MATHS | {"defenses"},
    "attacks": MATHS | {"attacks"},
    "evals": MATHS | {"evals"},
    "models": {"models"},
    **{part: set() for part in RUNTIME},
    "gossip": {"nodes"},
    "federation": {"batches", "gossip", "nodes"},
    "node_checkpoint": {"checkpoint", "federation", "nodes"},
    "communication": {"data"},
}


def imports(path):
    """Yields the dotted names that a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("protojax"), ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    part = path.relative_to(ROOT / "protojax").with_suffix("").parts[0]
    if part == "__init__":
        return
    for name in imports(path):
        assert not name.startswith(("experiments", "tests")), name
        if not name.startswith("protojax."):
            continue
        other = name.split(".")[1]
        allowed = ALLOWED[part] | {"base", "_validate"}
        assert other in allowed, f"{path.name} imports protojax.{other}"


@pytest.mark.parametrize(
    ("package", "owner"),
    [("transformers", "protojax/models/hf.py"), ("datasets", "experiments/tasks.py")],
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


def test_importing_protojax_loads_no_network_library():
    modules = [f"protojax.{part}" for part in sorted(MATHS) if not part.startswith("_")]
    code = (
        f"import protojax, {', '.join(modules)}, protojax.training, sys;"
        "print([m for m in ('transformers', 'datasets', 'huggingface_hub', 'requests',"
        " 'httpx', 'aiohttp', 'flax') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]))
def test_no_placeholder_is_left(path):
    assert not re.search(r"@[A-Z]{3,}@|TODO|FIXME", path.read_text())


def test_the_map_in_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    for path in files("protojax"):
        name = path.relative_to(ROOT / "protojax").parts[0]
        if name not in ("__init__.py", "_validate.py"):
            assert name in readme, name
