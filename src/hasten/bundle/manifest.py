"""What a bundle states about itself, and which statements are possible at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from hasten.core.records import file_digest, to_record
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact, Engine
from hasten.errors import IntegrityError
from hasten.inputs.pipeline.base import Pipeline

SCHEMA = 1
MANIFEST = "manifest.json"
Status: TypeAlias = Literal["certified", "exact", "uncertified"]

_STRANGE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a screen, turns the order of letters around, or is half a character."""
_MOST_AXES = 32
_MOST_ON_AN_AXIS = 2**31 - 1
_NUMBER = re.compile("bool|u?int[0-9]+|b?float[0-9]+[a-z0-9_]*|complex[0-9]+")
"""Types by name. numpy reads whole languages in others: texts, objects, records of fields."""


@dataclass(frozen=True)
class Part:
    """A model that a bundle holds, and how to run it. Paths are relative to the bundle.

    Attributes:
        label: What it is, for people.
        passes: The records of the passes that made it.
        engine: The record of the engine's settings.
        artifact: What the engine opens.
        custom_ops: SHA-256 of each operator library that it needs; the libraries themselves are
            native code, so a bundle never carries them and `load` takes them by name.
    """

    label: str
    passes: tuple[dict[str, Any], ...]
    engine: dict[str, Any]
    artifact: Artifact
    custom_ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a bundle states about itself.

    Attributes:
        status: "certified"; "exact" (the original precision, so no test is needed); or
            "uncertified".
        why: The status in words.
        winner: The model that `load` opens.
        exact: The exact model, or None with `--no-exact`.
        metric: The metric's record.
        certificate: The judgement's fields, what it covers, the population; None where the
            winner was not judged.
        source_sha256: Of the model that was given.
        sealed: How many samples were sealed and the SHA-256 over their hashes.
        target: The device.
        environment: Versions and host, as the measurements were taken.
        pipeline: What the inputs went through before; None where the data came as tensors.
        created: ISO 8601, UTC.
        requests: How many requests of the data it keeps: see `hasten.bundle.requests`.
        files: Relative path -> [SHA-256, size in bytes].
        schema: Version of this record.
    """

    status: Status
    why: str
    winner: Part
    exact: Part | None
    metric: dict[str, Any]
    certificate: dict[str, Any] | None
    source_sha256: str
    sealed: dict[str, Any]
    target: Target
    environment: dict[str, str]
    pipeline: Pipeline | None
    created: str
    requests: int = 0
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    schema: int = SCHEMA


def part(label: str, passes: Sequence[Any], engine: Engine, artifact: Artifact) -> Part:
    """Describe a built candidate; its paths stay where it was built until `write`."""
    hashes = tuple(file_digest(path) for path in artifact.custom_ops)
    records = tuple(to_record(step) for step in passes)
    return Part(label, records, to_record(engine), artifact, hashes)


def one_line(text: str) -> str:
    """Return a text without what steers a screen."""
    return _STRANGE.sub(" ", text)


def check_values(record: Any) -> None:
    """Check a manifest's record, read or to be written, before anything of it is used or shown.

    Raises:
        IntegrityError: a text that steers the screen it is shown on, or a number that counts nothing.
    """
    for value in _values(record):
        if isinstance(value, str):
            if _STRANGE.search(value):
                raise IntegrityError(f"the text {value[:100]!r} has control characters")
        elif not abs(value) < 2**63:  # what is no number isn't less either
            raise IntegrityError("it has a number that is infinite, none, or past 64 bits")


def _values(record: Any) -> Iterator[str | int | float]:
    """Yield every key, text and number of a record."""
    left = [record]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value
        elif value is not None:
            yield value


def check_engines(manifest: Manifest) -> None:
    """Check that both models name an engine; whether there is such a one shows when it is opened.

    Raises:
        IntegrityError: one doesn't, or an engine is made of engines that are made of engines.
    """
    for item in (manifest.winner, manifest.exact):
        if item is None:
            continue
        if not isinstance(item.engine.get("type"), str):
            raise IntegrityError(f"the model {item.label!r:.100} names no engine")
        if any(nested_engines(inner) for inner in nested_engines(item.engine).values()):
            raise IntegrityError(f"the engine of {item.label!r:.100} is nested too deep")


def nested_engines(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of an engine's record that are engines themselves, as a cascade's are."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, dict) and isinstance(value.get("type"), str)
    }


def check_artifact(artifact: Artifact) -> None:
    """Check that a model's inputs, outputs and request are possible, and fit each other.

    Raises:
        IntegrityError: which doesn't.
    """
    for spec in (*artifact.inputs, *artifact.outputs, *artifact.request):
        sizes = [size for size in spec.shape if isinstance(size, int)]
        if len(spec.shape) > _MOST_AXES or any(not 0 <= n <= _MOST_ON_AN_AXIS for n in sizes):
            raise IntegrityError(f"{spec!s:.100} is the shape of no tensor")
    for spec in (*artifact.inputs, *artifact.request):
        if not _is_number(spec.dtype):
            raise IntegrityError(f"{spec!s:.100} is of a type that numpy doesn't have here")
    inputs = {spec.name: spec for spec in artifact.inputs}
    request = {spec.name: spec for spec in artifact.request}
    names = [spec.name for spec in (*artifact.inputs, *artifact.request)]
    if inputs.keys() != request.keys() or len(names) != 2 * len(inputs):
        raise IntegrityError(
            f"its request is {', '.join(map(str, artifact.request)) or 'empty':.100}; its inputs are "
            f"{', '.join(map(str, artifact.inputs)) or 'none':.100}"
        )
    for name, spec in request.items():
        if not _settles(spec, inputs[name]):
            raise IntegrityError(
                f"its request {spec!s:.100} doesn't fit the input {inputs[name]!s:.100}"
            )


def _is_number(dtype: str) -> bool:
    """Whether it names a number that numpy has here, be it by a package such as bfloat16's."""
    if not _NUMBER.fullmatch(dtype):
        return False
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return True


def _settles(request: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether a request has an input's type, its axes, every size that it fixes, and no open one."""
    return (
        request.static
        and request.dtype == wanted.dtype
        and len(request.shape) == len(wanted.shape)
        and all(
            isinstance(want, str) or want == size
            for want, size in zip(wanted.shape, request.shape, strict=True)
        )
    )
