"""Types of options, and the errors that end a command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from hasten.errors import CandidateError, InputError


class Share(click.ParamType[float]):
    """A share, written "1%" or "0.01"."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value)
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{text!r} is no share; write 1% or 0.01", param, ctx)


class Seconds(click.ParamType[float]):
    """A time span, written "90", "90s", "5m" or "1h"."""

    name = "time"
    _units = {"s": 1.0, "m": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value)
        unit = self._units.get(text[-1:])
        try:
            return float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{text!r} is no time span; write 90s, 5m or 1h", param, ctx)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print the caller's error as one line and end with 2; Ctrl-C ends with 130."""
    try:
        yield
    except (InputError, CandidateError) as error:
        print(f"hasten: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("hasten: stopped; what is done is kept, go on with --resume", file=sys.stderr)
        sys.exit(130)
