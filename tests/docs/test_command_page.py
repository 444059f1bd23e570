"""The page of commands: every command is in its table, and every option has a text."""

import re
from pathlib import Path

import click
import pytest

from hasten.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()


def test_every_command_is_in_the_table() -> None:
    table = PAGE.partition("\n## ")[0]
    assert set(re.findall(r"\(#hasten-(\w+)\)", table)) == set(main.commands)


@pytest.mark.parametrize("name", main.commands)
def test_every_option_and_command_says_what_it_is(name: str) -> None:
    command = main.commands[name]
    assert command.help
    options = [one for one in command.params if isinstance(one, click.Option)]
    shown = [one for one in options if not one.hidden]
    with click.Context(command) as context:
        records = [one.get_help_record(context) or (one.name, "") for one in shown]
    assert [name for name, text in records if not text] == []
