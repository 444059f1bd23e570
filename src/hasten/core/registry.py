"""Members of each open family: hasten's own, and those that installed packages add.

A package adds a member through an entry point in its pyproject.toml:

    [project.entry-points."hasten.engines"]
    mlp = "hasten_mlp.engine:Mlp"

A member is imported only when its name is asked for, or when all members are listed.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hasten.core.objects import import_path, load_object
from hasten.errors import InputError

_GROUPS = "hasten."


class HiddenPlugin(UserWarning):
    """An installed package adds a member under a name that hasten itself uses; it is ignored."""


class Plugin(NamedTuple):
    """Member that an installed package adds to a family.

    Attributes:
        group: Entry-point group: "hasten.engines", "hasten.passes", ...
        name: Name of the member in its family.
        path: Import path of the member's class, "module:Class".
        distribution: Name of the package in the package index.
    """

    group: str
    name: str
    path: str
    distribution: str


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Return what installed packages add to hasten, by group and name, without importing it."""
    from importlib import metadata  # takes as long as opening a small model does

    points = metadata.entry_points()
    found = {
        Plugin(group, point.name, point.value.partition("[")[0].strip(), point.dist.name)
        for group in points.groups
        if group.startswith(_GROUPS)
        for point in points.select(group=group)
        if point.dist is not None
    }
    return tuple(sorted(found, key=lambda one: (one.group, one.name, one.distribution)))


class Registry(Mapping[str, str]):
    """Import paths of a family's members by name: hasten's own in their order, then plug-ins'.

    Args:
        noun: Noun for one member: "engine".
        group: Entry-point group through which packages add members.
        own: Import paths of hasten's own members, by name.
    """

    def __init__(self, noun: str, group: str, own: Mapping[str, str]) -> None:
        self.noun, self.group = noun, group
        self._own = dict(own)

    def __getitem__(self, name: str) -> str:
        return self._own[name] if name in self._own else self._added[name][0].path

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._added

    def __len__(self) -> int:
        return len(self._own) + len(self._added)

    @functools.cached_property
    def _added(self) -> dict[str, list[Plugin]]:
        """Plug-ins by name, without names that hasten itself uses."""
        found: dict[str, list[Plugin]] = {}
        for plugin in plugins():
            if plugin.group != self.group:
                continue
            if plugin.name in self._own:
                warnings.warn(
                    f"the {self.noun} {plugin.name!r} of the package {plugin.distribution} isn't "
                    f"used: hasten already has one of that name; rename the package's entry "
                    "point",
                    HiddenPlugin,
                    stacklevel=2,
                )
                continue
            found.setdefault(plugin.name, []).append(plugin)
        return found

    def load(self, name: str) -> Any:
        """Import the member that has this name.

        Raises:
            KeyError: there is no member of this name.
            InputError: the member can't be imported, or two packages add one of this name.
        """
        if name in self._own:
            return load_object(self._own[name])
        added = self._added[name]
        if len(added) > 1:
            packages = " and ".join(one.distribution for one in added)
            raise InputError(
                f"the {self.noun} {name!r} comes from two packages, {packages}: uninstall one"
            )
        try:
            return load_object(added[0].path)
        except InputError as error:
            package = added[0].distribution
            raise InputError(
                f"the {self.noun} {name!r} of the package {package} can't be used: {error}; update or "
                f"uninstall {package}"
            ) from error

    def name_of(self, cls: type) -> str | None:
        """Return the name of a member by its class; None for a class that isn't a member."""
        path = import_path(cls)
        for name, known in self._own.items():
            if known == path:
                return name
        for name, added in self._added.items():
            module, _, attribute = added[0].path.partition(":")
            # An entry point may name a module that only imports the class, not the one that defines
            # it.
            if added[0].path == path or getattr(sys.modules.get(module), attribute, None) is cls:
                return name
        return None
