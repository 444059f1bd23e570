"""Which samples of a data set may share a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hasten.core.tensors import TensorSpec
from hasten.engines.padding import Padder, kind_of
from hasten.inputs.data.dataset import Dataset

_LOOKED_AT = 32


def has_steady_shapes(samples: Dataset) -> bool:
    """Whether samples have the same shapes at each read; those that a user's code makes anew may not.

    Raises:
        InputError: a sample can't be read.
    """
    few = range(min(len(samples), _LOOKED_AT))
    return all(samples.shapes(place) == samples.shapes(place) for place in few)


def kinds_of(
    padder: Padder | None, samples: Dataset, places: Iterable[int], request: Sequence[TensorSpec]
) -> list[int]:
    """Return the kind of each sample, as a number: samples of one kind have one bucket, or one shape.

    Args:
        padder: Padding of requests up to buckets; None for no padding.
        samples: Data set of the samples.
        places: Their positions.
        request: Inputs of a request with one sample.

    Raises:
        CandidateError: an input is missing, or lacks an axis.
        InputError: a sample can't be read.
    """
    seen: dict[object, int] = {}
    found = []
    for place in places:
        own = samples.shapes(place)
        shapes = {
            spec.name: (1, *own[spec.name])
            if len(spec.shape) > len(own[spec.name])
            else own[spec.name]
            for spec in request
        }
        found.append(seen.setdefault(kind_of(padder, shapes), len(seen)))
    return found
