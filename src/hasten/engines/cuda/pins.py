"""Record of what an artifact for a GPU was made for, kept beside it, and the refusal of one made for another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hasten.core.records import bounded_bytes, from_record, write_json
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.cuda.facts import DeviceFacts, device_facts
from hasten.errors import CandidateError, InputError, visible

SUFFIX = ".made-for.json"
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Pins:
    """Record of what an artifact was made for.

    Attributes:
        runtime: Name of the runtime, for people.
        version: Version of the runtime.
        part: Compute capability, as in "sm90"; None for any.
        driver: Version of CUDA that the driver supported; None where it was made without a driver.
    """

    runtime: str
    version: str
    part: str | None
    driver: str | None


def pins_for(
    target: Target, runtime: str, version: str, read: Callable[[], DeviceFacts] = device_facts
) -> Pins:
    """Return the pins of an artifact that is made for a target now.

    Args:
        target: The GPU, here or elsewhere.
        runtime: Name of the runtime, for people.
        version: Version of the runtime.
        read: Function that reads the facts of the device that is here.

    Raises:
        InputError: CUDA's bindings aren't installed.
        CandidateError: the device can't be read.
    """
    if target.kind != "attached":
        return Pins(runtime, version, target.part or None, None)
    here = read()
    return Pins(runtime, version, here.part, here.driver)


def pin(path: Path, pins: Pins) -> Path:
    """Write pins beside an artifact's file, and return the path of what was written."""
    beside = path.with_name(path.name + SUFFIX)
    write_json(beside, vars(pins))
    return beside


def check_pins(
    artifact: Artifact,
    runtime: str,
    version: str,
    read: Callable[[], DeviceFacts] = device_facts,
) -> DeviceFacts:
    """Check that an artifact was made for the device that is here, and return the device's facts.

    Args:
        artifact: Artifact, which may come from a stranger.
        runtime: Name of the runtime that opens it, for people.
        version: Version of that runtime.
        read: Function that reads the facts of the device that is here.

    Raises:
        InputError: CUDA's bindings aren't installed.
        CandidateError: it was made for something else, or doesn't say for what.
    """
    pins, here = _stated(artifact), read()
    pairs = (
        (f"{pins.runtime} {pins.version}", f"{runtime} {version}"),
        (pins.part or here.part, here.part),
        (f"a driver for CUDA {pins.driver or here.driver}", f"one for CUDA {here.driver}"),
    )
    same = (
        (pins.runtime, pins.version) == (runtime, version),
        pins.part in (None, here.part),
        pins.driver in (None, here.driver),
    )
    if not all(same):
        wrong = [pair for pair, fits in zip(pairs, same, strict=True) if not fits]
        there, now = (" and ".join(words) for words in zip(*wrong, strict=True))
        raise CandidateError(
            f"{artifact.path.name} was made for {visible(there):.200}, but this host has {now}: "
            "make the bundle again here"
        )
    return here


def _stated(artifact: Artifact) -> Pins:
    """Return what an artifact says that it was made for."""
    for file in artifact.files:
        if file.name.endswith(SUFFIX):
            try:
                return from_record(Pins, json.loads(bounded_bytes(file, _MOST_BYTES)))
            except (InputError, OSError, ValueError, RecursionError) as error:
                raise CandidateError(f"{file.name} can't be read: make the bundle again") from error
    raise CandidateError(
        f"{artifact.path.name} doesn't state which GPU it was made for: make the bundle again"
    )
