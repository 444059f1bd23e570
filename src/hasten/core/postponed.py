"""Submodules that a package imports without using them: they are imported once somebody reads them."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Placeholder(ModuleType):
    """Empty module in a submodule's place, whose attributes are those of the submodule."""

    def __getattr__(self, name: str) -> Any:
        loader = self.__spec__.loader if self.__spec__ is not None else None
        if isinstance(loader, _Postponing):
            loader.end(self)
        return getattr(importlib.import_module(self.__name__), name)


class _Postponing(MetaPathFinder, Loader):
    """Finder and loader of placeholders.

    Args:
        package: Name of the package.
        names: Names of submodules that it doesn't use itself.
    """

    def __init__(self, package: str, names: re.Pattern[str]) -> None:
        self._package, self._names = package, names
        self.made: dict[str, ModuleType] = {}
        """Placeholders by the full names of their submodules."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        ours = package == self._package and self._names.fullmatch(name)
        if not ours or fullname in self.made or PathFinder.find_spec(fullname, path) is None:
            return None
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        self.made[module.__name__] = module
        module.__class__ = _Placeholder  # only now, since the import system reads attributes before

    def end(self, module: ModuleType) -> None:
        """Take a placeholder away, so that the next import finds the submodule."""
        package, _, name = module.__name__.rpartition(".")
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
        if vars(sys.modules.get(package, module)).get(name) is module:
            delattr(sys.modules[package], name)


@contextmanager
def postponed(package: str, names: re.Pattern[str]) -> Iterator[set[str]]:
    """Let a package that is imported in the block do without some of its submodules.

    In the block they are placeholders, and afterwards they are there only for who has read one of their attributes.
    The package itself lacks their names, so its importer sets `__getattr__`.

    Args:
        package: Name of the package.
        names: Names of the submodules, without the package's.

    Yields:
        Names of the submodules that were postponed, once the block has ended.
    """
    finder, later = _Postponing(package, names), set[str]()
    sys.meta_path.insert(0, finder)
    try:
        yield later
    finally:
        sys.meta_path.remove(finder)
        for fullname, module in finder.made.items():
            finder.end(module)
            if fullname not in sys.modules:
                later.add(fullname.removeprefix(f"{package}."))
