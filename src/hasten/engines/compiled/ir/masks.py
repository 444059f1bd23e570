"""OpenVINO's comparisons, choices and normalizations, of which masks and encoders are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hasten.engines.compiled.ir.constants import refuse
from hasten.engines.compiled.ir.drawing import Drawing
from hasten.engines.compiled.ir.operators import Draw, attributes, integers, shape_of, simply


def _not_equal(drawing: Drawing, operation: Any) -> None:
    given = [drawing.input(operation, at) for at in range(2)]
    equal = drawing.node("Equal", operation, given)
    drawing.give(operation, drawing.node("Not", operation, equal))


def _broadcast(drawing: Drawing, operation: Any) -> None:
    if attributes(operation).get("mode", "numpy") not in ("numpy", "bidirectional"):
        raise refuse(operation, "it has axes of its own")
    sizes = drawing.constant(np.array(shape_of(operation.output(0)), np.int64))
    given = drawing.input(operation, 0)
    drawing.give(operation, drawing.node("Expand", operation, [given, sizes]))


def _normalized(drawing: Drawing, operation: Any) -> None:
    """Draw a mean-variance normalization of the last axis as ONNX's of a layer."""
    settings, sizes = attributes(operation), shape_of(operation.input(0))
    axes = [axis % len(sizes) for axis in integers(operation, 1, "axes")]
    if axes != [len(sizes) - 1]:
        raise refuse(operation, "its axes aren't the last")
    if not settings["normalize_variance"] or settings["eps_mode"].lower() != "inside_sqrt":
        raise refuse(operation, "it isn't a layer normalization")
    ones = drawing.constant(np.ones(sizes[-1], np.float32))
    inputs = [drawing.input(operation, 0), ones]
    made = drawing.node("LayerNormalization", operation, inputs, axis=-1, epsilon=settings["eps"])
    drawing.give(operation, made)


MASKS: Mapping[str, Draw] = {
    "Broadcast": _broadcast,
    "Cos": simply("Cos"),
    "Equal": simply("Equal"),
    "Greater": simply("Greater"),
    "GreaterEqual": simply("GreaterOrEqual"),
    "Less": simply("Less"),
    "LessEqual": simply("LessOrEqual"),
    "LogicalAnd": simply("And"),
    "LogicalNot": simply("Not"),
    "LogicalOr": simply("Or"),
    "LogicalXor": simply("Xor"),
    "MVN": _normalized,
    "NotEqual": _not_equal,
    "Select": simply("Where"),
    "Sign": simply("Sign"),
    "Sin": simply("Sin"),
}
"""Function that draws each operation, by its name."""
