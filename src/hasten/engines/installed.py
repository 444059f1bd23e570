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
    found, missing = sorted_out(names, target)
    if not found:
        raise InputError(f"no engine to try: {'; '.join(missing) or 'none suits the target'}")
    return found


def check_takes(names: Sequence[str], target: Target, *, program: bool) -> None:
    """Check that one of the engines for a device takes the model, before any work.

    Args:
        names: Names of engines.
        target: Target for the device.
        program: Whether the model has its framework's program.

    Raises:
        InputError: every one that can be tried takes a program alone, and the model has none; the message
            says why the others can't be tried.
    """
    found, missing = sorted_out(names, target)
    if program or any(not kind.needs_program for kind in found):
        return
    only = ", ".join(name for name in names if Engine.member(name, trusted=True) in found)
    raise InputError(
        f"no engine to try: {'; '.join((f'{only} takes only a PyTorch model or its program', *missing))}"
    )


def sorted_out(names: Sequence[str], target: Target | None) -> tuple[list[type[Engine]], list[str]]:
    """Return the engines that can be tried, and why others can't: first those that are installed.

    Args:
        names: Names of engines; if empty, those that are tried on this host.
        target: Target for the device; None for any.

    Raises:
        InputError: a name is unknown, or is of an engine for other devices.
    """
    found: list[type[Engine]] = []
    unable: list[str] = []
    missing: list[str] = []
    for name in names or tried_on("host"):
        if name not in Engine.registry and ":" not in name:
            there = ", ".join(tried_on("host"))
            raise InputError(f"no engine is called {name!r}; this version has: {there}")
        kind: type[Engine] = Engine.member(name, trusted=True)
        if target is not None and not serves(kind, target):
            raise InputError(
                f"the engine {name} doesn't run on {target.device}; these do: "
                f"{', '.join(tried_on(target.family))}"
            )
        if target is not None and not makes_for(kind, target):
            missing += filter(None, [kind.unsuited(target)])
            continue
        try:
            kind.version()
        except InputError as error:
            missing.append(str(error))
            continue
        try:
            if target is not None and target.kind == "attached":
                kind.check_tools(target)  # elsewhere a missing program ends the run
        except InputError as error:
            unable.append(str(error))
            continue
        found.append(kind)
    return found, list(dict.fromkeys((*unable, *missing)))


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


def unsuited(target: Target) -> list[str]:
    """Return a sentence for each engine of a device's family that has nothing for this device, with what has."""
    kinds = [Engine.member(name) for name in tried_on(target.family)]
    return [said for kind in kinds if (said := kind.unsuited(target))]


def serves(kind: type[Engine] | Engine, target: Target) -> bool:
    """Whether an engine runs on the family of devices of a target that isn't the host itself."""
    return target.family in kind.families


def makes_for(kind: type[Engine], target: Target) -> bool:
    """Whether an engine has any variant for a target."""
    return next(iter(kind.variants(target)), None) is not None
