"""A run on samples that differ in shape: what is checked, compared and kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.devices import FAMILIES
from hasten.core.model import Model
from hasten.core.shapes import Extent, Pads, Sizes, extents, in_words, representative, typical
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset, ShapesOf
from hasten.measure.worker import request_of

if TYPE_CHECKING:
    from hasten.optimization.job import Job


_TIME = re.compile(r"t|times?|(seq|sequence)(_len|_length)?|steps|frames", re.IGNORECASE)
_BATCH = re.compile(r"n|b|bs|batch|batch_size", re.IGNORECASE)
"""Names of axes that say that they are time or the batch."""
_UNNAMED = ("?", "...")
"""Entries of a shape for an axis without a name."""


def typical_sample(samples: Dataset) -> dict[str, Array]:
    """Return the sample of median size, or the first where all have one shape."""
    index = typical(sizes_of(samples)) if samples.ragged else 0
    return {name: array[0] for name, array in samples.inputs([index]).items()}


def sizes_of(samples: Dataset) -> Sequence[Sizes]:
    """Return the shapes of every sample's inputs."""
    return ShapesOf(samples)


def extents_of(model: Model, dataset: Dataset) -> tuple[Extent, ...]:
    """Check every sample's shape against the model, and return the dimensions in which they differ.

    Raises:
        InputError: a sample doesn't fit the model.
    """
    named = {spec.name for spec in model.inputs} == set(dataset.names)
    return extents(model.inputs, sizes_of(dataset)) if dataset.ragged and named else ()


def compare_means(job: Job, found: tuple[Extent, ...]) -> None:
    """Compare means where medians were asked for, since requests differ in cost, and say so.

    The shapes become a part of the population that the certificate is about.
    """
    order = job.order
    said = "samples differ in shape, so requests of all their shapes are timed"
    if order.objective == "p50":
        order = replace(order, objective="mean")
        said += ", and their mean is compared"
    job.order = replace(order, population=f"{order.population}, {in_words(found)}")
    job.notes.append(said)


def time_first(model: Model, samples: Dataset) -> str:
    """Return a note on inputs whose first axis is taken as the batch, although it may be time; "" without any.

    It may be time where an output begins with another axis of the input, or where the axes' names say so.

    Args:
        model: The model, whose inputs have the names of their open axes.
        samples: Samples for it.
    """
    batches = {spec.shape[0] for spec in model.outputs if spec.shape}
    given = {name: array.ndim for name, array in typical_sample(samples).items()}
    found = []
    for spec in model.inputs:
        first, *others = spec.shape or ("",)
        if not isinstance(first, str) or given.get(spec.name) != len(others):
            continue
        named_time = _TIME.fullmatch(first)
        wanted = [
            axis
            for axis, name in enumerate(others, 1)
            if isinstance(name, str)
            and name not in (first, *_UNNAMED)
            and (
                (name in batches and first not in batches)
                or (named_time and _BATCH.fullmatch(name))
            )
        ]
        if wanted:
            sizes = [first, *others]
            sizes[wanted[0]] = 1
            shown = ", ".join(map(str, sizes))
            found.append(
                f"axis 0 of {spec} is taken as the batch: if it is time, give samples [{shown}]"
            )
    return "; ".join(found)


def check_takes_open(target: Target, found: tuple[Extent, ...]) -> None:
    """Check that a device takes requests of several shapes.

    Raises:
        InputError: samples differ in shape, and models for the device have one, as have all that are
            compiled for a device elsewhere.
    """
    family = FAMILIES.get(target.family)
    one = target.kind == "compile-only" or (family is not None and family.one_shape)
    if found and one:
        raise InputError(
            f"samples differ in shape ({in_words(found)}), and a model for {target.device} has one shape: pad, "
            "crop or resize them to one"
        )


def kept_places(samples: Dataset, count: int) -> list[int]:
    """Return positions of samples to keep: the typical one first, then the smallest up to the largest."""
    sizes = sizes_of(samples)
    spread = representative(sizes, max(0, count - 1))
    return list(dict.fromkeys([typical(sizes), *spread]))[:count]


def check_asking(model: Model, found: tuple[Extent, ...]) -> None:
    """Check that answers of a run that asks for labels can be kept side by side.

    Raises:
        InputError: samples differ in shape, and so do answers.
    """
    for spec in model.outputs if found else ():
        if any(isinstance(size, str) for size in spec.shape[1:]):
            raise InputError(
                "ask_labels= needs answers of one shape, but the samples differ in shape, and "
                f"so do the answers {spec}: give labels with the data"
            )


def check_pads(pads: Pads, model: Model) -> None:
    """Check that values to pad with are for inputs of the model.

    Raises:
        InputError: the model has no such input.
    """
    names = [spec.name for spec in model.inputs]
    for name, _ in pads:
        if name not in names:
            raise InputError(
                f"pad= names the input {name!r}, but the model's inputs are {', '.join(names)}"
            )


def requests_from(
    samples: Dataset, count: int, request: Sequence[TensorSpec]
) -> list[dict[str, Array]]:
    """Return samples as requests to a model, for a bundle to keep.

    Args:
        samples: Samples of single requests that certify nothing.
        count: Largest number of requests to return; they are spread evenly, in case the data is
            ordered. Of samples that differ in shape, they are the typical one, the smallest, a
            large and the largest one.
        request: Inputs of one request, with every size settled.
    """
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)), dtype=np.int64)
    if samples.ragged:
        places = np.array(kept_places(samples, count), np.int64)
    return [request_of(samples.inputs([int(place)]), request) for place in places]
