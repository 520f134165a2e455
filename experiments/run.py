"""Runs a study: `python -m experiments.run --config=glue.py:sst2 --workdir=runs/sst2`.

Bare config names are looked up in `experiments/configs/`; `name.py:argument` passes an
argument to the config; `--config.kd.temperature=4` overrides a field. The same command
resumes a study that was stopped.
"""

import ast
import difflib
import importlib.util
import os
import pathlib
import shlex
import sys
from collections.abc import Iterable
from typing import Any

# Otherwise transformers warns each user that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import ml_collections
from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from experiments import errors

CONFIGS = pathlib.Path(__file__).parent / "configs"

WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder of the study; runs/<config> if not given."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes with one workdir, which all see."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; found by itself on TPU and Slurm."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", 100, "A process not heard of for so long ends the others."
)


HELP = """{usage}

usage: python -m experiments.run --config=NAME[:ARGUMENT] [--config.FIELD=VALUE ...]

configs, or --config=FILE for one of your own:
{configs}

flags:
  --config.FIELD=VALUE: Overrides a field; experiments/settings.py says what they are
    (of defend.py: protojax/pipelines/settings.py).
    A list needs its brackets and quotes: --config.seeds='(0,1,2)'.
{flags}

examples:
  python -m experiments.run --config=quickstart.py
  python -m experiments.run --config=pilot.py --workdir=runs/mine \\
    --config.tasks="('files',)" --config.data.files.train=rows.csv \\
    --config.data.files.text=sentence --config.attacks={{}}
"""


def help_text() -> str:
    """The answer to `--help`: the usage, the configs, the flags and two examples.

    >>> "--config=quickstart.py" in help_text()
    True
    """
    found = (WORKDIR, DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, HEARTBEAT)
    shown = [f"  --{holder.name}: {flags.FLAGS[holder.name].help}" for holder in found]
    said = [f"  {name:<15} {first}" for name, first in configs().items()]
    return HELP.format(
        usage=(__doc__ or "").strip(), configs="\n".join(said), flags="\n".join(shown)
    )


def configs() -> dict[str, str]:
    """The configs of this package: file name -> first line of the docstring.

    >>> configs()["quickstart.py"]
    'The whole method on bundled data, from scratch, in minutes on a laptop.'
    """
    # Parsed rather than imported, since configs import the whole package.
    return {
        path.name: (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        for path in sorted(CONFIGS.glob("[!_]*.py"))
    }


def resolve(value: str) -> str:
    """The config argument with its file looked up in `experiments/configs/`.

    Args:
        value: `name.py`, `name.py:argument`, or a path to a file.

    Raises:
        ValueError: no such file; the message suggests the nearest name.

    >>> resolve("glue.py:sst2").endswith("experiments/configs/glue.py:sst2")
    True
    """
    name, colon, argument = value.partition(":")
    if not name.endswith(".py"):
        name += ".py"
    for path in (pathlib.Path(name), CONFIGS / name):
        if path.is_file():
            return f"{path}{colon}{argument}"
    known = list(configs())
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Expected --config one of {', '.join(known)} or a file, found {name!r}.{hint}"
    )


def resolve_arguments(arguments: list[str]) -> list[str]:
    """The command line with its config resolved to one `--config=PATH`.

    >>> resolve_arguments(["run", "--config", "glue.py"])[1].startswith("--config=/")
    True
    """
    found, rest = [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            argument = f"--config={resolve(value if equals else next(rest, ''))}"
        found.append(argument)
    return found


def load(value: str) -> ml_collections.ConfigDict:
    """The config that `--config=value` selects.

    >>> load("glue.py:sst2").tasks
    ('sst2',)
    """
    path, _, argument = resolve(value).partition(":")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def default_workdir(value: str) -> pathlib.Path:
    """The default folder: `runs/<config>` or `runs/<config>-<argument>`.

    >>> str(default_workdir("configs/glue.py:sst2"))
    'runs/glue-sst2'
    """
    name, _, argument = value.partition(":")
    stem = pathlib.Path(name).stem
    return pathlib.Path("runs") / "-".join([stem, *argument.split(",")]).rstrip("-")


def join_processes() -> None:
    """Makes this process one of several; must come before any other use of JAX."""
    import jax

    jax.distributed.initialize(
        coordinator_address=COORDINATOR.value,
        num_processes=NUM_PROCESSES.value,
        process_id=PROCESS_ID.value,
        heartbeat_timeout_seconds=HEARTBEAT.value,
    )


def main(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any] | None:
    """The results of a study, after running it and writing its tables and report.

    Args:
        config: from a config file, with overrides applied.
        workdir: the study's folder.

    Returns:
        The content of `results.json`; None in all processes but the first, and for the
        defence of one's own rows.
    """
    # Imported late, so that a mistake on the command line is reported at once.
    from experiments import runtime
    from experiments.reports import report, results
    from experiments.study import check, own, resume, runner
    from protojax import validate
    from protojax.cli.defend import show
    from protojax.cli.terminal import progress, progress_bar
    from protojax.pipelines import Watch
    from protojax.training import processes

    console = Console()
    if "columns" in config:
        # One's own rows, not a study: the fields are those of `pipelines.Defence`.
        several = processes.are_several()
        validate.require(not several, "--distributed", True, "False with defend.py")
        command = ["python -m experiments.run", *map(shlex.quote, sys.argv[1:])]
        with progress() as told:
            found = own.run(config, workdir, Watch(*told), command)
        show(*found)
        return None
    if "system" in config:
        validate.require(not processes.are_several(), "--distributed", True, "False")
        _run_system(config, workdir, console)
        return None
    config = check.check(config)
    if not processes.is_leader():
        with errors.error_kept(workdir / f"error_{processes.number()}.log"):
            runner.follow(config, workdir)
        return None
    # First, so that no lock or error log is written to a folder of something else.
    resume.check_workdir(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    alone = runtime.only_process(workdir, config.tasks)
    with alone, errors.error_kept(workdir / "error.log"):
        resume.open_workdir(config, workdir)
        results.note_versions(workdir)
        rows = runner.run(config, workdir, progress_bar(console))
        found = results.write(workdir, rows)
        page = report.write(workdir, config, found)
    for table in results.tables(found):
        results.show(console, table)
    console.print(results.legend(found["summary"]))
    console.print(
        f"Results: {workdir / 'results.json'}\nReport:  {page}", soft_wrap=True
    )
    return found


def _run_system(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, console: Console
) -> None:
    """Runs a study that is no grid of attacks, and shows its table."""
    from experiments import runtime
    from experiments.reports import results
    from experiments.systems import SYSTEMS
    from protojax import validate
    from protojax.cli.terminal import progress
    from protojax.pipelines import Watch

    validate.one_of(SYSTEMS, system=config.system)
    system = SYSTEMS[config.system]
    workdir.mkdir(parents=True, exist_ok=True)
    folders = [f"seed{seed}" for seed in config.seeds]
    with progress() as told, runtime.only_process(workdir, folders):
        results.note_versions(workdir)
        rows = system.run(config, workdir, Watch(*told))
        page = system.report and system.report(config, workdir, rows)
    header, *lines = system.table_of(rows)
    table = Table(*header)
    for line in lines:
        table.add_row(*line)
    results.show(console, table)
    for note in system.notes_of(rows) if system.notes_of else ():
        console.print(note, markup=False, soft_wrap=True)
    if page:
        console.print(f"Report: {page}", soft_wrap=True)


def _absl_main(config_flag, arguments: list[str]) -> None:
    """Runs the study that the flags describe; called by absl after parsing them."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only, found {arguments[1:]}.")
    errors.log_to_terminal()
    value = next(
        argument.partition("=")[2]
        for argument in sys.argv
        if argument.startswith("--config=")
    )
    workdir = pathlib.Path(WORKDIR.value or default_workdir(value))
    if DISTRIBUTED.value:
        join_processes()
        with errors.failing_at_once():
            run(config_flag.value, workdir)
    else:
        run(config_flag.value, workdir)


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Calls `main`, and prints in one line what stopped it."""
    try:
        main(config, workdir)
    except KeyboardInterrupt:
        print(f"\nStopped. The same command goes on from where {workdir} stands.")
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def check_overrides(
    config: ml_collections.ConfigDict, arguments: Iterable[str]
) -> None:
    """Raises if a list is overridden by a single number, which is ambiguous.

    `--config.seeds=3` could mean three seeds or the seed 3.

    Args:
        config: the config with the overrides applied.
        arguments: the command line.

    Raises:
        ValueError: naming the field and the syntax of its lists.

    >>> config = ml_collections.ConfigDict({"seeds": (3,)})
    >>> check_overrides(config, ["--config.seeds=(0,1,2)"])
    >>> check_overrides(config, ["--config.seeds=3"])
    Traceback (most recent call last):
    ValueError: Expected --config.seeds a list, ...
    """
    # `--name=value` or `--name value`, hence the iterator.
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name.startswith("config."):
            continue
        value = value if equals else next(rest, "")
        held = config
        for part in name.split(".")[1:]:
            held = held.get(part) if hasattr(held, "get") else None
        value = value.strip(" ()")
        if isinstance(held, tuple) and value.lstrip("+-").isdecimal():
            raise ValueError(
                f"Expected --{name} a list, such as --{name}='(0,1,2)', found {value}: "
                f"--{name}='({value},)' is the one number."
            )


def parse_flags(arguments: list[str]) -> list[str]:
    """The arguments that remain after the flags were parsed.

    Raises:
        SystemExit: with a one-line message, and the nearest name for a misspelt one.
    """
    try:
        left = flags.FLAGS(arguments)
        check_overrides(flags.FLAGS["config"].value, arguments)
        return left
    except (AttributeError, KeyError) as error:
        # ml_collections quotes its own message twice.
        reason = str(error).strip("\"'").replace("\\'", "'").replace("\\n", " ")
        sys.exit(f"The config has no field {reason}")
    except (flags.Error, ValueError, TypeError) as error:
        # An error in a config file contains its traceback; the last line suffices.
        sys.exit(str(error).strip().splitlines()[-1])


def cli() -> None:
    """Runs the study of the command line, or prints the help."""
    # Before absl, whose own help lists the flags of all imported modules.
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & {*sys.argv[1:]}:
        print(help_text(), end="")
        return
    try:
        arguments = resolve_arguments(sys.argv)
    except ValueError as error:
        sys.exit(str(error))
    if not any(argument.startswith("--config=") for argument in arguments):
        known = ", ".join(configs())
        sys.exit(
            f"Expected --config=NAME, one of {known}, or --config=FILE. --help says "
            "more."
        )
    sys.argv[:] = arguments
    config_flag = config_flags.DEFINE_config_file("config", None, "The study's config.")
    app.run(
        lambda rest: _absl_main(config_flag, rest),
        argv=arguments,
        flags_parser=parse_flags,
    )


if __name__ == "__main__":
    cli()
