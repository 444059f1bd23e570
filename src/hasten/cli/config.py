"""Take options from a project's hasten.toml: find the file, check it, and say what a command took from it."""

from __future__ import annotations

import difflib
import os
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
    file = found(Path.cwd()) if given is None else Path(given)
    if file is None:
        return None
    assert isinstance(group, click.Group)
    tables = dict(_checked(file, _read(file), group.commands))
    config = Config(_shown(file), tables.get(command.name or "", {}))
    ctx.meta[_META] = config
    return {command.name or "": {name: one.value for name, one in config.settings.items()}}


def found(start: Path) -> Path | None:
    """Return the hasten.toml of a folder, or of its nearest parent up to the root of its repository.

    Raises:
        InputError: it belongs to another user, who could make commands of this one run code.
    """
    for folder in (start, *start.parents):
        file = folder / NAME
        if file.is_file():
            owner = file.stat().st_uid
            if owner not in (0, os.geteuid()):
                raise InputError(
                    f"{_shown(file)} belongs to another user (number {owner}): if you trust it, "
                    f"name it with --config or {VARIABLE}; to ignore it, set {VARIABLE}={OFF}"
                )
            return file
        if (folder / ".git").exists():
            return None
    return None


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


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"can't read {_shown(file)}: {error.strerror or error}") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are such
        raise InputError(f"{_shown(file)} isn't TOML: {error}") from error


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
