"""The command line: parse, call, print; no logic."""

from hasten.cli.commands import main

__all__ = ["main"]
