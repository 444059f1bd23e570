"""Write, check and load bundles: folders with a model, its certificate and its evidence."""

from hasten.bundle.folder import artifact_of, read, replaceable, write
from hasten.bundle.loaded import (
    Loaded,
    MeasuredElsewhere,
    NotCertifiedHere,
    UnfinishedRun,
    constant_inputs,
    differences,
    engine_of,
    load,
)
from hasten.bundle.manifest import MANIFEST, SIGNATURE, Manifest, Part, Status, part
from hasten.bundle.packing.unpacking import unpacked
from hasten.bundle.requests import fitting, kept_requests, room_for
from hasten.bundle.requirements import answers_as, requirements, step_packages
from hasten.bundle.states import Carrier

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "Carrier",
    "Loaded",
    "Manifest",
    "MeasuredElsewhere",
    "NotCertifiedHere",
    "Part",
    "Status",
    "UnfinishedRun",
    "answers_as",
    "artifact_of",
    "constant_inputs",
    "differences",
    "engine_of",
    "fitting",
    "kept_requests",
    "load",
    "part",
    "read",
    "replaceable",
    "requirements",
    "room_for",
    "step_packages",
    "unpacked",
    "write",
]
