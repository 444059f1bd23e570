"""Garbage collections at longer intervals."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARE = 20_000
"""Number of new objects after which Python looks for garbage among them; its own default is 700 or 2,000."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for garbage less often while the block runs.

    This is for processes of hasten's own. Libraries such as torch make hundreds of thousands of objects when they are
    imported, and hardly any garbage.
    """
    before = gc.get_threshold()
    gc.set_threshold(RARE, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
