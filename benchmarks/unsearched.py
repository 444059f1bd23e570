"""Bundles for benchmarks: a model on an engine, without a search, a certificate or another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.bundle import part, write
from hasten.bundle.manifest import Manifest
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine
from hasten.measure.environment import environment


def unsearched(path: Path, engine: Engine, artifact: Artifact, target: Target, **more: Any) -> Path:
    """Write a bundle of a model that is its own exact model.

    Args:
        path: Folder to write.
        engine: Engine that built the model.
        artifact: Artifact that the engine built.
        target: Machine that it was built for.
        more: Further fields of the manifest, such as `pipeline`.

    Returns:
        The folder.
    """
    winner = part("", (), engine, artifact)
    facts: dict[str, Any] = {
        "winner": winner,
        "exact": winner,
        "status": "exact",
        "why": "",
        "metric": {},
        "certificate": None,
        "source_sha256": "0" * 64,
        "sealed": {"samples": 0},
        "target": target,
        "environment": environment(target),
        "pipeline": None,
        "created": "2026-01-01T00:00:00+00:00",
    }
    write(path, Manifest(**{**facts, **more}), {})
    return path
