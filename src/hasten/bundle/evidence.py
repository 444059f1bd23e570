"""Read the evidence in a bundle that a server relies on, without importing the search."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hasten.bundle.manifest import Manifest
from hasten.core.records import bounded_bytes
from hasten.errors import IntegrityError
from hasten.measure.curve import CURVE, CurvePoint, points_of

_MOST_BYTES = 64 << 20


def batch_curve(path: Path, manifest: Manifest) -> tuple[CurvePoint, ...]:
    """Read a bundle's batch curve.

    Args:
        path: The bundle's folder.
        manifest: The bundle's manifest, of which the hash of the curve is taken.

    Returns:
        The points of the curve; empty where the bundle has no curve.

    Raises:
        IntegrityError: the bundle has a curve that can't be read or isn't valid.
    """
    name = f"evidence/{CURVE}"
    if name not in manifest.files:
        return ()
    try:
        sha256, size_bytes = manifest.files[name]
        if size_bytes > _MOST_BYTES:
            raise IntegrityError(f"it is larger than {_MOST_BYTES >> 20} MiB")
        data = bounded_bytes(path / name, size_bytes)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError("it was changed after it was written")
        return points_of(json.loads(data))
    except (OSError, ValueError, RecursionError, IntegrityError) as error:
        raise IntegrityError(f"{path}: {name} is damaged: {error}") from error
