"""The command `protojax`: its help, its version, what it refuses, what it calls."""

import logging
import os
import pathlib
import re
import subprocess
import sys

import pytest

from protojax import __version__, cli
from protojax.cli import terminal

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def commands(monkeypatch):
    """Two commands in place of all, and the arguments that each was called with."""
    calls = []
    for name in [*cli.COMMANDS]:
        monkeypatch.delitem(cli.COMMANDS, name)

    def defend(arguments):
        calls.append(("defend", arguments))

    def watch(arguments):
        calls.append(("watch", arguments))
        return 3

    monkeypatch.setitem(cli.COMMANDS, "defend", cli.Command("Defends rows.", defend))
    monkeypatch.setitem(cli.COMMANDS, "watch", cli.Command("Watches a model.", watch))
    return calls


def test_without_arguments_it_says_how_studies_are_run(capsys):
    assert cli.main([]) == 0
    found = capsys.readouterr().out
    assert found.startswith("usage: protojax [--help] [--version] [COMMAND ...]\n")
    assert re.search(r"\n  defend +Tests your own rows", found)
    assert "  python -m experiments.run --config=quickstart.py\n" in found
    assert max(map(len, found.splitlines())) <= 80


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_the_answer_to_no_arguments(option, capsys):
    cli.main([])
    expected = capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main([option])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == expected


def test_help_lists_the_commands(commands, capsys):
    assert cli.main([]) == 0
    found = capsys.readouterr().out
    listed = "\ncommands:\n  defend  Defends rows.\n  watch   Watches a model.\n"
    assert listed in found
    assert commands == []


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"protojax {__version__}\n"


def test_a_command_gets_all_that_follows_its_name(commands):
    rest = ["--help", "rows.csv", "--alpha=0.1", "--", "-x", "watch", "--version"]
    assert cli.main(["defend", *rest]) == 0
    assert cli.main(["watch"]) == 3
    assert commands == [("defend", rest), ("watch", [])]


def refused(arguments, capsys):
    """The one line that a refused command line gets."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = found.err.splitlines()
    return line


@pytest.mark.parametrize("command", ["defend", "score"])
def test_help_of_a_command_says_how_it_is_used(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    found = capsys.readouterr().out
    assert f"usage: protojax {command}" in found
    assert f"example:\n  protojax {command} " in found
    assert max(map(len, found.splitlines())) <= 88


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["defend"], "required: --rows, --out, --student"),
        (["score"], "required: DIR, --rows, --out"),
        (["defend", "--row", "a.csv"], "required: "),
        (["score", "a", "--rows", "b", "--out", "c", "--x"], "unrecognized"),
    ],
)
def test_a_wrong_option_of_a_command_is_one_line(arguments, said, capsys):
    line = refused(arguments, capsys)
    assert line.startswith(f"protojax {arguments[0]}: ")
    assert said in line


def test_an_unknown_command_is_refused(commands, capsys):
    assert refused(["defence", "--help"], capsys) == (
        "protojax: Expected command one of defend, watch, found command='defence'. "
        "Did you mean 'defend'?"
    )
    assert "found command=''" in refused([""], capsys)
    assert commands == []


# `--vers` is no short form of `--version`, which a later option could take away.
@pytest.mark.parametrize("option", ["--verbose", "--vers", "-x", "--version=2"])
def test_an_unknown_option_is_refused(option, commands, capsys):
    assert option.split("=")[0] in refused([option], capsys)
    assert option.split("=")[0] in refused([option, "defend"], capsys)
    assert commands == []


def test_the_module_is_the_command():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "protojax", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    assert run("--version").stdout == f"protojax {__version__}\n"
    found = run("defence")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("protojax: Expected command ")


def test_a_message_is_printed_once(capsys):
    """A command loads one model several times."""
    log = logging.getLogger("protojax.models")
    with terminal.logged():
        for name in ("one", "one", "two"):
            log.warning("%s has no classifier", name)
    assert capsys.readouterr().err.splitlines() == [
        "warning: one has no classifier",
        "warning: two has no classifier",
    ]
