"""Sizes of model files once they are packed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import numpy_helper

from hasten.bundle.packing.blocks import Coder, all_codecs
from hasten.bundle.packing.codecs.zstandard import compressed
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.passes.onnx_files import read_onnx

_LEAST_BYTES = 64
"""Size of a tensor from which on it is coded by itself; smaller ones stay with the graph."""
_SMALL_BYTES = 2048
"""Size below which tensors of one type are packed together."""
_STATED_BYTES = 64
"""Bytes that a packed bundle states about each tensor: its name, shape, place, checksum."""


@dataclass(frozen=True)
class Packed:
    """Size of a model file once it is packed, and why.

    Attributes:
        packed_bytes: Size of the packed tensors and of the packed graph.
        weights_bytes: Size of the tensors as they are.
        left: Share of the elements of the tensors that aren't 0.
        values: Largest number of distinct values in a tensor with as many elements as weights have.
    """

    packed_bytes: int
    weights_bytes: int
    left: float
    values: int


def packed(model: Model, least_elements: int) -> Packed:
    """Return how small a model file gets.

    Args:
        model: Model file in ONNX.
        least_elements: Elements of a tensor of two axes or more from which on its values are counted.
    """
    proto = read_onnx(model)
    tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    large = [a for a in tensors.values() if a.nbytes >= _LEAST_BYTES]
    for tensor in proto.graph.initializer:
        if tensors[tensor.name].nbytes >= _LEAST_BYTES:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    rest = len(compressed(proto.SerializeToString()))
    counted = [a for a in large if a.ndim > 1 and a.size >= least_elements]
    return Packed(
        packed_bytes=rest + packed_bytes(large),
        weights_bytes=sum(array.nbytes for array in tensors.values()),
        left=sum(int(np.count_nonzero(a)) for a in large) / max(1, sum(a.size for a in large)),
        values=max((len(np.unique(a)) for a in counted), default=0),
    )


def packed_bytes(tensors: Iterable[Array]) -> int:
    """Return the size in bytes that tensors come to once they are packed.

    Small tensors of one type are coded together, as in a packed bundle.
    """
    coder = Coder(all_codecs())
    alone: list[Array] = []
    small: dict[np.dtype[Any], list[Array]] = {}
    for array in tensors:
        flat = np.ascontiguousarray(array).reshape(-1)
        (alone if array.nbytes >= _SMALL_BYTES else small.setdefault(array.dtype, [])).append(flat)
    alone += [np.concatenate(group) for group in small.values()]
    return sum(
        _STATED_BYTES + len(coder.code(array.view(np.uint8), array.dtype.itemsize))
        for array in alone
    )
