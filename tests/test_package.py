"""What users install: the library and its command, built offline as pip builds it."""

import ast
import configparser
import email
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

from protojax import __version__

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages whose name differs from that of what is imported from them.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "huggingface_hub": "huggingface-hub",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
}


def build(hook, folder):
    """The wheel that a hook of the build backend makes, without pip or a network."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: .[dev] has it")
    code = (
        f"import hatchling.build, sys; print(hatchling.build.{hook}(sys.argv[1]), "
        "file=sys.stderr)"
    )
    built = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert built.returncode == 0, built.stderr
    return folder / built.stderr.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = build("build_wheel", tmp_path_factory.mktemp("wheel"))
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_wheel_holds_the_library_alone(wheel):
    info = f"protojax-{__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel} == {"protojax", info}


def test_the_wheel_holds_every_file_of_the_library(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "protojax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "protojax/py.typed" in expected
    assert {name for name in wheel if name.startswith("protojax/")} == expected


def test_the_wheel_installs_the_command(wheel):
    scripts = configparser.ConfigParser()
    scripts.read_string(
        wheel[f"protojax-{__version__}.dist-info/entry_points.txt"].decode()
    )
    assert {name: dict(scripts[name]) for name in scripts.sections()} == {
        "console_scripts": {"protojax": "protojax.cli:main"}
    }


def test_the_wheel_says_what_it_needs(wheel):
    metadata = email.message_from_bytes(
        wheel[f"protojax-{__version__}.dist-info/METADATA"]
    )
    assert metadata["Version"] == __version__
    needed = [name for name in metadata.get_all("Requires-Dist") if ";" not in name]
    assert sorted(needed) == sorted(PROJECT["dependencies"])
    assert metadata.get_all("Provides-Extra") == ["dev", "dp", "experiments"]


def test_an_editable_install_finds_the_library_and_the_studies(tmp_path):
    with zipfile.ZipFile(build("build_editable", tmp_path)) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".pth")]
        assert file.read(name).decode().strip() == str(ROOT)


def imported(folder):
    """The distributions that the files of a folder import, wherever they do so."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
    own = {"protojax", "experiments", *sys.stdlib_module_names}
    packages = {name.split(".")[0] for name in found} - own
    return {DISTRIBUTIONS.get(name, name) for name in packages}


def required(requirements):
    return {re.match(r"[\w-]+", name)[0] for name in requirements}


def test_the_requirements_are_what_is_imported():
    library = required(PROJECT["dependencies"])
    studies = required(PROJECT["optional-dependencies"]["experiments"])
    assert imported("protojax") == library
    # ROUGE is for studies, and protojax/evals/generation.py loads it by importlib.
    assert imported("experiments") - library == studies - {"rouge-score"}
    assert not library & studies
