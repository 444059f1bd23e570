"""The command line: parse, call, print; no logic."""

from hasten.cli.commands import main
from hasten.cli.loadtest import loadtest
from hasten.cli.serve import serve

main.add_command(serve)
main.add_command(loadtest)

__all__ = ["main"]
