"""Sizes that answers will have, from the shapes of their requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Tensors, TensorSpec
from hasten.serving.protocol.requests import RAW, Query

if TYPE_CHECKING:
    from hasten.serving.models.served import ServedModel


def foreseen_bytes(model: ServedModel, query: Query) -> int | None:
    """Return the size, in bytes, of the outputs that a request will get; None if only the model can tell."""
    plan = query.plan
    if plan is not None and plan.answer_bytes is not None:
        return plan.answer_bytes  # type: ignore[no-any-return]
    outputs, ranked = model.outputs, False
    if query.outputs:
        sent = {each.name for each in query.outputs if each.region is None}
        outputs = tuple(spec for spec in outputs if spec.name in sent)
        ranked = any(each.classes for each in query.outputs)
    chosen = ranked or (RAW in query.inputs and model.takes_raw)
    size = None if chosen else size_of(model.inputs, outputs, query.inputs)
    if plan is not None:
        plan.answer_bytes = size
    return size


def batch_bytes(model: ServedModel, query: Query, size: int) -> int:
    """Return the size of the answers to a whole batch of such requests.

    Args:
        model: Model of the request.
        query: The request.
        size: Size of its answer, in bytes.
    """
    rows = max(1, len(next(iter(query.inputs.values()), ()))) if model.most_rows else 1
    return size * max(model.most_rows, rows) // rows


def size_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], tensors: Tensors
) -> int | None:
    """Return the size of all outputs of a model for the inputs of a request; None if their shapes don't tell it."""
    named: dict[int | str, int] = {}
    size = 0
    for output in outputs:
        if output.dtype == "object":
            return None
        if not named and not output.static:
            named = _sizes(inputs, tensors)
        dims = [dim if isinstance(dim, int) else named.get(dim, -1) for dim in output.shape]
        if -1 in dims:
            return None
        size += math.prod(dims) * np.dtype(output.dtype).itemsize
    return size


def are_told(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether the shapes of a request's inputs tell the sizes of all outputs of a model; see `size_of`."""
    named = {dim for spec in inputs for dim in spec.shape if dim != "?"}
    dims = {dim for spec in outputs for dim in spec.shape if not isinstance(dim, int)}
    return dims <= named and all(spec.dtype != "object" for spec in outputs)


def least_bytes(model: ServedModel) -> int | None:
    """Return the size of all outputs of a model for the smallest request, in bytes; None if shapes don't tell it."""
    if not are_told(model.inputs, model.outputs):
        return None
    return sum(
        math.prod(dim for dim in spec.shape if isinstance(dim, int)) * np.dtype(spec.dtype).itemsize
        for spec in model.outputs
    )


def _sizes(inputs: Sequence[TensorSpec], tensors: Tensors) -> dict[int | str, int]:
    """Return the sizes of a model's open dimensions in a request, by their names."""
    found: dict[int | str, int] = {}
    for spec in inputs:
        if (array := tensors.get(spec.name)) is not None:
            found.update(zip(spec.shape, array.shape, strict=False))
    found.pop("?", None)
    return found
