"""Packages that a process does without, though they are installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Refusing(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ModuleNotFoundError(f"{spec.name} is left out here, to save time", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Never called, since there is no module."""


class _Finder(MetaPathFinder):
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Refusing()) if fullname in self._names else None


@contextmanager
def absent(names: frozenset[str]) -> Iterator[None]:
    """Let libraries find that packages aren't installed while the block runs.

    What is imported already stays. A library that asks during its own import keeps the answer, so
    this is for processes that need the packages for nothing else.

    Args:
        names: Names of top-level packages.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
