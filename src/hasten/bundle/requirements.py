"""The packages that a bundle needs, in the versions that it was certified with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hasten.bundle.manifest import Manifest, nested_engines
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.errors import IntegrityError

_VERSION = re.compile(r"[0-9][0-9A-Za-z.!_-]*", re.ASCII)
"""Letters of PEP 440."""


def kinds_of(record: Mapping[str, Any]) -> Iterator[type[Engine]]:
    """Yield the classes of the engines that an engine's record names; unknown ones are left out."""
    for name in engine_names(record):
        if name in Engine.registry:
            yield Engine.member(name)


def engine_names(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the engines that run something: those of a cascade's parts, or its own."""
    inner = [each["type"] for each in nested_engines(dict(record)).values()]
    return inner or [record["type"]]


def distributions(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages that the answers of an engine's record stand on."""
    return tuple(dict.fromkeys(name for kind in kinds_of(record) for name in kind.distributions))


def answers_as(device: Target, record: Mapping[str, Any]) -> bool:
    """Whether an engine, or one of those that it is made of, answers as a device does."""
    return any(device.family in kind.families for kind in kinds_of(record))


def packages(manifest: Manifest) -> dict[str, str]:
    """Return the packages that both of a bundle's models need, and their versions when it was made.

    A package that has none in the bundle's environment wasn't installed, so it isn't needed.

    Args:
        manifest: The bundle's. Its engines needn't be installed; of one that hasten doesn't know
            here, as another's plug-in, nothing is told.
    """
    needed = ["numpy"]
    for item in (manifest.winner, manifest.exact):
        if item is not None:
            needed += distributions(item.engine)
    found = {name: version_of(manifest, name) for name in dict.fromkeys(needed)}
    return {name: version for name, version in found.items() if version}


def requirements(manifest: Manifest, extras: Sequence[str] = ()) -> list[str]:
    """Return lines for pip that install what loads a bundle, each package as it was certified.

    A bundle is untrusted, so it names no package to install: an engine that hasten doesn't know
    here gets a comment with what the bundle says of it.

    Args:
        manifest: The bundle's; its engines needn't be installed.
        extras: Extras of hasten beside, such as "serve".
    """
    hasten = f"hasten[{','.join(extras)}]" if extras else "hasten"
    made_by = version_of(manifest, "hasten")
    lines = [f"{hasten}=={made_by}" if made_by else hasten]
    lines += [f"{name}=={version}" for name, version in packages(manifest).items()]
    named = [engine_names(item.engine) for item in (manifest.winner, manifest.exact) if item]
    for name in dict.fromkeys(itertools.chain(*named)):
        if name not in Engine.registry:
            said = manifest.environment.get(f"{Engine.registry.group}:{name}", "an unknown package")
            lines.append(
                f"# The engine {name!r:.100} comes from {said!r:.100}, as the bundle says: add that "
                "package if you trust it"
            )
    return lines


def version_of(manifest: Manifest, package: str, usual: str = "") -> str:
    """Return a package's version when a bundle was made, or what is usual where it states none.

    A build's own mark, as in 2.7.0+cpu, is left out: an index has no such version. The text goes to
    pip and into a Dockerfile, whose shell it must not speak to.

    Raises:
        IntegrityError: the manifest states something else than a version.
    """
    stated = manifest.environment.get(package, usual).partition("+")[0]
    if stated and not _VERSION.fullmatch(stated):
        raise IntegrityError(
            f"the bundle says that it was measured with {package} {stated!r:.100}, which is no version: "
            "make the bundle anew"
        )
    return stated
