"""Which of the engines that a person names are there."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.engines.base import Engine
from hasten.errors import InputError
from hasten.records import load_object

ENGINES = ("onnxruntime", "openvino", "litert")
"""What is tried where nobody says otherwise."""


def engine_kinds(names: Sequence[str]) -> list[type[Engine]]:
    """Return the engines of these names that are installed.

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
        try:
            kind.version()
        except InputError as error:
            missing.append(str(error))
            continue
        found.append(kind)
    if not found:
        raise InputError(f"no engine to try: {'; '.join(missing) or 'none was named'}")
    return found
