"""scikit-learn's transformers that change how a column is distributed, as ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.building import Building, Part
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.trees import interpolated

_TINY = float(np.spacing(1.0))
"""Distance below which scikit-learn takes a power for the one that is a logarithm."""


def power(building: Building, step: Any, part: Part) -> Part:
    """Add a PowerTransformer of Yeo and Johnson, without its scaling.

    Source: Yeo and Johnson, "A new family of power transformations to improve normality or symmetry",
    Biometrika 87 (2000), eq. 2.1.
    """
    if step.method != "yeo-johnson":
        raise InputError(
            f"PowerTransformer with method={step.method!r} isn't supported: give it 'yeo-johnson'"
        )
    building.smooth = False  # small deviations may be divided by next
    powers = np.asarray(step.lambdas_, np.float64)
    gone = building.graph.add("IsNaN", part.name)
    rows = building.graph.add("Where", gone, building.array(0), part.name)
    above = building.graph.add("GreaterOrEqual", rows, building.array(0))
    size = building.graph.add("Abs", rows)
    upper = _powered(building, size, powers)
    lower = building.graph.add("Mul", _powered(building, size, 2 - powers), building.array(-1))
    name = building.graph.add("Where", above, upper, lower)
    return building.computed(part, building.graph.add("Where", gone, part.name, name))


def _powered(building: Building, size: str, powers: Array) -> str:
    """Return `((1 + size)**power - 1) / power`, or the logarithm of `1 + size` where the power is 0."""
    graph, level = building.graph, np.abs(powers) < _TINY
    logs = graph.add("Log", graph.add("Add", size, building.array(1)))
    if level.all():
        return logs
    divisors = building.array(np.where(level, 1, powers))[None]
    raised = graph.add("Exp", graph.add("Mul", logs, divisors))
    found = graph.add("Div", graph.add("Sub", raised, building.array(1)), divisors)
    return graph.add("Where", level[None], logs, found) if level.any() else found


def quantiles(building: Building, step: Any, part: Part) -> Part:
    """Add a QuantileTransformer to a uniform distribution."""
    if step.output_distribution != "uniform":
        raise InputError(
            f"QuantileTransformer with output_distribution={step.output_distribution!r} isn't supported: "
            "give it 'uniform'"
        )
    building.smooth = False
    graph = building.graph
    made = []
    for place in range(part.size):
        column = building.take(part, [place])
        wide = graph.cast(column.name, "float64", building.dtype)
        name = _ranked(graph, wide, step.quantiles_[:, place], step.references_)
        if column.columns[0].missing:
            name = graph.add("Where", graph.add("IsNaN", wide), wide, name)
        name = graph.cast(name, building.dtype, "float64")
        made.append(building.computed(column, name))
    return building.join(made)


def _ranked(graph: Graph, value: str, knots: Array, ranks: Array) -> str:
    """Return the rank of values, as `_transform_col` of sklearn/preprocessing/_data.py computes it.

    It is the mean of the ranks from below and from above, which differ where knots are equal.
    """
    below = interpolated(graph, value, knots, ranks)
    turned = graph.add("Mul", value, np.float64(-1))
    above = interpolated(graph, turned, -knots[::-1], -ranks[::-1])
    rank = graph.add("Mul", graph.add("Sub", below, above), np.float64(0.5))
    rank = graph.add("Where", graph.add("Equal", value, knots[-1]), np.float64(1), rank)
    return graph.add("Where", graph.add("Equal", value, knots[0]), np.float64(0), rank)
