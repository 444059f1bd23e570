"""Record of how a run was started, so that a person can start it again."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
_BEGAN: ContextVar[float | None] = ContextVar("began", default=None)
_ASKED: ContextVar[Invocation | None] = ContextVar("asked", default=None)
_LIVE = "live"


@dataclass(frozen=True)
class Invocation:
    """Call that started a run: a command line, or a Python call.

    Attributes:
        words: Words of the command line after the program's name; empty for a Python call.
        arguments: Arguments of the Python call that aren't defaults. Texts, numbers and lists of
            them are kept as given; other objects become a description, {"live": "an object of type
            torch Sequential"}.
        function: Name of the hasten function that was called.
    """

    words: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    function: str = "optimize"

    def in_words(self) -> str:
        """Return the command line, or the Python code; any words in it are safe to paste."""
        if self.words:
            return shlex.join(["hasten", *self.words])
        lines = [_argument(name, value) for name, value in self.arguments.items()]
        shown = [f"    {line}" for line in lines if line]
        called = self.function if self.function.isidentifier() else "optimize"
        return "\n".join(["import hasten", "", f"hasten.{called}(", *shown, ")"])


def _argument(name: str, value: Any) -> str:
    """Return one argument as a line of Python; "" for a value that can't be written as one."""
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
    """Return the call that started the current run: the command line or outer call, else this one.

    Args:
        function: Name of the hasten function that was called.
        given: Arguments by name; None marks one that the caller left out.
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
    """Record, while the block runs, that calls inside it are part of an outer call.

    Args:
        outer: Call that the person made.
    """
    token = _ASKED.set(outer)
    try:
        yield
    finally:
        _ASKED.reset(token)


@contextlib.contextmanager
def typed(words: Sequence[str], began: float | None = None) -> Iterator[None]:
    """Record, while the block runs, that it was started from a command line.

    Args:
        words: Words of the command line after the program's name.
        began: `time.monotonic()` at the start of the command, from which its time limit counts.
    """
    token = _TYPED.set(tuple(word for word in words if word != "--resume"))
    beginning = _BEGAN.set(began)
    try:
        yield
    finally:
        _BEGAN.reset(beginning)
        _TYPED.reset(token)


def began_s() -> float:
    """Return `time.monotonic()` at the start of the command; now where it is unknown."""
    began = _BEGAN.get()
    return time.monotonic() if began is None else began
