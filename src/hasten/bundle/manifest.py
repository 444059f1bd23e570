"""Define the manifest, which states what a bundle holds, and check that its values are possible."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from hasten.core.comparison import Comparison
from hasten.core.growth import Growth
from hasten.core.lookups import Lookup, check_lookups
from hasten.core.ranges import ValueRange
from hasten.core.records import file_digest, leaves, to_record
from hasten.core.sequences import Sequences, check_states
from hasten.core.shapes import Extent
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact, Engine
from hasten.errors import InputError, IntegrityError, UnknownMember
from hasten.inputs.pipeline.base import Pipeline

SCHEMA = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.json.minisig"
MANIFEST_BYTES = 4 << 20
"""Largest manifest that is read: enough for 30,000 files. Parsing takes up to 50 times its size."""
"""Names of the manifest's file, and of the signature over it, which the manifest can't list."""
Status: TypeAlias = Literal["certified", "exact", "uncertified"]
_UNFINISHED = "the run has not finished: "
UNCERTIFIED_YET = (
    f"{_UNFINISHED}this is the fastest candidate so far, and it isn't certified; "
    "continue with --resume"
)
"""Reason for the status of a bundle that is written during the search."""

_STRANGE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal or reverse the writing direction, and lone surrogates."""
_MOST_AXES = 32
_MOST_ON_AN_AXIS = 2**31 - 1
_NUMBER = re.compile("bool|u?int[0-9]+|b?float[0-9]+[a-z0-9_]*|complex[0-9]+")
"""Names of number types. numpy parses other names as strings, objects and structured records."""


@dataclass(frozen=True)
class Part:
    """A model in a bundle, and how to run it; its paths are relative to the bundle.

    Attributes:
        label: Description of the model for people.
        passes: Records of the passes that made the model.
        engine: Record of the engine's settings.
        artifact: Files that the engine opens, with their inputs and outputs.
        custom_ops: SHA-256 of each operator library that the model needs. The libraries themselves
            are native code, so a bundle never carries them: the caller hands their paths to `load`.
    """

    label: str
    passes: tuple[dict[str, Any], ...]
    engine: dict[str, Any]
    artifact: Artifact
    custom_ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Manifest of a bundle: what it holds, how it was made and what was certified.

    Attributes:
        status: "certified"; "exact" (the original precision, so no test is needed); or
            "uncertified".
        why: Reason for the status, in words.
        winner: Model that `load` opens.
        exact: Exact model that the winner was compared to; None where the order has `keep_exact=False`.
        metric: Record of the metric.
        certificate: Fields of the verdict, its coverage and the population; None if the winner was
            not judged.
        source_sha256: SHA-256 of the model that was given.
        sealed: Number of sealed samples, and the SHA-256 over their hashes.
        target: Device that the bundle was made for.
        environment: Versions and host facts when the measurements were taken.
        pipeline: Preparation that turns raw inputs into tensors, for the exact model and, unless `least` says
            otherwise, for the winner; None if the data came as tensors.
        created: Time of creation, ISO 8601, UTC.
        requests: Number of requests from the data that the bundle keeps: see
            `hasten.bundle.requests`.
        sequences: States that both models carry from step to step, if they were certified on whole
            sequences.
        request_shapes: Shapes of each of these requests, in the order of the winner's inputs; empty
            where all have the shapes of the certified one.
        shapes: Dimensions in which the samples that it was made with differ, and their sizes.
        comparison: Figures, scores and decisions of the winner beside the exact model's, on the sealed
            samples; None where nothing was compared.
        lookups: Tables that the models look their inputs' numbers up in, whose rows all requests must have.
        least: Pixels of the shorter side that are enough where the winner's pictures are decoded smaller than
            the pipeline says, as `Decode.least`; 0 where they aren't.
        ranges: Ranges of the inputs' numbers in the samples that calibrated and that the search saw; none
            where samples aren't to be in the bundle.
        varying: Names of outputs whose size depends on a sample's values, which no certificate covers.
        growth: Memory of the exact model's tensors for one sample, by how large it is beside the data's largest, or
            by rows where no other dimension is open; empty where none is, or nothing tells the memory.
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
    sequences: Sequences | None = None
    request_shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    shapes: tuple[Extent, ...] = ()
    comparison: Comparison | None = None
    ranges: tuple[ValueRange, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    least: int = 0
    varying: tuple[str, ...] = ()
    growth: tuple[Growth, ...] = ()
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def certified_early(self) -> bool:
        """Whether it is certified although its run has not finished, so that another may still ship."""
        return self.status == "certified" and unfinished(self.why)

    def pipeline_of(self, which: Literal["winner", "exact"]) -> Pipeline | None:
        """Return the preparation for one of the models; None if the data came as tensors.

        Args:
            which: "winner" or "exact".
        """
        if which == "winner" and self.least:
            # Imported here: it brings the steps of pictures, which other bundles don't need.
            from hasten.inputs.pipeline.smaller import decoded_smaller

            return decoded_smaller(self.pipeline, self.least)
        return self.pipeline


def part(label: str, passes: Sequence[Any], engine: Engine, artifact: Artifact) -> Part:
    """Describe a built candidate as a part; `write` copies its files into the bundle."""
    hashes = tuple(file_digest(path) for path in artifact.custom_ops)
    records = tuple(to_record(step) for step in passes)
    return Part(label, records, to_record(engine), artifact, hashes)


def untimed_yet(words: str) -> str:
    """Return the reason for the status of a bundle that is written once a candidate is certified.

    Args:
        words: Words of its certificate.
    """
    return (
        f"{_UNFINISHED}{words}; it hasn't been timed again yet, so another model may still ship; "
        "continue with --resume"
    )


def unfinished(why: object) -> bool:
    """Whether the reason for a bundle's status says that the run has not finished."""
    return isinstance(why, str) and why.startswith(_UNFINISHED)


def one_line(text: str) -> str:
    """Return a text with each control character replaced by a space."""
    return _STRANGE.sub(" ", text)


def check_values(record: Any) -> None:
    """Check the texts and numbers of a manifest's record before any is used, shown or written.

    Raises:
        IntegrityError: a text has control characters, or a number isn't finite or exceeds 64 bits.
    """
    for value in leaves(record):
        if isinstance(value, str):
            if _STRANGE.search(value):
                raise IntegrityError(f"the text {value[:100]!r} has control characters")
        elif not abs(value) < 2**63:  # NaN fails every comparison, so it is caught too
            raise IntegrityError("it has a number that is infinite, NaN, or larger than 64 bits")


@contextlib.contextmanager
def naming_packages(environment: object) -> Iterator[None]:
    """Let the error for a member that isn't installed name the package that a bundle says it comes from.

    Args:
        environment: Environment of the bundle's manifest, which may be damaged.
    """
    try:
        yield
    except UnknownMember as error:
        stated = environment.get(error.entry_point) if isinstance(environment, Mapping) else None
        if stated is None:
            raise
        raise UnknownMember(
            error.member,
            error.entry_point,
            f"it comes from {stated!r:.100}, as the bundle says; install that package if you trust it",
        ) from error


def check_engines(manifest: Manifest) -> None:
    """Check that both models name an engine; opening one shows whether that engine exists.

    Raises:
        IntegrityError: a model names no engine, or engines are nested more than one level deep.
    """
    for item in (manifest.winner, manifest.exact):
        if item is None:
            continue
        if not isinstance(item.engine.get("type"), str):
            raise IntegrityError(f"the model {item.label!r:.100} names no engine")
        if any(nested_engines(inner) for inner in nested_engines(item.engine).values()):
            raise IntegrityError(f"the engine of {item.label!r:.100} is nested too deeply")


def check_pipeline(manifest: Manifest) -> None:
    """Check that the steps after the model fit each other and both models' outputs.

    Raises:
        InputError: a step doesn't fit; the message says which, and what it needs. Or pictures would be decoded
            smaller, and the pipeline decodes none.
    """
    if manifest.least and (manifest.least < 0 or manifest.pipeline_of("winner") is None):
        raise InputError(
            f"it decodes pictures to {manifest.least} pixels or more, but its pipeline doesn't begin with decode"
        )
    for item in (manifest.winner, manifest.exact):
        if manifest.pipeline is not None and item is not None:
            manifest.pipeline.check(item.artifact.outputs)


def check_sequences(manifest: Manifest) -> None:
    """Check that the states are inputs and outputs of both models, and fit each other.

    Raises:
        InputError: a state doesn't fit; the message says which.
    """
    for item in (manifest.winner, manifest.exact):
        if manifest.sequences is not None and item is not None:
            states = manifest.sequences.states
            if not states:
                raise InputError("it states sequences without a state")
            check_states(states, item.artifact.inputs, item.artifact.outputs)


def check_tables(manifest: Manifest) -> None:
    """Check that the tables that numbers are looked up in can be those of both models' inputs.

    Raises:
        InputError: they can't; the message names the input.
    """
    for item in (manifest.winner, manifest.exact):
        if item is not None:
            check_lookups(manifest.lookups, item.artifact.inputs)


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
        IntegrityError: a tensor is impossible or doesn't fit; the message says which.
    """
    for spec in (*artifact.inputs, *artifact.outputs, *artifact.request):
        sizes = [size for size in spec.shape if isinstance(size, int)]
        if len(spec.shape) > _MOST_AXES or any(not 0 <= n <= _MOST_ON_AN_AXIS for n in sizes):
            raise IntegrityError(f"{spec!s:.100} is not a possible tensor shape")
    for spec in (*artifact.inputs, *artifact.request):
        if not _is_number(spec.dtype):
            raise IntegrityError(f"{spec!s:.100} has a type that numpy doesn't support here")
    inputs = {spec.name: spec for spec in artifact.inputs}
    request = {spec.name: spec for spec in artifact.request}
    names = [spec.name for spec in (*artifact.inputs, *artifact.request)]
    if inputs.keys() != request.keys() or len(names) != 2 * len(inputs):
        raise IntegrityError(
            f"its request is {', '.join(map(str, artifact.request)) or 'empty':.100}; its inputs are "
            f"{', '.join(map(str, artifact.inputs)) or 'none':.100}"
        )
    for name, spec in request.items():
        if not settles(spec, inputs[name]):
            raise IntegrityError(
                f"its request {spec!s:.100} doesn't fit the input {inputs[name]!s:.100}"
            )


def _is_number(dtype: str) -> bool:
    """Whether a dtype names a number type that numpy, or a package such as ml_dtypes, has here."""
    if not _NUMBER.fullmatch(dtype):
        return False
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return True


def settles(request: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether a request has the type, axes and fixed sizes of an input, and no open dimension."""
    return (
        request.static
        and request.dtype == wanted.dtype
        and len(request.shape) == len(wanted.shape)
        and all(
            isinstance(want, str) or want == size
            for want, size in zip(wanted.shape, request.shape, strict=True)
        )
    )
