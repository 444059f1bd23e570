"""Bytecode is kept of what is installed alone, once tests begin."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any
from unittest.mock import patch


@contextlib.contextmanager
def only_below(*folders: str | Path) -> Iterator[None]:
    """Let this process keep the bytecode of modules in these folders, and leave nothing beside any other.

    A user's module that a test reads stays alone in its folder, while torch's exporter, which tests are the
    first to import, isn't compiled again by each process of each suite.
    """
    roots = tuple(f"{Path(folder)}/" for folder in folders)
    write = inspect.unwrap(SourceFileLoader.set_data)

    @functools.wraps(write)
    def kept(self: SourceFileLoader, path: str, data: bytes, **mode: Any) -> None:
        if path.startswith(roots):
            write(self, path, data, **mode)

    with patch.object(SourceFileLoader, "set_data", kept):
        yield
