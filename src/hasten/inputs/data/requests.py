"""Requests to time a model with: the first samples of some data, or random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.source import open_data
from hasten.inputs.pipeline.base import Pipeline

_SAMPLES = 64
_RANDOM_BYTES = 256 << 20
"""Of random requests, all together."""


def first_requests(
    data: Any,
    inputs: Sequence[TensorSpec],
    request: Sequence[TensorSpec],
    pipeline: Pipeline | None,
    seed: int,
) -> Dataset:
    """Return the first samples of the data, or random numbers where there is none.

    Args:
        data: As `open_data` takes it, or None.
        inputs: What the model takes.
        request: The inputs of one request, every size settled.
        pipeline: From an image file to the model's input.
        seed: Of the random numbers.

    Raises:
        InputError: the data can't be used, or even one random request is too large.
    """
    if data is not None:
        return first_samples(open_data(data, inputs, pipeline))
    return random_requests(request, seed)


def first_samples(dataset: Dataset) -> Dataset:
    """Return as many samples as are timed."""
    return Subset(dataset, np.arange(min(len(dataset), _SAMPLES)))


def random_requests(request: Sequence[TensorSpec], seed: int) -> Dataset:
    """Make up requests, as many as are timed or as few as memory should hold.

    Args:
        request: The inputs of one, every size settled. A bundle's word for it: any size may come.
        seed: Of the numbers.

    Raises:
        InputError: even one is too large.
    """
    each_bytes = sum(math.prod(spec.sizes) * np.dtype(spec.dtype).itemsize for spec in request)
    if each_bytes > _RANDOM_BYTES:
        raise InputError(
            f"a request of this model takes {each_bytes / 2**20:,.4g} MiB, and no random one larger "
            f"than {_RANDOM_BYTES >> 20} MiB is made: give real ones with --data"
        )
    count = min(_SAMPLES, _RANDOM_BYTES // max(1, each_bytes))
    rng = np.random.default_rng(seed)
    return ArrayDataset({spec.name: _random(spec, count, rng) for spec in request})


def _random(spec: TensorSpec, count: int, rng: np.random.Generator) -> Any:
    """Random samples, each without the batch axis that a request has."""
    sample = spec.sizes[1:] if spec.sizes[:1] == (1,) else spec.sizes
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal((count, *sample), np.float32).astype(spec.dtype, copy=False)
    return rng.integers(0, 2, (count, *sample), np.int8).astype(spec.dtype)
