"""Engines that are installed, and those that are tried where the user names none."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.errors import InputError


def tried_on(family: str) -> tuple[str, ...]:
    """Return the engines that are tried on a family of devices where the user names none.

    Args:
        family: Name of the family: "host", or a key of `hasten.core.devices.FAMILIES`.

    Raises:
        InputError: a plug-in can't be imported.
    """
    return tuple(name for name, kind in Engine.members().items() if family in kind.families)


def engine_kinds(names: Sequence[str] = (), target: Target | None = None) -> list[type[Engine]]:
    """Return those of the named engines that are installed.

    Args:
        names: Names of engines; if empty, those that are tried on this host.
        target: Target whose unsuitable engines are left out (some engines need its device to be
            here); None for any.

    Raises:
        InputError: a name is unknown, or none of the engines is installed.
    """
    found, missing = [], []
    for name in names or tried_on("host"):
        if name not in Engine.registry and ":" not in name:
            there = ", ".join(tried_on("host"))
            raise InputError(f"no engine is called {name!r}; this version has: {there}")
        kind: type[Engine] = Engine.member(name, trusted=True)
        if target is not None and not makes_for(kind, target):
            continue
        try:
            kind.version()
        except InputError as error:
            missing.append(str(error))
            continue
        found.append(kind)
    if not found:
        raise InputError(f"no engine to try: {'; '.join(missing) or 'none suits the target'}")
    return found


def without_program(family: str) -> list[str]:
    """Return a sentence for each engine of a family of devices whose program, such as a C compiler, is missing.

    A missing package isn't told: it is an extra that nobody asked for.
    """
    told = []
    for name in tried_on(family):
        kind: type[Engine] = Engine.member(name)
        if not kind.program:
            continue
        try:
            kind.version()
        except InputError as error:
            told.append(f"the engine {name} isn't tried: {error}")
    return told


def makes_for(kind: type[Engine], target: Target) -> bool:
    """Whether an engine has any variant for a target."""
    return next(iter(kind.variants(target)), None) is not None
