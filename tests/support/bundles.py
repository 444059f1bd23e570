"""Bundles by hand, and what somebody who tampers with one makes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle import MANIFEST, Manifest, Part, part
from hasten.core.records import digest, to_record
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.models.onnx import load
from hasten.measure.environment import environment


def built(folder: Path, model: Path, engine: Engine, lengths: Mapping[int | str, int] = {}) -> Part:
    """Build an .onnx file for an engine.

    Args:
        folder: Folder to build in.
        model: The file, whose first open dimension is the batch.
        engine: The engine.
        lengths: Sizes that further open dimensions have in the data, by their names.
    """
    loaded = load(model)
    sample = {
        s.name: np.zeros([int(lengths.get(n, n)) for n in s.shape[1:]], s.dtype)
        for s in loaded.inputs
    }
    place = folder / f"built-{model.stem}"
    place.mkdir()
    artifact = engine.build(loaded.settled_by(sample), Target.host(), place)
    return part("a label", (), engine, artifact)


def stated(winner: Part, exact: Part | None, **fields: Any) -> Manifest:
    """Return a manifest of this host; certified and judged by top-1 unless the fields say otherwise."""
    host = Target.host()
    facts = {
        "status": "certified",
        "why": "sure enough",
        "metric": to_record(Top1()),
        "certificate": None,
        "source_sha256": "0" * 64,
        "sealed": {"samples": 0},
        "target": host,
        "environment": environment(host),
        "pipeline": None,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(winner=winner, exact=exact, **{**facts, **fields})


def forge(
    bundle: Path,
    change: Callable[[dict[str, Any]], object] = lambda record: None,
    files: Mapping[str, bytes] = {},
) -> None:
    """Change a bundle's manifest and files, and make every sum fit again."""
    record = json.loads((bundle / MANIFEST).read_bytes())
    del record["digest"]
    for name, data in files.items():
        (bundle / name).write_bytes(data)
        record["files"][name] = [hashlib.sha256(data).hexdigest(), len(data)]
    change(record)
    (bundle / MANIFEST).write_text(json.dumps({**record, "digest": digest(record)}))
