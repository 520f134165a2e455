"""The command line of the library: `protojax`, or `python -m protojax`."""

from protojax.cli.commands import COMMANDS, Command, main

__all__ = ["COMMANDS", "Command", "main"]
