"""Differences between the machine that a bundle was made on and this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.bundle.engines import engine_of
from hasten.bundle.folder import artifact_of
from hasten.bundle.manifest import Manifest, Part
from hasten.bundle.requirements import answers_as, distributions, programs
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine
from hasten.errors import InputError, IntegrityError


def differences(
    manifest: Manifest,
    here: Target,
    facts: Mapping[str, str],
    item: Part | None = None,
    artifact: Artifact | None = None,
) -> list[str]:
    """List how this machine differs from the one that a bundle was made on; empty if it doesn't.

    Only package versions count where answers are the same on every host: of an engine whose answers
    equal an absent device's bit for bit, and of a model that is the same bits everywhere.

    Args:
        manifest: The bundle's manifest.
        here: This machine.
        facts: Environment of this machine: fact -> value.
        item: Part whose engine is compared; by default the winner.
        artifact: The part's files, from which the engine may find that its answers are the same bits
            everywhere; None where that doesn't count.
    """
    from hasten.measure.environment import DEVICE_FACTS

    record, there = (item or manifest.winner).engine, manifest.target
    on_device = there.kind != "host" and answers_as(there, record)
    device = [name for name in DEVICE_FACTS if on_device and name in manifest.environment]
    used = programs(record) if there.kind == "host" else ()
    pairs = _pairs(manifest, facts, (*device, *distributions(record), *used))
    if not _anywhere(there, record):
        pairs = [
            ("processor", there.processor, here.processor),
            ("instruction sets", " ".join(there.isa), " ".join(here.isa)),
            *pairs,
        ]
        if here.threads < there.threads:  # more make no difference: `load` uses as many as there
            pairs.append(("threads", there.threads, here.threads))
    found = _told(pairs)
    if not found or there.kind != "host" or artifact is None:
        return found
    if _same_everywhere(item or manifest.winner, artifact):
        return _told(_pairs(manifest, facts, distributions(record)))
    return found


def _same_everywhere(item: Part, artifact: Artifact) -> bool:
    """Whether a part's engine finds in its files that its answers are the same bits everywhere."""
    try:
        return engine_of(item, 1).same_everywhere(artifact)
    except (
        InputError,
        IntegrityError,
    ):  # a plug-in that isn't installed, or a setting that isn't one
        return False


def constant_inputs(path: Path, manifest: Manifest) -> Mapping[str, tuple[int, ...]]:
    """Return the inputs of the winner that take only some numbers, with these; see `Engine.constant_inputs`.

    Args:
        path: The bundle's folder, whose files were checked.
        manifest: Its manifest.
    """
    item = manifest.winner
    if item.custom_ops:  # no engine that takes these has such inputs
        return {}
    try:
        return engine_of(item, 1).constant_inputs(artifact_of(path, item, manifest, ()))
    except (InputError, IntegrityError):  # a plug-in that isn't installed
        return {}


def _pairs(
    manifest: Manifest, facts: Mapping[str, str], names: Sequence[str]
) -> list[tuple[str, object, object]]:
    """Return facts of the environment with their values there and here."""
    return [
        (name, manifest.environment.get(name, "none"), facts.get(name, "none")) for name in names
    ]


def _told(pairs: Sequence[tuple[str, object, object]]) -> list[str]:
    return [f"{name}: {one} there, {other} here" for name, one, other in pairs if one != other]


def _anywhere(there: Target, record: Mapping[str, Any]) -> bool:
    """Whether an engine's answers on any host equal those of an absent device bit for bit."""
    if there.kind != "compile-only" or record["type"] not in Engine.registry:
        return False
    kind = Engine.member(record["type"])
    return there.family in kind.families and kind.faithful
