"""A bundle: a folder with the model, its certificate and its evidence. Write it, check it, load it."""

from hasten.bundle.folder import artifact_of, read, replaceable, write
from hasten.bundle.loaded import (
    Loaded,
    MeasuredElsewhere,
    NotCertifiedHere,
    differences,
    engine_of,
    load,
)
from hasten.bundle.manifest import MANIFEST, Manifest, Part, Status, part
from hasten.bundle.requests import kept_requests, room_for

__all__ = [
    "MANIFEST",
    "Loaded",
    "Manifest",
    "MeasuredElsewhere",
    "NotCertifiedHere",
    "Part",
    "Status",
    "artifact_of",
    "differences",
    "engine_of",
    "kept_requests",
    "load",
    "part",
    "read",
    "replaceable",
    "room_for",
    "write",
]
