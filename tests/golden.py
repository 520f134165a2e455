"""Figures of tiny studies that no change of the code's structure may move.

They are pinned bit for bit, which only the same versions on the same kind of processor
can show. `PROTOJAX_GOLDEN=write python -m pytest tests/test_study.py` writes them anew;
a commit that does says which figure moved and why.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform

import jax
import numpy as np
import pytest

# What depends on the clock or on the commit.
MOVING = (
    *("commit", "evaluated_commit", "step_seconds", "round_seconds", "step_ratio"),
)


def machine():
    """Returns what bits depend on beside the code."""
    cpu = pathlib.Path("/proc/cpuinfo")
    flags = [
        line
        for line in (cpu.read_text().splitlines() if cpu.exists() else [])
        if line.startswith(("flags", "model name", "Features"))
    ]
    packages = ("jax", "jaxlib", "numpy", "scikit-learn", "scipy")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": ".".join(platform.python_version_tuple()[:2]),
        "processor": hashlib.sha256("\n".join(sorted({*flags})).encode()).hexdigest(),
    }


def digest(value):
    """Returns a short hash of arrays, texts and containers of them."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        sha.update(jax.tree_util.keystr(path, simple=True, separator="/").encode())
        array = None if isinstance(leaf, str) else np.asarray(leaf)
        sha.update(
            leaf.encode()
            if array is None
            else f"{array.dtype}{array.shape}".encode() + array.tobytes()
        )
    return sha.hexdigest()[:16]


def figures(rows):
    """Returns the rows of a study's results without what moves by itself."""
    return [
        {name: value for name, value in row.items() if name not in MOVING}
        for row in rows
    ]


def file_of(name):
    """Returns the file of what is pinned under a name."""
    return pathlib.Path(__file__).parent / "data" / f"golden_{name}.json"


def writing():
    """Returns whether figures are written anew."""
    return os.environ.get("PROTOJAX_GOLDEN") == "write"


def skip_elsewhere(name):
    """Skips a test, before it computes anything, where bits cannot be compared."""
    path = file_of(name)
    if not writing() and json.loads(path.read_text())["machine"] != machine():
        pytest.skip(f"{path.name} was pinned on another machine or other versions")


def check(name, found):
    """Compares figures with those that are pinned under a name."""
    found = json.loads(json.dumps({"machine": machine(), "figures": found}))
    if writing():
        text = json.dumps(found, indent=1, sort_keys=True)
        file_of(name).write_text(text + "\n")
        return
    assert found == json.loads(file_of(name).read_text())
