"""scikit-learn's transformers that change how a column is distributed, as ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.building import Building, ColumnBlock
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.trees import interpolated

_TINY = float(np.spacing(1.0))
"""Distance below which scikit-learn takes a power for the one that is a logarithm."""
_BOUND = 1e-7
"""sklearn.preprocessing._data.BOUNDS_THRESHOLD: how near to the ends ranks of a normal distribution may come."""
_MIDDLE = (
    (
        *(-5.99633501014107895267e1, 9.80010754185999661536e1, -5.66762857469070293439e1),
        *(1.39312609387279679503e1, -1.23916583867381258016e0),
    ),
    (
        *(1.0, 1.95448858338141759834e0, 4.67627912898881538453e0, 8.63602421390890590575e1),
        *(-2.25462687854119370527e2, 2.00260212380060660359e2, -8.20372256168333339912e1),
        *(1.59056225126211695515e1, -1.18331621121330003142e0),
    ),
)
_TAIL = (
    (
        *(4.05544892305962419923e0, 3.15251094599893866154e1, 5.71628192246421288162e1),
        *(4.40805073893200834700e1, 1.46849561928858024014e1, 2.18663306850790267539e0),
        *(-1.40256079171354495875e-1, -3.50424626827848203418e-2, -8.57456785154685413611e-4),
    ),
    (
        *(1.0, 1.57799883256466749731e1, 4.53907635128879210584e1, 4.13172038254672030440e1),
        *(1.50425385692907503408e1, 2.50464946208309415979e0, -1.42182922854787788574e-1),
        *(-3.80806407691578277194e-2, -9.33259480895457427372e-4),
    ),
)
"""Polynomials above and below the line of the normal distribution's quantiles, highest powers first: those of
`ndtri` in S. L. Moshier's Cephes library, which scipy computes by."""


def log1p(graph: Graph, value: str) -> str:
    """Return `log(1 + x)` of float64, which keeps the digits of a small x.

    Source: W. Kahan's `log(u) * x / (u - 1)` with `u = 1 + x`, whose errors in u cancel.
    """
    one = np.float64(1)
    more = graph.add("Add", value, one)
    back = graph.add("Sub", more, one)
    whole = graph.add("Equal", back, value)  # also where both are infinite
    ratio = graph.add("Where", whole, one, graph.add("Div", value, back))
    found = graph.add("Mul", graph.add("Log", more), ratio)
    return graph.add("Where", graph.add("Equal", more, one), value, found)


def expm1(graph: Graph, value: str) -> str:
    """Return `exp(x) - 1` of float64, which keeps the digits of a small x.

    Source: W. Kahan's `(u - 1) * x / log(u)` with `u = exp(x)`, whose errors in u cancel.
    """
    raised = graph.add("Exp", value)
    less = graph.add("Sub", raised, np.float64(1))
    near = graph.add("Div", graph.add("Mul", less, value), graph.add("Log", raised))
    near = graph.add("Where", graph.add("Equal", less, np.float64(0)), value, near)
    small = graph.add("Less", graph.add("Abs", value), np.float64(0.5))
    return graph.add("Where", small, near, less)


def power(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
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
    return building.approximate(part, building.graph.add("Where", gone, part.name, name))


def _powered(building: Building, size: str, powers: Array) -> str:
    """Return `((1 + size)**power - 1) / power`, or the logarithm of `1 + size` where the power is 0."""
    graph, level = building.graph, np.abs(powers) < _TINY
    logs = log1p(graph, size)
    if level.all():
        return logs
    divisors = building.array(np.where(level, 1, powers))[None]
    found = graph.add("Div", expm1(graph, graph.add("Mul", logs, divisors)), divisors)
    return graph.add("Where", level[None], logs, found) if level.any() else found


def quantiles(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    """Add a QuantileTransformer."""
    building.smooth = False
    graph, normal = building.graph, step.output_distribution == "normal"
    made = []
    for place in range(part.size):
        column = building.take(part, [place])
        wide = graph.cast(column.name, "float64", building.dtype)
        margin = _BOUND if normal else 0.0
        name = _ranked(graph, wide, step.quantiles_[:, place], step.references_, margin)
        name = _normal(graph, name) if normal else name
        if column.columns[0].missing:
            name = graph.add("Where", graph.add("IsNaN", wide), wide, name)
        name = graph.cast(name, building.dtype, "float64")
        if normal:
            made.append(building.approximate(column, name, 1.0))
        else:
            made.append(building.computed(column, name))
    return building.join(made)


def _ranked(graph: Graph, value: str, knots: Array, ranks: Array, margin: float) -> str:
    """Return the rank of values, as `_transform_col` of sklearn/preprocessing/_data.py computes it.

    It is the mean of the ranks from below and from above, which differ where knots are equal.

    Args:
        graph: Graph to add to.
        value: Name of the values, float64 of shape `[batch, 1]`.
        knots: Quantiles of the column.
        ranks: Rank of each.
        margin: Distance from the first and the last quantile within which a value has rank 0 or 1.
    """
    below = interpolated(graph, value, knots, ranks)
    turned = graph.add("Mul", value, np.float64(-1))
    above = interpolated(graph, turned, -knots[::-1], -ranks[::-1])
    rank = graph.add("Mul", graph.add("Sub", below, above), np.float64(0.5))
    if margin:
        last = graph.add("Greater", graph.add("Add", value, np.float64(margin)), knots[-1])
        first = graph.add("Less", graph.add("Sub", value, np.float64(margin)), knots[0])
    else:
        last, first = graph.add("Equal", value, knots[-1]), graph.add("Equal", value, knots[0])
    rank = graph.add("Where", last, np.float64(1), rank)
    return graph.add("Where", first, np.float64(0), rank)


def _normal(graph: Graph, rank: str) -> str:
    """Return the normal distribution's quantile of ranks, cut as scikit-learn cuts it."""
    least = _BOUND - _TINY
    rank = graph.add("Clip", rank, np.float64(least), np.float64(1 - least))
    away = graph.add("Sub", rank, np.float64(0.5))
    square = graph.add("Mul", away, away)
    bent = graph.add("Mul", square, _ratio(graph, square, _MIDDLE))
    middle = graph.add("Add", away, graph.add("Mul", away, bent))
    middle = graph.add("Mul", middle, np.float64(np.sqrt(2 * np.pi)))
    upper = graph.add("Greater", away, np.float64(0))
    share = graph.add("Where", upper, graph.add("Sub", np.float64(1), rank), rank)
    root = graph.add("Sqrt", graph.add("Mul", graph.add("Log", share), np.float64(-2)))
    far = graph.add("Sub", root, graph.add("Div", graph.add("Log", root), root))
    inverse = graph.add("Div", np.float64(1), root)
    far = graph.add("Sub", far, graph.add("Mul", inverse, _ratio(graph, inverse, _TAIL)))
    signed = graph.add("Where", upper, far, graph.add("Mul", far, np.float64(-1)))
    central = graph.add("Greater", share, np.float64(np.exp(-2)))
    return graph.add("Where", central, middle, signed)


def _ratio(graph: Graph, value: str, polynomials: tuple[tuple[float, ...], ...]) -> str:
    """Return the ratio of two polynomials of a value."""
    found = []
    for first, *others in polynomials:
        total = graph.add("Mul", value, np.float64(first))
        for factor in others[:-1]:
            total = graph.add("Mul", graph.add("Add", total, np.float64(factor)), value)
        found.append(graph.add("Add", total, np.float64(others[-1])))
    return graph.add("Div", *found)
