"""Store and read the requests from the data that a bundle keeps for warm-up and timing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hasten.bundle.manifest import Manifest, check_artifact, settles
from hasten.core.tensors import Array, Tensors, TensorSpec, check_tensors
from hasten.core.words import amount
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.weights import Stretch

REQUESTS = "requests.raw"
"""Name of the file that holds the requests one after another, each with its arrays in the order of the
winner's request, in C order and little-endian. The manifest states their number, and their shapes where
they differ; the winner's request states their types, and else their shapes."""
MOST_REQUESTS = 4
"""Largest number of requests in a bundle: few, since they are somebody's data, but more than one, since another
request may take a branch that the first doesn't."""
MOST_BYTES = 16 << 20
"""Largest size of the file: it is read whole, and travels with every bundle."""


def request_bytes(specs: Sequence[TensorSpec]) -> int:
    """Return the size in bytes of one request, which has no open dimensions."""
    return sum(math.prod(spec.sizes) * np.dtype(spec.dtype).itemsize for spec in specs)


def room_for(specs: Sequence[TensorSpec]) -> int:
    """Return how many requests of these specs a bundle keeps; 0 if even one is too large."""
    return min(MOST_REQUESTS, MOST_BYTES // max(1, request_bytes(specs)))


def shapes_of(
    requests: Sequence[Tensors], specs: Sequence[TensorSpec]
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the shapes of each request, in the order of the specs; () where all are as the specs say."""
    found = tuple(tuple(request[spec.name].shape for spec in specs) for request in requests)
    as_said = tuple(spec.shape for spec in specs)
    return () if all(shapes == as_said for shapes in found) else found


def specs_of(manifest: Manifest) -> list[tuple[TensorSpec, ...]]:
    """Return the inputs of each request that a manifest states, with every size settled.

    Raises:
        IntegrityError: the shapes that it states don't fit the winner's inputs.
    """
    artifact = manifest.winner.artifact
    if not manifest.request_shapes:
        return [artifact.request] * manifest.requests
    wanted = {spec.name: spec for spec in artifact.inputs}
    found = []
    for shapes in manifest.request_shapes:
        own = tuple(
            replace(spec, shape=shape)
            for spec, shape in zip(artifact.request, shapes, strict=False)
        )
        if len(shapes) != len(artifact.request) or not all(
            settles(one, wanted[one.name]) for one in own
        ):
            raise IntegrityError(f"a request of the shapes {shapes!s:.200} isn't one of its inputs")
        found.append(own)
    if len(found) != manifest.requests:
        raise IntegrityError(
            f"it states {amount(manifest.requests, 'request')}, and shapes for {len(found)}"
        )
    return found


def fitting(requests: Sequence[Tensors]) -> list[Tensors]:
    """Return the first of some requests, as many as a bundle has room for."""
    kept: list[Tensors] = []
    left = MOST_BYTES
    for request in requests[:MOST_REQUESTS]:
        left -= sum(array.nbytes for array in request.values())
        if left < 0:
            break
        kept.append(request)
    return kept


def packed(requests: Sequence[Tensors], specs: Sequence[TensorSpec]) -> bytes:
    """Return the bytes of the file that holds the requests.

    Args:
        requests: Arrays by input name; at most as many requests as `room_for` allows.
        specs: The inputs of each request, in the file's order; sizes may be open.

    Raises:
        InputError: a request has other inputs.
    """
    for request in requests:
        check_tensors(request, specs)
    return b"".join(request[spec.name].tobytes() for request in requests for spec in specs)


def in_words(count: int) -> str:
    """Say how many samples of the data are in a bundle, for the people whose data it is."""
    are = f"{count} of the data {'is' if count == 1 else 'are'}" if count else "none of the data is"
    return f"{are} in the bundle{', to warm up with' if count else ''}"


def check_requests(manifest: Manifest) -> None:
    """Check that what a manifest states about its requests is possible, before any is read.

    Raises:
        IntegrityError: the requests are too many or too large, or the file's size isn't what the
            winner's inputs add up to.
    """
    count = manifest.requests
    if count == 0:
        return
    check_artifact(manifest.winner.artifact)
    each_bytes = request_bytes(manifest.winner.artifact.request)
    possible = 0 < count <= MOST_REQUESTS
    wanted = count * each_bytes
    if possible and manifest.request_shapes:
        wanted = sum(map(request_bytes, specs_of(manifest)))
        each_bytes = wanted // count
    if not possible or wanted > MOST_BYTES:
        raise IntegrityError(
            f"it states {count} requests of {each_bytes:,} bytes; a bundle has {MOST_REQUESTS} and "
            f"{MOST_BYTES >> 20} MiB of them at most"
        )
    _, size_bytes = manifest.files.get(REQUESTS, ("", -1))
    if size_bytes != wanted:
        raise IntegrityError(
            f"{count} requests of its inputs take {wanted:,} bytes, but {REQUESTS} "
            f"{f'has {size_bytes:,}' if size_bytes >= 0 else 'is not listed'}"
        )


def kept_requests(path: Path, manifest: Manifest) -> tuple[dict[str, Array], ...]:
    """Read the requests that a bundle keeps.

    Args:
        path: The bundle's folder.
        manifest: Manifest returned by `read`, which checked that the file's size is bounded.

    Returns:
        Arrays by input name, copied for the caller; empty if the bundle keeps no requests.

    Raises:
        IntegrityError: the file was changed after it was written, can't be read, or has a bool that
            is neither 0 nor 1.
    """
    if not manifest.requests:
        return ()
    sha256, size_bytes = manifest.files[REQUESTS]
    try:
        with (path / REQUESTS).open("rb") as file:
            data = file.read(size_bytes + 1)
    except OSError as error:
        raise IntegrityError(f"{path}: {REQUESTS} can't be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{path}: {REQUESTS} was changed after it was written")
    found, place = [], 0
    for specs in specs_of(manifest):
        request = {}
        for spec in specs:
            dtype, count = np.dtype(spec.dtype), math.prod(spec.sizes)
            raw = np.frombuffer(data, np.uint8, count * dtype.itemsize, place)
            place += raw.nbytes
            if dtype == np.bool_ and (raw > 1).any():
                raise IntegrityError(f"{path}: {REQUESTS} is damaged: {spec} is neither 0 nor 1")
            request[spec.name] = raw.copy().view(dtype).reshape(spec.sizes)
        found.append(request)
    return tuple(found)


def stretches_of(path: Path, manifest: Manifest) -> Iterator[Stretch]:
    """Yield where the arrays of the kept requests lie in their file.

    Args:
        path: The bundle's folder.
        manifest: Manifest returned by `read`, which checked that the file's size is what they add up to.
    """
    from hasten.engines.weights import Stretch

    place = 0
    for number, specs in enumerate(specs_of(manifest)):
        for spec in specs:
            width = np.dtype(spec.dtype).itemsize
            length = math.prod(spec.sizes) * width
            if length:
                title = f"{spec.name} of request {number + 1}"
                yield Stretch(title, spec.dtype, spec.sizes, width, path / REQUESTS, place, length)
            place += length
