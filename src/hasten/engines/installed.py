"""Which of the engines that a person names are there, and which are tried where nobody names any."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.errors import InputError


def tried_on(family: str) -> tuple[str, ...]:
    """Return the engines that are tried on a family of devices where nobody names any.

    Args:
        family: "host", or one of `hasten.core.devices.FAMILIES`.

    Raises:
        InputError: a plug-in can't be imported.
    """
    return tuple(name for name, kind in Engine.members().items() if family in kind.families)


def engine_kinds(names: Sequence[str] = (), target: Target | None = None) -> list[type[Engine]]:
    """Return the engines of these names that are installed.

    Args:
        names: Whom to look for; those that are tried on this host, where nobody is named.
        target: Leave out who makes nothing for this device: some need it to be here.

    Raises:
        InputError: a name is unknown, or none is installed.
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


def makes_for(kind: type[Engine], target: Target) -> bool:
    """Whether an engine makes anything for a device."""
    return next(iter(kind.variants(target)), None) is not None
