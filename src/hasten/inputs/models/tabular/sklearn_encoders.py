"""scikit-learn's encoders of categories as ONNX: words come as numbers, which the step `row` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.building import ABSENT, Building, Column, ColumnBlock


@dataclass(frozen=True)
class _Known:
    """Which category a column has, one-hot.

    Attributes:
        hot: Name of a value of shape `[batch, categories]`, 1 for the row's category and 0 elsewhere.
        numbers: Number by which each category comes; NaN for a missing value.
    """

    hot: str
    numbers: Array

    @property
    def missing(self) -> bool:
        """Whether a missing value is a category."""
        return bool(np.isnan(self.numbers).any())


def _look_up(
    building: Building, part: ColumnBlock, categories: Sequence[Any], step: str, *, refuses: bool
) -> _Known:
    """Find the category of a column, and note what its encoder refuses.

    Args:
        building: Where to add to.
        part: Value of one column.
        categories: Categories of the encoder, texts or numbers, None or NaN for a missing value.
        step: Name of the encoder for messages.
        refuses: Whether the encoder refuses what it doesn't know.
    """
    (column,) = part.columns
    told = [ABSENT if _absent(one) else _plain(one) for one in categories]
    numbers = np.array(building.numbers_of(column, told, step), np.float64)
    if refuses:
        if column.raw:
            building.refusing |= column.sources
            if not any(isinstance(one, str) for one in told):
                (source,) = column.sources
                building.choices.setdefault(source, set()).update(numbers[~np.isnan(numbers)])
        if not np.isnan(numbers).any():
            building.need(part)
    graph = building.graph
    hot = graph.add("Equal", part.name, building.array(numbers)[None])
    if np.isnan(numbers).any():  # NaN equals nothing, so its own column is set apart
        gone = graph.add("And", graph.add("IsNaN", part.name), np.isnan(numbers)[None])
        hot = graph.add("Or", hot, gone)
    return _Known(graph.cast(hot, building.dtype, "bool"), numbers)


def _absent(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def _unknown(building: Building, known: _Known) -> str:
    """Return 1 where a row's value is none of the categories, else 0, of shape `[batch, 1]`."""
    graph = building.graph
    found = graph.add("ReduceSum", known.hot, np.array([1], np.int64))
    return graph.add("Sub", building.array(1), found)


def _infrequent(step: Any, place: int, count: int) -> Array | None:
    """Return the place that each category has after rare ones were joined; None if there is none."""
    if not getattr(step, "_infrequent_enabled", False):
        return None
    mapping = step._default_to_infrequent_mappings[place]
    return None if mapping is None else np.asarray(mapping)[:count]


def one_hot(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    """Add a OneHotEncoder."""
    graph, made = building.graph, []
    for place, categories in enumerate(step.categories_):
        column = building.take(part, [place])
        refuses = step.handle_unknown == "error"
        known = _look_up(building, column, categories, "OneHotEncoder", refuses=refuses)
        hot, width = known.hot, len(categories)
        mapping = _infrequent(step, place, width)
        if mapping is not None:
            width = int(mapping.max()) + 1
            hot = graph.add("MatMul", hot, building.array(np.eye(width)[mapping]))
            if step.handle_unknown in ("infrequent_if_exist", "warn"):
                last = building.array(np.eye(width)[-1:])
                others = graph.add("Mul", _unknown(building, known), last)
                hot = graph.add("Add", hot, others)
        made.append(ColumnBlock(hot, (Column(column.columns[0].sources, missing=False),) * width))
        dropped = None if step.drop_idx_ is None else step._drop_idx_after_grouping[place]
        if dropped is not None:
            made[-1] = building.take(made[-1], [one for one in range(width) if one != dropped])
    return building.join(made)


def _coded(
    building: Building, part: ColumnBlock, known: _Known, codes: Array, unknown: float | None
) -> ColumnBlock:
    """Return the code of each row's category.

    Args:
        building: Where to add to.
        part: Value of one column.
        known: The categories.
        codes: Code of each category; NaN for one that stays missing.
        unknown: Code of everything else; None where that is refused.
    """
    graph, gaps = building.graph, np.isnan(codes)
    code = graph.add("MatMul", known.hot, building.array(np.where(gaps, 0, codes))[:, None])
    if gaps.any():
        gap = graph.add("MatMul", known.hot, building.array(gaps)[:, None])
        isgap = graph.add("Greater", gap, building.array(0.5))
        code = graph.add("Where", isgap, building.array(np.nan), code)
    if unknown is not None:
        other = graph.add("Greater", _unknown(building, known), building.array(0.5))
        code = graph.add("Where", other, building.array(unknown), code)
    missing = bool(gaps.any() or (unknown is not None and np.isnan(unknown)))
    return ColumnBlock(code, (Column(part.columns[0].sources, missing=missing),))


def ordinal(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    """Add an OrdinalEncoder."""
    made = []
    refuses = step.handle_unknown == "error"
    for place, categories in enumerate(step.categories_):
        column = building.take(part, [place])
        known = _look_up(building, column, categories, "OrdinalEncoder", refuses=refuses)
        codes = np.arange(len(categories), dtype=np.float64)
        mapping = _infrequent(step, place, len(categories))
        if mapping is not None:
            codes = mapping.astype(np.float64)
        codes[np.isnan(known.numbers)] = step.encoded_missing_value
        unknown = None if refuses else float(step.unknown_value)
        made.append(_coded(building, column, known, codes, unknown))
    return building.join(made)


def target(building: Building, step: Any, part: ColumnBlock) -> ColumnBlock:
    """Add a TargetEncoder of a number or of two classes."""
    if step.target_type_ == "multiclass":
        raise InputError("TargetEncoder isn't supported for three or more classes")
    made = []
    for place, categories in enumerate(step.categories_):
        column = building.take(part, [place])
        known = _look_up(building, column, categories, "TargetEncoder", refuses=False)
        codes = np.asarray(step.encodings_[place], np.float64)
        made.append(_coded(building, column, known, codes, float(step.target_mean_)))
    return building.join(made)
