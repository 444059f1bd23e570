"""Inputs made up for a model without data: valid by type, shape and the tables they look up in."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError

PICTURE, SEQUENCE = 224, 64
"""Sizes taken for open axes: of a picture's height and width, and of anything else."""
_CHANNELS = (1, 3, 4)
LARGEST_BYTES = 256 << 20
"""Bytes of a made-up sample, at most."""
_ONES = ("mask", "length", "lens")
"""Parts of the names of integer inputs for which 1 is safer than 0."""
_ENDS = ("mask", "masks", "length", "lengths", "lens")
"""Ends of the names of float inputs that are 1 where nothing is masked; not of "masked_image"."""


@dataclass(frozen=True)
class MadeUpInputs:
    """Rule by which inputs are made up.

    Attributes:
        sizes: Name of an open axis, as `axes_of` names it -> size.
        integers: "mixed" for 0 and 1, or numbers below a table's rows; "ones" for 1 alone.
    """

    sizes: Mapping[str, int]
    integers: str = "mixed"


def plans(specs: Sequence[TensorSpec], deciding: Container[str] = ()) -> list[MadeUpInputs]:
    """Return ways to make up inputs, likeliest first; a model may be able to run only some.

    Args:
        specs: Specs of the model's inputs.
        deciding: Names of inputs by whose values the model chooses a branch.

    Raises:
        InputError: an input is a single number, which can't be made up.
    """
    for spec in specs:
        chooses = spec.name in deciding and spec.shape == (1,) and not _is_size(spec)
        if not spec.shape or (chooses and any(len(other.shape) > 1 for other in specs)):
            raise InputError(
                f"input {spec.name!r} is a single number, and a made-up number may take a branch "
                "that no real request takes: give data= that contains it"
            )
    axes = {name for spec in specs for name in axes_of(spec)}
    if not axes:
        return [MadeUpInputs({}), MadeUpInputs({}, "ones")]
    likely = {
        name: PICTURE if picture else SEQUENCE
        for spec in specs
        for name, picture in axes_of(spec).items()
    }
    ways = [likely, *(dict.fromkeys(axes, size) for size in (SEQUENCE, 32, 128, 16, 1))]
    distinct = [way for number, way in enumerate(ways) if way not in ways[:number]]
    return [MadeUpInputs(way, kind) for way in distinct for kind in ("mixed", "ones")]


def _is_size(spec: TensorSpec) -> bool:
    """Whether an input is a mask or a length by its name, for which 1 is safe."""
    return any(part in spec.name.lower() for part in _ONES)


def axes_of(spec: TensorSpec) -> dict[str, bool]:
    """Return the open axes of a sample by name, and whether each is a picture's height or width.

    The first axis is the batch, and a sample has none; axes without a name have one of their input.
    """
    picture = len(spec.shape) == 4 and np.dtype(spec.dtype).kind in "fu"
    spatial = (2, 3) if not picture or spec.shape[1] in _CHANNELS else (1, 2)
    return {
        _name(spec, axis): picture and axis in spatial
        for axis, size in enumerate(spec.shape)
        if axis and isinstance(size, str)
    }


def _name(spec: TensorSpec, axis: int) -> str:
    named = str(spec.shape[axis])
    return f"{spec.name}[{axis}]" if named in ("?", "...") else named


def make_up(
    specs: Sequence[TensorSpec], plan: MadeUpInputs, rows: Mapping[str, int], count: int, seed: int
) -> dict[str, Array]:
    """Return made-up samples by input name, each of shape `(n, ...)`, n at most `count`.

    Masks and lengths are 1, of any type. Numbers that are looked up are below the rows of their table. Other
    floats are normally distributed, and other integers 0 or 1.

    Args:
        specs: Specs of the model's inputs.
        plan: Sizes of open axes, and the kind of integers.
        rows: Input name -> rows of the table that its numbers look up, where that is known.
        count: Largest number of samples.
        seed: Seed of the random numbers.

    Raises:
        InputError: a single sample is too large.
    """
    shapes = {spec.name: _sample_shape(spec, plan) for spec in specs}
    each_bytes = sum(math.prod(shapes[spec.name]) * np.dtype(spec.dtype).itemsize for spec in specs)
    check_bytes(each_bytes)
    count = max(3, min(count, LARGEST_BYTES // max(1, each_bytes)))
    rng = np.random.default_rng(seed)
    return {
        spec.name: _values(spec, (count, *shapes[spec.name]), plan, rows.get(spec.name), rng)
        for spec in specs
    }


def check_bytes(size_bytes: int) -> None:
    """Check that a made-up sample isn't too large, before it takes memory.

    Raises:
        InputError: it is.
    """
    if size_bytes > LARGEST_BYTES:
        raise InputError(
            f"a made-up sample of this model would take {size_bytes / 2**20:,.4g} MiB: give data="
        )


def _sample_shape(spec: TensorSpec, plan: MadeUpInputs) -> tuple[int, ...]:
    """Return the shape of a sample: without the batch, unless the model takes one batch size alone."""
    sizes = tuple(
        plan.sizes[_name(spec, axis)] if isinstance(size, str) and axis else size
        for axis, size in enumerate(spec.shape)
    )
    whole = isinstance(sizes[0], int) and sizes[0] != 1
    return tuple(int(size) for size in (sizes if whole else sizes[1:]))


def _values(
    spec: TensorSpec,
    shape: tuple[int, ...],
    plan: MadeUpInputs,
    rows: int | None,
    rng: np.random.Generator,
) -> Array:
    dtype = np.dtype(spec.dtype)
    name = spec.name.lower()
    if dtype.kind not in "iub" and rows is None:
        if name.rstrip("_.:0123456789").endswith(_ENDS):
            return np.ones(shape, dtype)
        return rng.standard_normal(shape, np.float32).astype(dtype, copy=False)
    if dtype == np.uint8 and len(spec.shape) == 4:
        return rng.integers(0, 256, shape, np.uint8)
    if plan.integers == "ones" or any(part in name for part in _ONES):
        return np.ones(shape, dtype)
    below = rows if rows is not None and dtype.kind != "b" else 2
    return rng.integers(0, min(below, np.iinfo(np.int8).max + 1), shape).astype(dtype)
