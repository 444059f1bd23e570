"""Arrays that a call is bound to: found by position, by name or in mappings, and checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.bundle.batch_mates import share_batch_axis
from hasten.core.tensors import Array, TensorSpec, check_tensors
from hasten.errors import InputError


def bound_arrays(
    arrays: Sequence[Any],
    named: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    batch_sizes: tuple[int, ...] | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the arrays to read from and those to write to, by name.

    Args:
        arrays: The inputs in the model's order, then the outputs; or a mapping of inputs and one of
            outputs.
        named: Inputs and outputs by name, instead of or in addition to `arrays`.
        inputs: The model's inputs.
        outputs: The model's outputs.
        batch_sizes: Batch sizes that the model takes; None for any.

    Raises:
        InputError: an array is missing, doesn't fit, can't be written to or overlaps another.
    """
    given, taken = _apart(arrays, named, inputs, outputs)
    for kind, tensors in (("input", given), ("output", taken)):
        for name, array in tensors.items():
            if not isinstance(array, np.ndarray):
                raise InputError(
                    f"{kind} {name!r} must be a numpy array to be bound: got {type(array).__name__}"
                )
            if not (array.flags.c_contiguous and array.flags.aligned):
                raise InputError(
                    f"{kind} {name!r} isn't contiguous and aligned: give an array that numpy "
                    "made, or bind np.ascontiguousarray of it and fill that copy"
                )
    check_tensors(given, inputs)
    sizes = _open_sizes(given, inputs)
    rows = next((len(array) for array in given.values() if array.ndim), 1)
    if batch_sizes is not None and rows not in batch_sizes:
        raise InputError(
            f"the model takes batches of {', '.join(map(str, batch_sizes))}; got {rows} rows"
        )
    _check_outputs(taken, outputs, sizes, rows if share_batch_axis(inputs, outputs) else None)
    _check_apart(given, taken)
    return given, taken


def _apart(
    arrays: Sequence[Any],
    named: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell inputs from outputs."""
    if any(isinstance(each, Mapping) for each in arrays):
        if len(arrays) != 2 or named or not all(isinstance(each, Mapping) for each in arrays):
            raise InputError(
                "bind takes arrays, or one mapping of inputs and one of outputs: got a mixture "
                "of the two"
            )
        return dict(arrays[0]), dict(arrays[1])
    names = [spec.name for spec in (*inputs, *outputs)]
    if len(arrays) > len(names):
        raise InputError(f"bind takes {len(names)} arrays, {', '.join(names)}; got {len(arrays)}")
    by_place = dict(zip(names, arrays, strict=False))
    if twice := by_place.keys() & named.keys():
        raise InputError(f"{min(twice)!r} is given twice, by position and by name")
    given = {**by_place, **named}
    if given.keys() != set(names) or len(set(names)) < len(names):
        raise InputError(
            f"bind takes an array for each input and each output, {', '.join(names)}; got "
            f"{', '.join(given) or 'none'}"
        )
    count = len(inputs)
    return {n: given[n] for n in names[:count]}, {n: given[n] for n in names[count:]}


def _open_sizes(given: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """Return the sizes of the open dimensions, by their names."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        for name, size in zip(spec.shape, given[spec.name].shape, strict=True):
            if isinstance(name, str) and name != "?" and sizes.setdefault(name, size) != size:
                raise InputError(
                    f"input {spec.name!r}: {name} is {size} here, and {sizes[name]} in another input"
                )
    return sizes


def _check_outputs(
    taken: Mapping[str, Array],
    outputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    rows: int | None,
) -> None:
    """Check the arrays to write to.

    Args:
        taken: The arrays by name.
        outputs: The model's outputs.
        sizes: Sizes of the open dimensions, by their names.
        rows: Size of a first axis whose name doesn't say it, as where the file gives none; None where the model has
            no axis of rows.

    Raises:
        InputError: one is missing, doesn't fit, or can't be written to.
    """
    names = ", ".join(spec.name for spec in outputs)
    if taken.keys() != {spec.name for spec in outputs}:
        raise InputError(
            f"the model's outputs are {names}; got {', '.join(taken) or 'none'} to write to"
        )
    for spec in outputs:
        array = taken[spec.name]
        shape = tuple(
            sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape
        )
        if rows is not None and shape and isinstance(shape[0], str):
            shape = (rows, *shape[1:])
        settled = TensorSpec(spec.name, spec.dtype, shape)
        if not settled.static:
            raise InputError(
                f"the model's output {spec} has a size that doesn't follow from the inputs, so "
                "it can't be bound"
            )
        if not settled.fits(array):
            got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
            raise InputError(f"output {spec.name!r}: the model's output is {settled}; got {got}")
        if not array.flags.writeable:
            raise InputError(
                f"output {spec.name!r} can't be written to: give a writable array, such as one "
                "of np.zeros"
            )


def _check_apart(given: Mapping[str, Array], taken: Mapping[str, Array]) -> None:
    """Check that no output lies where an input or another output does; all are contiguous."""
    written = list(taken.items())
    for place, (name, array) in enumerate(written):
        for other, second in (*given.items(), *written[place + 1 :]):
            if np.may_share_memory(array, second):
                raise InputError(
                    f"output {name!r} overlaps {other!r} in memory: give each an array of its own"
                )
