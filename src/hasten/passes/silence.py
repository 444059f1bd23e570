"""Silence of third-party converters and quantizers, and their errors in one line."""

from __future__ import annotations

from hasten.core.raised import raised
from hasten.core.silence import silenced

__all__ = ["first_line", "silenced"]


def first_line(error: BaseException) -> str:
    """Return what a library raised in one line, with the operator and what to try where it tells."""
    return raised(error)
