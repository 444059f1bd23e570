"""Which of the engines that a person names are there."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.records import load_object
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.errors import InputError

ENGINES = ("onnxruntime", "openvino", "litert")
"""What is tried where nobody says otherwise."""


def engine_kinds(names: Sequence[str], target: Target | None = None) -> list[type[Engine]]:
    """Return the engines of these names that are installed.

    Args:
        names: Whom to look for.
        target: Leave out who makes nothing for this device: some need it to be here.

    Raises:
        InputError: a name is unknown, or none is installed.
    """
    found, missing = [], []
    for name in names:
        if name not in Engine.registry and ":" not in name:
            raise InputError(
                f"no engine is called {name!r}; this version has: {', '.join(ENGINES)}"
            )
        kind: type[Engine] = load_object(Engine.registry.get(name, name))
        if target is not None and not makes_for(kind, target):
            continue
        try:
            kind.version()
        except InputError as error:
            missing.append(str(error))
            continue
        found.append(kind)
    if not found:
        raise InputError(f"no engine to try: {'; '.join(missing) or 'none was named'}")
    return found


def makes_for(kind: type[Engine], target: Target) -> bool:
    """Whether an engine makes anything for a device."""
    return next(iter(kind.variants(target)), None) is not None
