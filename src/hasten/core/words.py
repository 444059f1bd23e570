"""Short texts for people, put together from parts."""

from __future__ import annotations

from collections.abc import Sequence


def listed(*parts: str) -> str:
    """Join the parts that aren't empty: "NNCF, accurate biases"."""
    return ", ".join(filter(None, parts))


def counted(count: int, noun: str) -> str:
    """Count things: "1 layer", "3 layers"; "" where there are none."""
    return f"{count} {noun}{'' if count == 1 else 's'}" if count else ""


def in_float(nodes: Sequence[str]) -> str:
    """Count the layers that a quantizer leaves alone: "3 layers in float"; "" where there are none."""
    return f"{counted(len(nodes), 'layer')} in float" if nodes else ""
