"""The commands on pages are hasten's own, with options that they have."""

import re
import shlex
from collections.abc import Iterator

import click
from scripts import public
from tests.docs.test_programs_on_pages import PAGES

from hasten.cli import main

LINE = re.compile(r"^[ \t]*(?:\$ )?hasten ((?:.*\\\n)*.*)$", re.MULTILINE)
INLINE = re.compile(r"`hasten ([^`]*)`")
ENDS = ("|", ">", "&&", ";", "&", "#", "...")
"""Words behind which a line of a shell goes on with something else."""


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words behind "hasten" of the commands on a page, without what a shell does with them."""
    blocks = re.findall(r"^ *```(?:sh|bash|console|text)?[^\n]*\n(.*?)^ *```", text, re.M | re.S)
    indented = re.findall(r"^    .*$", text, re.M)
    found = [match[1] for block in (*blocks, *indented) for match in LINE.finditer(block)]
    for line in (*found, *INLINE.findall(text)):
        try:
            words = shlex.split(line.replace("\\\n", " "))
        except ValueError:  # a sentence, not a command
            continue
        end = min((words.index(one) for one in ENDS if one in words), default=len(words))
        yield words[:end]


def wrong(words: list[str]) -> str:
    """Return what a command's words name that hasten doesn't have; "" where it has all of it."""
    command: click.Command = main
    rest = words
    for at, word in enumerate(words):
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        if not re.fullmatch(r"[a-z-]+", word):
            return ""  # a sentence, or a word in capitals for a command
        if word not in command.commands:
            return word
        command, rest = command.commands[word], words[at + 1 :]
    else:
        return ""
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    known |= {"--help", "--version"}
    named = [word.partition("=")[0] for word in rest if word.startswith("--") and word != "--"]
    return next((name for name in named if name not in known), "")


def test_every_command_on_a_page_is_one_with_options_that_it_has() -> None:
    found = {
        f"{page.relative_to(public.ROOT)}: hasten {' '.join(words)}": wrong(words)
        for page in PAGES
        for words in commands(page.read_text())
    }
    assert {words: name for words, name in found.items() if name} == {}


def test_there_are_commands_on_the_pages_and_a_wrong_one_is_found() -> None:
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 300
    page = (
        "```sh\nhasten bench b.hasten \\\n    --round 3 | tee log\n```\nSee `hasten inspekt b`.\n"
    )
    assert [wrong(words) for words in commands(page)] == ["--round", "inspekt"]
