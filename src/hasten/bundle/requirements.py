"""List the packages that a bundle needs, in the versions that it was certified with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hasten.bundle.manifest import Manifest, nested_engines
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.errors import IntegrityError
from hasten.inputs.pipeline.base import Pipeline

_VERSION = re.compile(r"[0-9][0-9A-Za-z.!_-]*", re.ASCII)
"""Characters of a version as in PEP 440."""


def kinds_of(record: Mapping[str, Any]) -> Iterator[type[Engine]]:
    """Yield the classes of the engines that an engine's record names; unknown ones are left out."""
    for name in engine_names(record):
        if name in Engine.registry:
            yield Engine.member(name)


def engine_names(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the engines that run a model: a cascade's inner engines, or the engine."""
    inner = [each["type"] for each in nested_engines(dict(record)).values()]
    return inner or [record["type"]]


def distributions(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages whose versions can change the answers of the engine in a record."""
    return tuple(dict.fromkeys(name for kind in kinds_of(record) for name in kind.distributions))


def programs(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions here of programs that can change the answers of the engine in a record."""
    return {name: said for kind in kinds_of(record) for name, said in kind.tools().items()}


def step_packages(pipeline: Pipeline | None) -> tuple[str, ...]:
    """Return the packages that a pipeline's steps import beside numpy, installed or not."""
    steps = () if pipeline is None else pipeline.all
    return tuple(dict.fromkeys(name for step in steps for name in step.packages))


def answers_as(device: Target, record: Mapping[str, Any]) -> bool:
    """Whether an engine, or one of its inner engines, gives a device's own answers."""
    return any(device.family in kind.families for kind in kinds_of(record))


def packages(manifest: Manifest) -> dict[str, str]:
    """Return the packages that a bundle's models and steps need, with their versions when made.

    A package without a version in the bundle's environment wasn't installed, so it isn't needed.

    Args:
        manifest: The bundle's manifest. Its engines needn't be installed; the packages of an engine
            that hasten doesn't know here, such as a missing plug-in's, are left out.
    """
    needed = ["numpy"]
    for item in (manifest.winner, manifest.exact):
        if item is not None:
            needed += distributions(item.engine)
    needed += step_packages(manifest.pipeline)
    found = {name: version_of(manifest, name) for name in dict.fromkeys(needed)}
    return {name: version for name, version in found.items() if version}


def requirements(manifest: Manifest, extras: Sequence[str] = ()) -> list[str]:
    """Return requirement lines for pip: hasten and the packages of a bundle as it was certified.

    A bundle is untrusted, so it can't name a package to install: an engine that hasten doesn't know
    here gets a comment with the package that the bundle states.

    Args:
        manifest: The bundle's manifest; its engines needn't be installed.
        extras: Extras of hasten to install too, such as "serve".
    """
    hasten = f"hasten[{','.join(extras)}]" if extras else "hasten"
    made_by = version_of(manifest, "hasten")
    lines = [f"{hasten}=={made_by}" if made_by else hasten]
    lines += [f"{name}=={version}" for name, version in packages(manifest).items()]
    named = [engine_names(item.engine) for item in (manifest.winner, manifest.exact) if item]
    for name in dict.fromkeys(itertools.chain(*named)):
        kind = Engine.member(name) if name in Engine.registry else None
        if kind is not None and kind.program:
            lines.append(
                f"# The engine {name!r} needs {kind.program} on the machine that opens the "
                f"bundle: install the system's package, or add hasten[{kind.extra}]"
            )
        elif kind is None:
            said = manifest.environment.get(f"{Engine.registry.group}:{name}", "an unknown package")
            lines.append(
                f"# The engine {name!r:.100} comes from {said!r:.100}, as the bundle says: add that "
                "package if you trust it"
            )
    return lines


def program_extras(manifest: Manifest) -> tuple[str, ...]:
    """Return the extras of hasten that bring programs which a bundle's engines need beside packages."""
    parts = [part.engine for part in (manifest.winner, manifest.exact) if part is not None]
    kinds = [kind for record in parts for kind in kinds_of(record)]
    return tuple(dict.fromkeys(kind.extra for kind in kinds if kind.program))


def version_of(manifest: Manifest, package: str, usual: str = "") -> str:
    """Return a package's version when a bundle was made, or `usual` if the bundle states none.

    A local version label, as in 2.7.0+cpu, is left out: package indexes have no such version. The
    result goes to pip and into a Dockerfile, so it must hold nothing that a shell would interpret.

    Raises:
        IntegrityError: the manifest states something that is not a version.
    """
    stated = manifest.environment.get(package, usual).partition("+")[0]
    if stated and not _VERSION.fullmatch(stated):
        raise IntegrityError(
            f"the bundle states that it was measured with {package} {stated!r:.100}, which is "
            "not a "
            "version: make the bundle again"
        )
    return stated
