"""Take options from a project's hasten.toml: find the file, check it, and say what a command took from it."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hasten.cli.config_values import Setting, setting
from hasten.errors import InputError

NAME = "hasten.toml"
VARIABLE = "HASTEN_CONFIG"
OFF = "off"
REFUSED = {
    "trust_code": "it lets a model's own files run code",
    "no_token": "it opens a server to everyone",
    "allow_control": "it lets clients unload models",
}
"""Options that a person gives each time, with the reason: a file that came with a checkout may not set them."""
_META = "hasten.config"
_MOST_BYTES = 256 << 10
"""Largest size of a file; the time for tables within each other grows with its square."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TRUST = f"if you trust it, name it with --config or {VARIABLE}; to ignore it, set {VARIABLE}={OFF}"


class Configurable(click.Command):
    """Command whose options a project's file may set, in a table of the command's name."""

    def invoke(self, ctx: click.Context) -> Any:
        """Say on standard error which options come from which file, and run the command."""
        config: Config | None = ctx.meta.get(_META)
        if config is not None and (taken := config.taken(ctx)):
            names = ", ".join(one.shown for one in taken)
            click.echo(f"hasten: from {config.file}: {names}", err=True)
        return super().invoke(ctx)


@dataclass(frozen=True)
class Config:
    """Settings of a project for the command at work.

    Attributes:
        file: Path of the file, as a person at the current folder would write it.
        settings: Settings of the command's table, by the names of the parameters.
    """

    file: str
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def taken(self, ctx: click.Context) -> list[Setting]:
        """Return the settings that the command took, because nothing else gave them."""
        return [
            one
            for name, one in self.settings.items()
            if ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP
        ]


def config_of(ctx: click.Context, given: str | None) -> dict[str, Any] | None:
    """Return the values of the options that a project's file sets, as click's `default_map`.

    Args:
        ctx: Context of the group, whose command is known.
        given: Path of the file, or "off" for none; by default it is looked for.

    Raises:
        InputError: the file can't be read, belongs to another user, or has a table, key or value that
            nothing takes.
    """
    group, name = ctx.command, ctx.invoked_subcommand
    command = group.commands.get(name or "") if isinstance(group, click.Group) else None
    if not isinstance(command, Configurable):
        if ctx.get_parameter_source("config") is ParameterSource.COMMANDLINE:
            raise InputError(f"hasten {name} reads no options from a file: leave out --config")
        return None
    if given == OFF or {"-h", "--help"} & set(ctx.obj):
        return None
    read = _found() if given is None else (file := Path(given), _content(file))
    if read is None:
        return None
    file, content = read
    assert isinstance(group, click.Group)
    tables = dict(_checked(file, _parsed(file, content), group.commands))
    config = Config(_shown(file), tables.get(command.name or "", {}))
    ctx.meta[_META] = config
    return {command.name or "": {name: one.value for name, one in config.settings.items()}}


def _found() -> tuple[Path, bytes] | None:
    """Return the hasten.toml of the current folder, or of its nearest parent up to the root of its
    repository, with its content.

    Raises:
        InputError: it can't be read, or another user may have written it or put it there, who could make
            commands of this one run code.
    """
    try:
        start = Path.cwd()
    except OSError as error:
        raise InputError(f"can't find the current folder: {error.strerror or error}") from error
    for folder in (start, *start.parents):
        try:
            content = _own_content(folder / NAME)
            last = (folder / ".git").exists()
        except OSError:  # it can't be entered, so nobody can tell whether the repository ends there
            return None
        if content is not None:
            return folder / NAME, content
        if last:
            return None
    return None


def _own_content(file: Path) -> bytes | None:
    """Return the content of a file that this user or root put there; None if there is no such file.

    Raises:
        InputError: another user may have put it there, or it can't be read.
        OSError: its folder can't be entered.
    """
    try:
        descriptor = os.open(file, _OPEN)
    except FileNotFoundError:
        return None
    except OSError as error:
        if stat.S_ISLNK(file.lstat().st_mode):
            raise InputError(f"{_shown(file)} is a link: {_TRUST}") from error
        raise _unreadable(file, error) from error
    try:
        facts, folder = os.fstat(descriptor), file.parent.stat()
        if not stat.S_ISREG(facts.st_mode):
            return None
        for path, owner in ((file, facts.st_uid), (file.parent, folder.st_uid)):
            if owner not in (0, os.geteuid()):
                what = _shown(file) if path == file else f"the folder of {_shown(file)}"
                raise InputError(f"{what} belongs to another user (number {owner}): {_TRUST}")
        if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
            raise InputError(f"every user may write to the folder of {_shown(file)}: {_TRUST}")
        with open(descriptor, "rb", closefd=False) as opened:  # of a descriptor
            return _bounded(file, opened.read(_MOST_BYTES + 1))
    finally:
        os.close(descriptor)


def asked() -> tuple[str, ...]:
    """Return the words of the command at work, with what it took from a file: so it can be repeated."""
    ctx = click.get_current_context()
    config: Config | None = ctx.meta.get(_META)
    taken = [] if config is None else config.taken(ctx)
    command, *typed = ctx.obj
    return (command, *(word for one in taken for word in one.words), *typed)


def _shown(file: Path) -> str:
    """Return a file's path as a person at the current folder would write it."""
    return os.path.relpath(file)


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return _bounded(file, opened.read(_MOST_BYTES + 1))
    except OSError as error:
        raise _unreadable(file, error) from error


def _bounded(file: Path, content: bytes) -> bytes:
    """Return a file's content.

    Raises:
        InputError: it is too large.
    """
    if len(content) > _MOST_BYTES:
        raise InputError(f"{_shown(file)} is larger than {_MOST_BYTES >> 10} KiB")
    return content


def _unreadable(file: Path, error: OSError) -> InputError:
    return InputError(f"can't read {_shown(file)}: {error.strerror or error}")


def _parsed(file: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are such
        raise InputError(f"{_shown(file)} isn't TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{_shown(file)} is nested too deep") from error


def _checked(
    file: Path, tables: Mapping[str, Any], commands: Mapping[str, click.Command]
) -> Iterator[tuple[str, dict[str, Setting]]]:
    """Yield each table with its settings, checked; also of commands that aren't at work."""
    taking = [name for name, command in commands.items() if isinstance(command, Configurable)]
    for table, keys in tables.items():
        if not isinstance(keys, dict):
            raise InputError(
                f"{_shown(file)}: {table} is outside of any table: put it below the name of a "
                "command, such as [optimize]"
            )
        if table not in taking:
            known = table in commands
            why = (
                f"the command {table} reads no options from a file"
                if known
                else "there is no such command"
            )
            near = "" if known else _near(table, taking, "[{}]")
            raise InputError(f"{_shown(file)}: [{table}]: {why}{near}")
        yield table, _settings(file, commands[table], keys)


def _settings(file: Path, command: click.Command, keys: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the settings of a command's table by the names of its parameters."""
    where = f"{_shown(file)}: [{command.name}]"
    params = {key: param for param in command.params for key in _keys(param)}
    settings: dict[str, Setting] = {}
    for key, value in keys.items():
        param = params.get(key.replace("_", "-"))
        if param is None or param.name is None:
            near = _near(key.replace("_", "-"), params, "{}")
            raise InputError(f"{where} {key}: hasten {command.name} has no such option{near}")
        if param.name in REFUSED:
            raise InputError(
                f"{where} {key} isn't allowed in a file, because {REFUSED[param.name]}: give "
                f"--{key.replace('_', '-')} "
                "on the command line"
            )
        if param.name in settings:
            raise InputError(f"{where} {key} is in the file twice: keep one of its spellings")
        try:
            made = setting(param, value, file.parent)
        except InputError as error:
            raise InputError(f"{where} {key}: {error}") from error
        if made is not None:
            settings[param.name] = made
    return settings


def _keys(param: click.Parameter) -> Sequence[str]:
    """Return the keys of a parameter: its options without dashes, or an argument's name."""
    if isinstance(param, click.Argument):
        return (str(param.name),)
    return [option.removeprefix("--") for option in param.opts if option.startswith("--")]


def _near(word: str, known: Iterable[str], written: str) -> str:
    """Return a question that names what was probably meant; "" where nothing comes near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {written.format(close[0])}?" if close else ""
