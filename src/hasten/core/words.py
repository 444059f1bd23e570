"""Short phrases for people, built from parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def listed(*parts: str) -> str:
    """Join the parts that aren't empty: "NNCF, accurate biases"."""
    return ", ".join(filter(None, parts))


def short(value: Any) -> str:
    """Return a JSON value for a message, of which at most 40 characters are shown.

    Of a list or an object it is only said that it is one: it may take long to write, or be nested too deeply.
    """
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value[:40]) if isinstance(value, str) else repr(value)[:40]


def amount(count: int, noun: str, several: str = "") -> str:
    """Return a count with its noun, zero too: "1 sample", "0 samples", "1,204 samples".

    Args:
        count: Number of things.
        noun: Noun for one of them.
        several: Noun for several; by default with an "s".
    """
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def type_in_words(value: object) -> str:
    """Return a value's type with its article: "a list", "an int"; "None" for None."""
    name = type(value).__name__
    if value is None:
        return "None"
    return f"{'an' if name.startswith((*'aeioAEIO', 'nd')) else 'a'} {name}"


def numbers_in_words(numbers: Sequence[int]) -> str:
    """Return whole numbers: "16000" for one, "[1, 0]" for several, of which the first eight are shown."""
    text = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return text if len(numbers) == 1 else f"[{text}]"


def points(share: str) -> str:
    """Return a share that is written in percent as points: "1 point", "0.5 points"."""
    return f"{share} point{'' if share == '1' else 's'}"


def lost_in_words(lost: float) -> str:
    """Write a loss in points: "+0.28 points lost", or "3.51 points gained" if it is negative.

    Args:
        lost: Loss in percentage points.
    """
    lost = round(lost, 2) + 0.0
    return f"{-lost:.2f} points gained" if lost < 0 else f"{lost:+.2f} points lost"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 layer", "3 layers"; "" for 0."""
    return amount(count, noun) if count else ""


def in_float(nodes: Sequence[str]) -> str:
    """Return the phrase for layers that a quantizer skips: "3 layers in float"; "" for none."""
    return f"{counted(len(nodes), 'layer')} in float" if nodes else ""


def in_words(nodes: Sequence[str]) -> str:
    """Return the phrase for layers between int8 and float: "3 layers with 16-bit activations"; "" for none."""
    return f"{counted(len(nodes), 'layer')} with 16-bit activations" if nodes else ""
