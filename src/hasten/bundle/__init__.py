"""Write, check and load bundles: folders with a model, its certificate and its evidence."""

from typing import TYPE_CHECKING, Any

from hasten.bundle.engines import engine_of
from hasten.bundle.folder import artifact_of, read, replaceable, write
from hasten.bundle.loaded import Loaded, MeasuredElsewhere, NotCertifiedHere, UnfinishedRun
from hasten.bundle.loading import load
from hasten.bundle.machines import constant_inputs, differences
from hasten.bundle.manifest import MANIFEST, SIGNATURE, Manifest, Part, Status, part
from hasten.bundle.requests import fitting, kept_requests, room_for
from hasten.bundle.requirements import answers_as, requirements, step_packages
from hasten.bundle.states import Carrier

if TYPE_CHECKING:
    from hasten.bundle.packing.unpacking import unpacked

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


def __getattr__(name: str) -> Any:
    if name == "unpacked":  # it brings http and ssl, which opening a folder doesn't need
        from hasten.bundle.packing.unpacking import unpacked

        return unpacked
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
