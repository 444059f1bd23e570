"""scikit-learn's transformers as ONNX, each with the arithmetic of its own `transform`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hasten.errors import InputError
from hasten.inputs.models.tabular.base import CONVERT
from hasten.inputs.models.tabular.building import Building, Column, ColumnBlock, fill
from hasten.inputs.models.tabular.sklearn_distributions import log1p, power, quantiles
from hasten.inputs.models.tabular.sklearn_encoders import one_hot, ordinal, target

Transform = Callable[[Building, Any, ColumnBlock], ColumnBlock]
_APPROXIMATE = (np.exp, np.log, np.tanh)
"""Functions whose last bits differ from numpy's in a runtime."""
_FAR = 1000.0
"""Distance of a column's mean from 0, in its own units of scale, from which float32 loses digits."""


def transform(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    """Add a fitted transformer.

    Raises:
        InputError: the transformer isn't supported; the message names it.
    """
    kind = type(step).__name__
    if not type(step).__module__.startswith("sklearn.") or kind not in _STEPS:
        raise InputError(
            f"the transformer {kind} isn't supported: {CONVERT}; the supported ones are "
            f"{', '.join(sorted(_STEPS))}"
        )
    if getattr(step, "n_features_in_", part.size) != part.size:
        raise InputError(
            f"{kind} was fitted to {step.n_features_in_} columns, but gets {part.size}"
        )
    return _STEPS[kind](building, step, part)


def _pipeline(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    for _, inner in step.steps:
        if inner is not None and not isinstance(inner, str):
            part = transform(building, inner, part)
    return part


def _column_transformer(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    places = step._transformer_to_input_indices
    made = []
    for name, inner, _ in step.transformers_:
        taken = [int(place) for place in places[name]]
        if not taken or (isinstance(inner, str) and inner == "drop"):
            continue
        chosen = building.take(part, taken)
        made.append(chosen if isinstance(inner, str) else transform(building, inner, chosen))
    weights = step.transformer_weights
    if weights:
        raise InputError("ColumnTransformer's transformer_weights aren't supported")
    return building.join(made)


def _feature_union(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    made = []
    for name, inner in step.transformer_list:
        if isinstance(inner, str) and inner == "drop":
            continue
        one = part if isinstance(inner, str) else transform(building, inner, part)
        weight = (step.transformer_weights or {}).get(name, 1)
        if weight != 1:
            name_ = building.graph.add("Mul", one.name, building.array(weight))
            one = building.computed(one, name_)
        made.append(one)
    return building.join(made)


def _shifted(building: Building, part: ColumnBlock, shift: Any, scale: Any) -> ColumnBlock:
    """Return `(x - shift) / scale`, where either may be None."""
    name = part.name
    if shift is not None:
        unit = np.ones(part.size) if scale is None else np.asarray(scale)
        if np.abs(np.asarray(shift) / unit).max(initial=0) > _FAR:
            building.smooth = False
        name = building.graph.add("Sub", name, building.array(shift)[None])
    if scale is not None:
        name = building.graph.add("Div", name, building.array(scale)[None])
    made = building.computed(part, name)
    shifts = np.broadcast_to(0.0 if shift is None else shift, part.size)
    factors = 1 / np.broadcast_to(1.0 if scale is None else scale, part.size)
    return _moved(made, shifts, factors)


def _moved(part: ColumnBlock, shifts: Any, factors: Any) -> ColumnBlock:
    """Return a value whose columns know that they are `(x + shift) * factor` of what they were."""
    columns = (
        column.shifted(float(shift), float(factor))
        for column, shift, factor in zip(part.columns, shifts, factors, strict=True)
    )
    return replace(part, columns=tuple(columns))


def _standard_scaler(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    mean = step.mean_ if step.with_mean else None
    return _shifted(building, part, mean, step.scale_ if step.with_std else None)


def _robust_scaler(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    center = step.center_ if step.with_centering else None
    return _shifted(building, part, center, step.scale_ if step.with_scaling else None)


def _max_abs_scaler(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    scaled = _shifted(building, part, None, step.scale_)
    if not getattr(step, "clip", False):
        return scaled
    one = building.array(1)
    return replace(scaled, name=building.graph.add("Clip", scaled.name, -one, one))


def _power(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    part = power(building, step, part)
    return _standard_scaler(building, step._scaler, part) if step.standardize else part


def _min_max_scaler(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    graph = building.graph
    if np.abs(step.min_).max(initial=0) > _FAR:
        building.smooth = False
    name = graph.add("Mul", part.name, building.array(step.scale_)[None])
    name = graph.add("Add", name, building.array(step.min_)[None])
    if step.clip:
        low, high = step.feature_range
        name = graph.add("Clip", name, building.array(low), building.array(high))
    return _moved(building.computed(part, name), step.min_ / step.scale_, step.scale_)


def _normalizer(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    building.need(part)
    graph = building.graph
    axes = np.array([1], np.int64)
    if step.norm == "max":
        norms = graph.add("ReduceMax", graph.add("Abs", part.name), axes)
    else:
        norms = graph.add("ReduceL1" if step.norm == "l1" else "ReduceL2", part.name, axes)
    zero = graph.add("Equal", norms, building.array(0))
    norms = graph.add("Where", zero, building.array(1), norms)
    return building.mixed(part, graph.add("Div", part.name, norms), part.size)


def _binarizer(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    building.need(part)
    building.smooth = False
    above = building.graph.add("Greater", part.name, building.array(step.threshold))
    return building.computed(part, building.graph.cast(above, building.dtype, "bool"))


def _imputer(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    graph, missing = building.graph, step.missing_values
    if not _absent(missing):
        building.need(part)
        building.counted(part)
        gone = graph.add("Equal", part.name, building.array(missing))
        part = replace(part, name=graph.add("Where", gone, building.array(np.nan), part.name))
        building.smooth = building.moved = False
    values = [
        _filled(building, column, one)
        for column, one in zip(part.columns, step.statistics_, strict=True)
    ]
    kept = [p for p, value in enumerate(values) if value is not None or step.keep_empty_features]
    filled = {p for p, value in enumerate(values) if value is not None}
    name = fill(
        building, part, filled, np.array([0 if v is None else v for v in values], np.float64)
    )
    columns = tuple(replace(c, missing=p not in filled) for p, c in enumerate(part.columns))
    made = [building.take(ColumnBlock(name, columns), kept)]
    if step.add_indicator:
        made.append(_shown(building, building.take(part, step.indicator_.features_)))
    return building.join(made)


def _shown(building: Building, part: ColumnBlock) -> ColumnBlock:
    """Return 1 where a value is missing, else 0."""
    graph = building.graph
    name = graph.cast(graph.add("IsNaN", part.name), building.dtype, "bool")
    return ColumnBlock(name, tuple(Column(c.sources, missing=False) for c in part.columns))


def _indicator(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    if not _absent(step.missing_values):
        raise InputError(
            f"MissingIndicator with missing_values={step.missing_values!r} isn't supported: mark missing "
            "values by NaN"
        )
    features = [int(place) for place in step.features_]
    if step.features == "missing-only" and step.error_on_new:
        building.need(building.take(part, [p for p in range(part.size) if p not in features]))
    return _shown(building, building.take(part, features))


def _filled(building: Building, column: Column, value: Any) -> float | None:
    """Return the number that a missing value becomes; None in a column that had no values at all."""
    if isinstance(value, str):
        known = building.known_words(column, "SimpleImputer")
        return known.setdefault(value, len(known))
    if _absent(value):
        return None
    return float(value)


def _absent(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


def _function(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    graph, function = building.graph, step.func
    checks = getattr(getattr(function, "func", None), "__name__", "") == "check_array"
    if function is None or checks:  # HistGradientBoosting has such a step before its trees
        return part
    if step.kw_args:
        raise InputError("FunctionTransformer's kw_args aren't supported")
    if function is np.log1p:
        building.smooth = False  # small numbers may be scaled next
        return building.approximate(part, log1p(graph, part.name))
    simple = {np.log: "Log", np.exp: "Exp", np.sqrt: "Sqrt", np.abs: "Abs", np.tanh: "Tanh"}
    if not isinstance(function, np.ufunc) or function not in simple:
        named = getattr(function, "__name__", type(function).__name__)
        raise InputError(
            f"FunctionTransformer's function {named!r} isn't supported; the supported ones are numpy's "
            "log, log1p, "
            "exp, sqrt, abs and tanh"
        )
    made = building.approximate if function in _APPROXIMATE else building.computed
    return made(part, graph.add(simple[function], part.name))


def _pca(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    building.need(part)
    graph = building.graph
    name = part.name
    spread = np.sqrt(np.max(step.explained_variance_, initial=0))
    level = float(np.abs(getattr(step, "mean_", 0)).max() + spread)
    if getattr(step, "mean_", None) is not None:
        name = graph.add("Sub", name, building.array(step.mean_)[None])
    name = graph.add("MatMul", name, building.array(step.components_.T))
    if getattr(step, "whiten", False):
        deviation = np.maximum(np.sqrt(step.explained_variance_), np.finfo(float).eps)
        name = graph.add("Div", name, building.array(deviation)[None])
        level /= float(deviation.min())
    return building.mixed(part, name, len(step.components_), level)


def _polynomial(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    building.need(part)
    graph = building.graph
    powers = step.powers_
    found: list[ColumnBlock] = []
    product: str | None
    if step.include_bias:
        ones = graph.add("Mul", building.take(part, [0]).name, building.array(0))
        found.append(
            ColumnBlock(
                graph.add("Add", ones, building.array(1)), (Column(frozenset(), missing=False),)
            )
        )
    top = int(powers.sum(axis=1).max())
    for degree in range(1, top + 1):
        rows = powers[powers.sum(axis=1) == degree]
        if not len(rows):
            continue
        factors = np.array([np.repeat(np.arange(part.size), row) for row in rows])
        product = building.take(part, factors[:, -1]).name  # the last ones first, as scikit-learn
        for factor in reversed(range(degree - 1)):
            product = graph.add("Mul", product, building.take(part, factors[:, factor]).name)
        found.append(building.mixed(part, product, len(rows)))
    return building.join(found)


def _selector(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    return building.take(part, np.flatnonzero(step.get_support()))


def _bins(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    building.need(part)
    graph = building.graph
    building.smooth = building.moved = False
    building.counted(part)
    made = []
    for place, edges in enumerate(step.bin_edges_):
        column = building.take(part, [place])
        # An edge may be a value of the training data: see `_histogram_tree`.
        inner = np.array([edge - column.columns[0].tolerance(edge) for edge in edges[1:-1]])
        above = graph.add("GreaterOrEqual", column.name, building.array(inner)[None])
        hot = graph.cast(above, building.dtype, "bool")
        code = graph.add("ReduceSum", hot, np.array([1], np.int64))
        if step.encode != "ordinal":
            count = np.arange(int(step.n_bins_[place]), dtype=building.dtype)
            code = graph.cast(graph.add("Equal", code, count[None]), building.dtype, "bool")
            sources = column.columns[0].sources
            made.append(ColumnBlock(code, (Column(sources, missing=False),) * len(count)))
        else:
            made.append(ColumnBlock(code, (Column(column.columns[0].sources, missing=False),)))
    return building.join(made)


_STEPS: dict[str, Transform] = {
    "Pipeline": _pipeline,
    "ColumnTransformer": _column_transformer,
    "FeatureUnion": _feature_union,
    "StandardScaler": _standard_scaler,
    "RobustScaler": _robust_scaler,
    "MaxAbsScaler": _max_abs_scaler,
    "MinMaxScaler": _min_max_scaler,
    "MissingIndicator": _indicator,
    "Normalizer": _normalizer,
    "PowerTransformer": _power,
    "QuantileTransformer": quantiles,
    "Binarizer": _binarizer,
    "SimpleImputer": _imputer,
    "FunctionTransformer": _function,
    "PCA": _pca,
    "TruncatedSVD": _pca,
    "PolynomialFeatures": _polynomial,
    "KBinsDiscretizer": _bins,
    "OneHotEncoder": one_hot,
    "OrdinalEncoder": ordinal,
    "TargetEncoder": target,
    "VarianceThreshold": _selector,
    "SelectKBest": _selector,
    "SelectPercentile": _selector,
    "SelectFromModel": _selector,
    "RFE": _selector,
    "RFECV": _selector,
}
