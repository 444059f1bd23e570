"""Requests to time a model with: samples of data, requests kept in a bundle, or random ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import HastenError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.ragged import RaggedDataset, is_ragged
from hasten.inputs.data.source import open_data
from hasten.inputs.pipeline.base import Pipeline

SAMPLES = "samples of the data"
MADE_UP = "made up (random numbers); give data for real ones"
_SAMPLES = 64
_RANDOM_BYTES = 256 << 20
"""Limit on the size of all random requests together."""


def first_requests(
    data: Any,
    inputs: Sequence[TensorSpec],
    request: Sequence[TensorSpec],
    pipeline: Pipeline | None,
    kept: Sequence[Tensors],
    seed: int,
) -> tuple[Dataset, str]:
    """Return requests for a bundle's model: from the data, else from the bundle, else random ones.

    Random requests are the last resort: a value that no real request has, for instance of a
    sampling rate, may take a branch of the model that can't answer.

    Args:
        data: Data in any form that `open_data` takes, or None.
        inputs: Specs of the model's inputs.
        request: Specs of one request's inputs, with every size settled.
        pipeline: Preprocessing from an image file to the model's input.
        kept: Requests that the bundle keeps.
        seed: Seed of the random numbers.

    Returns:
        The requests, and a phrase for people that says where they come from.

    Raises:
        InputError: the data can't be used, or even one random request is too large.
    """
    if data is not None:
        return first_samples(open_data(data, inputs, pipeline)), SAMPLES
    if kept:
        return samples_of(kept), f"{len(kept)} kept in the bundle"
    return random_requests(request, seed), MADE_UP


def first_samples(dataset: Dataset) -> Dataset:
    """Return the first samples, as many as are timed."""
    return Subset(dataset, np.arange(min(len(dataset), _SAMPLES)))


@contextlib.contextmanager
def telling(said: str) -> Iterator[None]:
    """Add to a failure inside the block that the requests were random, where they were.

    Args:
        said: Phrase of `first_requests` that says where the requests come from.
    """
    try:
        yield
    except HastenError as error:
        if said != MADE_UP:
            raise
        raise type(error)(f"{error}; the requests were {said}") from error


def samples_of(requests: Sequence[Tensors]) -> Dataset:
    """Return requests as samples; the requests all have the same types and numbers of axes."""
    samples = {
        name: [request[name].reshape(_sample(request[name].shape)) for request in requests]
        for name in requests[0]
    }
    if any(is_ragged(each) for each in samples.values()):
        return RaggedDataset(samples)
    return ArrayDataset({name: np.stack(each) for name, each in samples.items()})


def random_requests(request: Sequence[TensorSpec], seed: int) -> Dataset:
    """Make up random requests: as many as are timed, or fewer to limit the memory they take.

    Args:
        request: Specs of one request's inputs, with every size settled. A bundle states them and is
            untrusted, so sizes may be arbitrarily large.
        seed: Seed of the random numbers.

    Raises:
        InputError: a single request is too large.
    """
    each_bytes = sum(math.prod(spec.sizes) * np.dtype(spec.dtype).itemsize for spec in request)
    if each_bytes > _RANDOM_BYTES:
        raise InputError(
            f"a random request of this model would take {each_bytes / 2**20:,.4g} MiB, more than the "
            f"limit of {_RANDOM_BYTES >> 20} MiB: give real requests with data="
        )
    count = min(_SAMPLES, _RANDOM_BYTES // max(1, each_bytes))
    rng = np.random.default_rng(seed)
    return ArrayDataset({spec.name: _random(spec, count, rng) for spec in request})


def _sample(request: tuple[int, ...]) -> tuple[int, ...]:
    """Return a sample's shape: a request's shape without its batch axis, where it has one."""
    return request[1:] if request[:1] == (1,) else request


def _random(spec: TensorSpec, count: int, rng: np.random.Generator) -> Array:
    sample = _sample(spec.sizes)
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal((count, *sample), np.float32).astype(spec.dtype, copy=False)
    return rng.integers(0, 2, (count, *sample), np.int8).astype(spec.dtype)
