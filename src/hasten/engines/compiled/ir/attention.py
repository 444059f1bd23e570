"""OpenVINO's scaled dot-product attention, in ONNX's products and softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hasten.engines.compiled.ir.constants import refuse
from hasten.engines.compiled.ir.drawing import Drawing
from hasten.engines.compiled.ir.operators import Draw, attributes, shape_of

_MASK, _SCALE = 3, 4


def _attention(drawing: Drawing, operation: Any) -> None:
    """Draw softmax(scale * query @ key^T + mask) @ value.

    The scale comes behind the product, so that a product of bytes stays one.
    """
    count = operation.get_input_size()
    if count > _SCALE + 1:
        raise refuse(operation, "it has a sink, a score beside those of the keys")
    query, key, value = (drawing.input(operation, at) for at in range(3))
    rank = len(shape_of(operation.input(1)))
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = drawing.node("Transpose", operation, [key], perm=order)[0]
    scores = drawing.node("MatMul", operation, [query, turned])[0]
    if count > _SCALE:
        scale = drawing.input(operation, _SCALE)
    else:
        scale = drawing.constant(np.float32(shape_of(operation.input(0))[-1] ** -0.5))
    scores = drawing.node("Mul", operation, [scores, scale])[0]
    mask = _mask(drawing, operation)
    if mask is not None:
        scores = drawing.node("Add", operation, [scores, mask])[0]
    shares = drawing.node("Softmax", operation, [scores], axis=-1)[0]
    drawing.give(operation, drawing.node("MatMul", operation, [shares, value]))


def _mask(drawing: Drawing, operation: Any) -> str | None:
    """Return the name of what is added to the scores; None for nothing."""
    least = np.float32(-np.inf)
    if attributes(operation)["causal"]:
        longest = (shape_of(operation.input(0))[-2], shape_of(operation.input(1))[-2])
        return drawing.constant(np.triu(np.full(longest, least), 1))
    if operation.get_input_size() <= _MASK:
        return None
    name = drawing.input(operation, _MASK)
    if operation.get_input_element_type(_MASK).get_type_name() != "boolean":
        return name
    choices = [drawing.constant(one) for one in (np.float32(0), least)]
    return drawing.node("Where", operation, [name, *choices])[0]


ATTENTION: Mapping[str, Draw] = {"ScaledDotProductAttention": _attention}
"""Function that draws attention, by its name."""
