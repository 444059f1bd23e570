"""Short phrases for people, built from parts."""

from __future__ import annotations

from collections.abc import Sequence


def listed(*parts: str) -> str:
    """Join the parts that aren't empty: "NNCF, accurate biases"."""
    return ", ".join(filter(None, parts))


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 layer", "3 layers"; "" for 0."""
    return f"{count} {noun}{'' if count == 1 else 's'}" if count else ""


def in_float(nodes: Sequence[str]) -> str:
    """Return the phrase for layers that a quantizer skips: "3 layers in float"; "" for none."""
    return f"{counted(len(nodes), 'layer')} in float" if nodes else ""
