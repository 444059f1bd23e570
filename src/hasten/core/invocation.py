"""How a run was asked for, so that a person can ask again."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
_ASKED: ContextVar[Invocation | None] = ContextVar("asked", default=None)
_LIVE = "live"


@dataclass(frozen=True)
class Invocation:
    """How a run was asked for: on a command line, or from Python.

    Attributes:
        words: Of the command line, without the program's name; empty where Python asked.
        arguments: Of the function, those that aren't the defaults: texts, numbers and lists of
            them as they were given; of anything else only what it was, as {"live": "an object of type torch Sequential"}.
        function: Of hasten, that Python called.
    """

    words: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    function: str = "optimize"

    def in_words(self) -> str:
        """The command line, or the Python code; safe to paste whatever the words are."""
        if self.words:
            return shlex.join(["hasten", *self.words])
        lines = [_argument(name, value) for name, value in self.arguments.items()]
        shown = [f"    {line}" for line in lines if line]
        called = self.function if self.function.isidentifier() else "optimize"
        return "\n".join(["import hasten", "", f"hasten.{called}(", *shown, ")"])


def _argument(name: str, value: Any) -> str:
    """One argument as a line of Python; nothing where it can't be one."""
    if not name.isidentifier():
        return ""
    if isinstance(value, dict):
        what = " ".join(str(value.get(_LIVE)).split())
        return f"{name}={name},  # {what}"
    items = value if isinstance(value, (list, tuple)) else [value]
    if all(_is_plain(item) for item in items):
        return f"{name}={value!r},"
    return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def invocation(function: str, given: Mapping[str, Any]) -> Invocation:
    """Note how a function was called.

    Args:
        function: Name of the function of hasten.
        given: Arguments by name; those that are None are left out, as nobody gave them.
    """
    if words := _TYPED.get():
        return Invocation(words)
    if (outer := _ASKED.get()) is not None:
        return outer
    asked = {name: _plain(value) for name, value in given.items() if value is not None}
    return Invocation(arguments=asked, function=function)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_LIVE: f"the number {value}"}  # JSON has no such number
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(v, (str, Path)) for v in value):
        return [str(v) for v in value]
    kind = type(value)
    what = f"{kind.__module__.partition('.')[0]} {kind.__qualname__}".removeprefix("builtins ")
    return {_LIVE: f"an object of type {what}"}


@contextlib.contextmanager
def asking(outer: Invocation) -> Iterator[None]:
    """Say that what runs inside is part of what was asked for so."""
    token = _ASKED.set(outer)
    try:
        yield
    finally:
        _ASKED.reset(token)


@contextlib.contextmanager
def typed(words: Sequence[str]) -> Iterator[None]:
    """Say that what runs inside was typed on a command line.

    Args:
        words: After the program's name.
    """
    token = _TYPED.set(tuple(word for word in words if word != "--resume"))
    try:
        yield
    finally:
        _TYPED.reset(token)
