"""Pipelines written down step by step: lists of `name: settings`, as in a YAML file."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hasten.core.records import Value, bounded_bytes, from_record
from hasten.errors import InputError, IntegrityError, visible
from hasten.inputs.pipeline.base import PostStep, Step

Kind = TypeVar("Kind", bound=Step | PostStep)
FILE = "file"
"""Key of a field's metadata: the setting is a text file's content, and is written as its path."""
MAX_FILE_BYTES = 2**26
"""Size in bytes, 64 MiB, of the largest file that a setting may name."""


def steps_of(family: type[Kind], entries: Any, folder: Path) -> tuple[Kind, ...]:
    """Build steps from a list, each entry a step's name, `{name: settings}` or `{name: value}`.

    A value alone is the step's first setting. A text where a setting is a list of texts, such as
    labels, is the path of a file with one text per line.

    Args:
        family: `Step` or `PostStep`.
        entries: The list, as YAML or JSON gives it.
        folder: Folder that paths are relative to.

    Raises:
        InputError: an entry has another form, or a step, a setting or a file is unknown or can't be
            used; the message names it.
    """
    if not isinstance(entries, list):
        raise InputError(f"{entries!r:.100} isn't a list of steps: write each one after a dash")
    return tuple(_step(family, entry, folder) for entry in entries)


def _step(family: type[Kind], entry: Any, folder: Path) -> Kind:
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, given),) = entry.items()
    else:
        name, given = entry, {}
    if not isinstance(name, str):
        raise InputError(f"{entry!r:.100} isn't a step: write its name, or `name: settings`")
    registry = family.registry
    if name not in registry:
        raise InputError(
            f"there is no {registry.noun} {name!r:.100}; there are {', '.join(registry)}"
        )
    kind = typing.cast(type[Value], family.member(name))
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        if not fields:
            raise InputError(f"{name} has no settings; it got {given!r:.100}")
        given = {} if given is None else {next(iter(fields)): given}
    unknown = [str(key) for key in given if key not in fields]
    if unknown:
        there = f"there are {', '.join(fields)}" if fields else "it has none"
        raise InputError(f"{name} has no setting {visible(', '.join(unknown)):.200}; {there}")
    hints = typing.get_type_hints(kind)
    settings = {
        key: _setting(value, hints[key], fields[key], folder) for key, value in given.items()
    }
    try:
        return from_record(kind, settings)  # type: ignore[return-value]
    except IntegrityError as error:
        raise InputError(f"{name}: {error.__cause__ or error}") from error


def _setting(value: Any, hint: Any, field: dataclasses.Field[Any], folder: Path) -> Any:
    """Read the file that a setting names; other settings stay as they are."""
    if not isinstance(value, str):
        return value
    if field.metadata.get(FILE):
        return read_text(folder / value)
    if hint == tuple[str, ...]:
        return read_text(folder / value).splitlines()
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8 that strangers may have written.

    Raises:
        InputError: there is no such file, it is too large, or it isn't JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}") from error


def read_text(path: Path) -> str:
    """Read a text file in UTF-8; a byte order mark at its beginning is no part of the text.

    Raises:
        InputError: there is no such file, it is no regular one, it is too large, or it isn't text.
    """
    try:
        content = bounded_bytes(path, MAX_FILE_BYTES)
        if len(content) > MAX_FILE_BYTES:
            raise InputError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {visible(str(path))}") from error
    except (OSError, ValueError) as error:  # the latter: no text, or a path that can't be one
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise InputError(f"{visible(str(path))} can't be read as text: {visible(why)}") from error
