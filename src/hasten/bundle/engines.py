"""The engines that a bundle's models run on."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.bundle.manifest import Part, naming_packages
from hasten.core.records import from_record
from hasten.engines.base import Engine
from hasten.errors import InputError


def engine_of(item: Part, threads: int, environment: Mapping[str, str] | None = None) -> Engine:
    """Return the engine that a part names, limited to `threads` even if its record asks for more.

    Args:
        item: Part of a bundle.
        threads: Largest number of threads of one request.
        environment: Environment of the bundle's manifest, which may say what package the engine comes from.

    Raises:
        IntegrityError: there is no such engine or setting.
    """
    with naming_packages(environment):
        return from_record(Engine, item.engine).within(threads)


def reference_of(item: Part, said: str, environment: Mapping[str, str] | None = None) -> Engine:
    """Return the reference engine of a part: see `Engine.reference`.

    Args:
        item: Part of a bundle.
        said: Name of the bundle for messages.
        environment: Environment of the bundle's manifest; see `engine_of`.

    Raises:
        InputError: there is none.
        IntegrityError: the part names no engine or setting.
    """
    engine = engine_of(item, 1, environment)
    found = engine.reference()
    if found is None:
        raise InputError(
            f"{said} runs on {engine.words()}, which has no reference engine: leave out reference=True"
        )
    return found
