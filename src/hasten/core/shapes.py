"""The sizes that open dimensions have in a data set: what was measured and certified, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hasten.core.tensors import Tensors, TensorSpec
from hasten.errors import InputError

Sizes = Mapping[str, tuple[int, ...]]
"""Shapes of one sample's inputs, without an axis for samples, by input name."""

Pads = tuple[tuple[str, float], ...]
"""Values to pad inputs with, by input name."""


@dataclass(frozen=True)
class Extent:
    """Sizes of one dimension of an input over a data set in which they differ.

    Attributes:
        input: Name of the input.
        axis: Axis of the dimension in a request.
        name: Name of the open dimension in the model; "?" where it has none.
        least: Smallest size.
        median: Size of the median sample.
        ninth: Size that nine of ten samples don't exceed.
        most: Largest size.
    """

    input: str
    axis: int
    name: str
    least: int
    median: int
    ninth: int
    most: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The smallest size, the median, the size of nine in ten, and the largest."""
        return self.least, self.median, self.ninth, self.most

    def covers(self, size: int) -> bool:
        """Whether a size lies between the smallest and the largest."""
        return self.least <= size <= self.most


def extents(inputs: Sequence[TensorSpec], shapes: Sequence[Sizes]) -> tuple[Extent, ...]:
    """Check that samples fit a model's inputs, and return the dimensions in which they differ.

    Args:
        inputs: Inputs of the model; open dimensions have names.
        shapes: Shapes of every sample's inputs.

    Raises:
        InputError: a sample has another size where the model's is fixed, or two inputs differ where the
            model has one dimension; the message says which sample.
    """
    found: list[Extent] = []
    seen: dict[str, tuple[str, npt.NDArray[np.int64]]] = {}
    for spec in inputs:
        sizes = np.array([each[spec.name] for each in shapes], np.int64)
        batched = len(spec.shape) == sizes.shape[1] + 1
        if not batched and len(spec.shape) != sizes.shape[1]:
            continue  # that no sample has the model's axes is said where one is made a request
        own = spec.shape[1:] if batched else spec.shape
        for place, wanted in enumerate(own):
            column = sizes[:, place]
            axis = place + batched
            if isinstance(wanted, int):
                _check_fixed(spec, axis, wanted, column, sizes)
                continue
            if wanted != "?":
                other, known = seen.setdefault(wanted, (spec.name, column))
                _check_alike(spec, wanted, column, other, known)
            if (column != column[0]).any():
                found.append(_extent(spec.name, axis, wanted, column))
    return tuple(found)


class SharedSize(NamedTuple):
    """A dimension that must have one size in two inputs.

    Attributes:
        name: Name of the open dimension.
        input: Name of the later input.
        axis: Axis of the dimension there.
        other: Name of the first input that has the dimension.
        first: Axis of the dimension in that input.
    """

    name: str
    input: str
    axis: int
    other: str
    first: int


def shared_sizes(
    inputs: Sequence[TensorSpec], request: Sequence[TensorSpec]
) -> tuple[SharedSize, ...]:
    """Return the dimensions that have one size in two places, by the model's names for open dimensions.

    A name to which the certified request gives two sizes says nothing.

    Args:
        inputs: Inputs of the model.
        request: Inputs of one request as certified, with every size settled.
    """
    own = {spec.name: spec.shape for spec in request}
    seen: dict[str, tuple[str, int]] = {}
    found, loose = [], {"?"}
    for spec in inputs:
        for axis, name in enumerate(spec.shape):
            if not isinstance(name, str):
                continue
            other, first = seen.setdefault(name, (spec.name, axis))
            if (other, first) != (spec.name, axis):
                found.append(SharedSize(name, spec.name, axis, other, first))
                if own[spec.name][axis] != own[other][first]:
                    loose.add(name)
    return tuple(one for one in found if one.name not in loose)


def check_alike(inputs: Tensors, shared: Sequence[SharedSize]) -> None:
    """Check that a request has one size wherever the model has one open dimension.

    Args:
        inputs: Arrays by input name, which have the axes of the model's inputs.
        shared: Dimensions that must have one size.

    Raises:
        InputError: two inputs differ; the message says which.
    """
    for one in shared:
        size, known = inputs[one.input].shape[one.axis], inputs[one.other].shape[one.first]
        if size != known:
            raise InputError(
                f"input {one.input!r}: {one.name!r} is {size} here, and {known} in {one.other!r}: give them "
                "the same length"
            )


def _extent(name: str, axis: int, wanted: str, sizes: npt.NDArray[np.int64]) -> Extent:
    at = np.sort(sizes)
    median, ninth = (int(at[int(np.ceil(q * len(at))) - 1]) for q in (0.5, 0.9))
    return Extent(name, axis, wanted, int(at[0]), median, ninth, int(at[-1]))


def _check_fixed(
    spec: TensorSpec,
    axis: int,
    wanted: int,
    sizes: npt.NDArray[np.int64],
    shapes: npt.NDArray[np.int64],
) -> None:
    wrong = np.flatnonzero(sizes != wanted)
    if len(wrong):
        sample = int(wrong[0])
        raise InputError(
            f"input {spec.name!r}: sample {sample} is {shapes[sample].tolist()}, and the model takes "
            f"{spec}, with dimension {axis} fixed at {wanted}: pad, crop or resize all samples to that, or "
            "export the model with that dimension open"
        )


def _check_alike(
    spec: TensorSpec,
    wanted: str,
    sizes: npt.NDArray[np.int64],
    other: str,
    known: npt.NDArray[np.int64],
) -> None:
    wrong = np.flatnonzero(sizes != known)
    if len(wrong):
        sample = int(wrong[0])
        raise InputError(
            f"input {spec.name!r}: sample {sample} has {sizes[sample]} where {other!r} has {known[sample]}, "
            f"and the model takes one size, {wanted!r}, for both: give them the same length"
        )


def in_words(found: Iterable[Extent]) -> str:
    """Say in one line which sizes samples have; "" where all have one shape."""
    alike: dict[tuple[str, tuple[int, int, int, int]], list[str]] = {}
    for one in found:
        alike.setdefault((str(one.axis), one.sizes), []).append(one.input)
    return "; ".join(
        f"dimension {axis} of {' and '.join(names)} from {least:,} to {most:,} (median {median:,}, nine in "
        f"ten up to {ninth:,})"
        for (axis, (least, median, ninth, most)), names in alike.items()
    )


def typical(shapes: Sequence[Sizes]) -> int:
    """Return the position of the sample of median size."""
    return int(_by_size(shapes)[(len(shapes) - 1) // 2])


def representative(shapes: Sequence[Sizes], count: int) -> list[int]:
    """Return positions of samples from the smallest to the largest, spread evenly by their rank."""
    order = _by_size(shapes)
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    return [int(order[place]) for place in places]


def _by_size(shapes: Sequence[Sizes]) -> npt.NDArray[np.int64]:
    sizes = [sum(int(np.prod(shape, dtype=np.int64)) for shape in each.values()) for each in shapes]
    return np.argsort(np.array(sizes), kind="stable").astype(np.int64)


def pads_of(given: Mapping[str, float] | str | Iterable[str] | Pads) -> Pads:
    """Read values to pad with as a person gives them.

    Args:
        given: A mapping of input to value, pairs, or texts such as "mask=0,ids=1".

    Raises:
        InputError: a text isn't of this form, or a value isn't a number.
    """
    found: list[tuple[str, float]] = []
    pairs = given.items() if isinstance(given, Mapping) else None
    for item in pairs if pairs is not None else [given] if isinstance(given, str) else given:
        texts = item.split(",") if isinstance(item, str) else [item]
        for text in texts:
            try:
                one, value = text.split("=", 1) if isinstance(text, str) else text
                found.append((str(one).strip(), float(value)))
            except (TypeError, ValueError) as error:
                raise InputError(
                    'a value to pad with is an input and a number, such as pad="mask=0,ids=1": got '
                    f"{text!r}"
                ) from error
    return tuple(found)
