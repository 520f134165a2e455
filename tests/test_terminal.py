"""What commands print and refuse, and the settings that their flags give."""

import logging
import pathlib
import types

import pytest
from rich.console import Console

from protojax.cli import defend, diagnose, outputs, privatise, settings_of, terminal
from protojax.pipelines import settings
from protojax.pipelines.settings import Columns, Defence
from tests.test_defence_parts import suspect


def fail(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\n  two\tthree "), "protojax x: one two three"),
        (FloatingPointError("not finite"), "protojax x: not finite"),
        (FileNotFoundError(2, "No such file", "a.csv"), "No such file: 'a.csv'"),
        # An error without a text says what it is.
        (OSError(), "protojax x: OSError"),
        (ValueError("x" * 5000), "protojax x: " + "x" * 1500),
    ],
)
def test_an_error_of_the_user_is_one_line(error, line, capsys):
    assert terminal.guarded("protojax x", fail(error)) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.endswith(f"{line}\n")
    assert found.err.count("\n") == 1


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(KeyError):
        terminal.guarded("protojax x", fail(KeyError("x")))


@pytest.mark.parametrize(
    ("resumes", "more"), [(True, " The same command goes on from here."), (False, "")]
)
def test_who_stops_a_command_is_told_whether_it_goes_on(resumes, more, capsys):
    found = terminal.guarded("protojax x", fail(KeyboardInterrupt()), resumes=resumes)
    assert found == 130
    assert capsys.readouterr().err == f"protojax x: stopped.{more}\n"


def test_the_status_of_work_is_that_of_the_command():
    assert [terminal.guarded("x", lambda code=code: code) for code in (0, 3)] == [0, 3]


def test_the_log_is_as_it_was_before(capsys):
    log = logging.getLogger("protojax")
    before = log.level, log.propagate, [*log.handlers]

    def work():
        log.info("read")
        log.debug("not said")
        log.error("odd")
        raise ValueError

    assert terminal.guarded("x", work) == 2
    assert (log.level, log.propagate, log.handlers) == before
    assert capsys.readouterr().err == "read\nwarning: odd\nx: ValueError\n"


def test_each_run_says_a_message_anew(capsys):
    log = logging.getLogger("protojax.models")
    for _ in range(2):
        with terminal.logged():
            log.warning("%s of %d", "one", 2)
            log.warning("one of 2")
    assert capsys.readouterr().err == "warning: one of 2\n" * 2


def test_a_command_can_be_pasted_again():
    found = terminal.command_line("defend", ["--rows", "my rows.csv", "--set", "a='b'"])
    assert found[:4] == ["protojax", "defend", "--rows", "'my rows.csv'"]
    assert found[5] == "'a='\"'\"'b'\"'\"''"


def test_paths_are_not_wrapped(capsys):
    out = pathlib.Path("/a folder") / ("x" * 300)
    terminal.show_paths(Console(), out, ("student", "[bold]report.html"))
    found = capsys.readouterr().out
    assert found == f"{out}/student\n{out}/[bold]report.html\n"


def test_brackets_of_rows_are_no_markup(capsys, tmp_path):
    found = types.SimpleNamespace(
        suspects=[suspect(), suspect(strong=False)], clean=False
    )
    terminal.show_findings(
        ["[red]first[/red]", "warning: [x]"],
        {"rows": 12345},
        found,
        {"accuracy": "50.0%"},
        tmp_path,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["[red]first[/red]", "warning: [x]"]
    assert [" ".join(line.split()) for line in lines[2:6]] == [
        "rows 12,345",
        "suspects 2, of these triggers 1",
        "the set looks clean no",
        "accuracy 50.0%",
    ]
    assert lines[6:] == [f"{tmp_path}/student", f"{tmp_path}/report.html"]


@pytest.mark.parametrize("units", [0, 3])
def test_what_was_not_needed_is_done_at_the_end(units, capsys):
    with terminal.progress() as (total, describe, advance):
        if units:
            total(units)
            advance(1)
        describe("[half] a name")
    said = capsys.readouterr().err
    assert "100%" in said
    assert "[half] a name" in said


def parsed(command, *arguments):
    needed = {
        defend: ["--rows", "a", "--student", "b", "--out", "c"],
        diagnose: ["--teacher", "a", "--student", "b", "--prompts", "c", "--out", "d"],
        privatise: [
            *("--private", "a", "--public", "b", "--teacher", "c"),
            *("--student", "d", "--out", "e"),
        ],
    }
    return command.parser().parse_args([*needed[command], *arguments])


def test_set_takes_any_field_and_the_last_one_holds():
    given = ["--set", "folds=4", "--set", " columns.text = a=b ", "--set", "folds=5"]
    found = defend.config_of(parsed(defend, *given))
    assert found.folds == 5
    assert found.columns.text == "a=b"
    assert found == settings.with_fields(
        Defence(), {"folds": 5, "columns": {"text": "a=b"}}
    )


def test_set_holds_where_a_flag_says_otherwise():
    found = defend.config_of(
        parsed(defend, "--epochs", "2", "--set", "student.epochs=7")
    )
    assert found.student.epochs == 7
    assert defend.config_of(parsed(defend)) == Defence()


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (defend, ["--set", "folds"], "--set FIELD=VALUE, found --set='folds'"),
        (defend, ["--set", "fold=4"], "Did you mean 'folds'"),
        (defend, ["--set", "folds={[1]}"], "folds a whole number"),
        (defend, ["--set", "folds=None"], "folds a whole number"),
        (defend, ["--set", "features.layers={[1]}"], "layers[0] a whole number"),
        (defend, ["--set", "features.layers=-1,last"], "layers[0] a whole number"),
        (defend, ["--set", "features.layers=(-1, 1.5)"], "layers[1] a whole number"),
        (defend, ["--set", "margin.layer_weights=a"], "layer_weights[0] a number"),
        (defend, ["--set", "detection.claims=1"], "claims[0] a text"),
        (diagnose, ["--set", "starts=a"], "starts[0] a whole number"),
        (defend, ["--set", "kd.temperature=nan"], "kd.temperature a number"),
        (defend, ["--set", "columns=text"], "columns fields and their values"),
        (defend, ["--max-length", "many"], "--max-length a number > 0"),
        (defend, ["--max-length", "0"], "max_length > 0"),
        (defend, ["--encoder", "DIR"], "--encoder: only with --output"),
        (defend, ["--max-output", "3"], "--max-output: only with --output"),
        (defend, ["--overlap", "keep"], "overlap one of error, drop"),
        (privatise, ["--recipe", "studnet"], "recipe"),
        (privatise, ["--pipelines", "3"], "pipelines"),
        (privatise, ["--max-length", "-1"], "--max-length a number > 0"),
        (diagnose, ["--max-new", "0"], "max_new > 0"),
        (diagnose, ["--max-new", "few"], "max_new a whole number"),
        (diagnose, ["--set", "starts=4,2"], "starts ascending"),
        (diagnose, ["--set", "starts=64"], "below max_new=64"),
        (diagnose, ["--set", "prompt=no source"], "prompt"),
    ],
)
def test_flags_that_make_no_sense_are_named(command, arguments, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        command.config_of(parsed(command, *arguments))


def test_beginnings_end_before_a_short_text_does():
    for most, starts in (("5", (1, 2, 4)), ("1", ()), ("100", (1, 2, 4, 8, 16))):
        found = diagnose.config_of(parsed(diagnose, "--max-new", most))
        assert (found.starts, found.max_new) == (starts, int(most))


def test_lengths_of_rows_keep_the_shorter_buckets():
    config = defend.config_of(parsed(defend, "--max-length", "40"))
    assert config.lengths.buckets == (16, 32, 40)
    config = defend.config_of(parsed(defend, "--max-length", "300"))
    assert config.lengths.buckets[-2:] == (128, 300)
    assert config.lengths.max_length == 300


def test_lengths_of_outputs_are_two_buckets():
    given = ["--output", "summary", "--max-length", "100", "--max-output", "9"]
    config = outputs.config_of(parsed(defend, *given))
    assert config.columns.output == "summary"
    assert (config.lengths.max_length, config.lengths.max_output) == (100, 9)
    assert config.lengths.buckets == ((50, 4), (100, 9))
    whole = outputs.config_of(parsed(defend, *given[:2], "--max-output", "9")).lengths
    assert whole.buckets[1] == (whole.max_length, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-length", "1"], "--max-length > 1, found --max-length='1'"),
        (["--max-output", "one"], "--max-output > 1"),
        (["--suspect-references"], "--suspect-references: not with --output"),
        (["--writer", "DIR"], "--writer: not with --output"),
        (["--set", "folds=3"], "field one of"),
    ],
)
def test_flags_of_classes_are_not_those_of_outputs(arguments, message):
    with pytest.raises(ValueError, match=message):
        outputs.config_of(parsed(defend, "--output", "summary", *arguments))


def test_a_flag_that_is_not_given_changes_nothing():
    found = types.SimpleNamespace(text=None, label="class", max_length=None, set=[])
    fields = {"text": "text", "label": "label"}
    assert settings_of.with_flags(Columns(), found, fields) == Columns(label="class")
    assert settings_of.with_max_length(Defence(), found) == Defence()
    assert settings_of.with_set(Defence(), found) == Defence()


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        ("a, b,", ("x",), ("a", "b")),
        ("", ("x",), ()),
        ("3", (1, 2), (3,)),
        ("[1, 2]", (3,), (1, 2)),
        ("'a,b'", ("x",), ("a", "b")),
        ("1", "text", "1"),
        ("1e-3", 0.5, 0.001),
        ("True", False, True),
        ("yes", False, "yes"),
        ("{1: [2]}", {}, {1: [2]}),
        ("{[1]: 2}", {}, "{[1]: 2}"),
    ],
)
def test_texts_become_what_they_replace(value, old, new):
    assert settings._converted(value, old) == new
