"""Models of rows as ONNX, and rows at and around all that their trees compare with."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Session
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models.tabular.base import Tabular, described

COLUMNS = ("a", "b", "c", "k")
"""Columns of the rows that models are trained on; k has the whole numbers from 0 to 5."""
FEW = settings(max_examples=8)
"""Each example has a row for every value that decides something."""
ODD = (
    np.nan,
    0.0,
    -0.0,
    1e-36,
    -1e-36,
    1e-35,
    -1e-35,
    float(np.float32(-1e-35)),
    5e-324,
    0.1,
    1 / 3,
)
"""Values that are missing, next to zero, or that float32 can't hold."""
CATEGORIES = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5, 5.0, 6.0, 31.0, 32.0, 64.0, 1e9)
"""Categories that were there in training, and ones that weren't, negative, broken or far."""


def training(missing: float = 0.1) -> tuple[Array, Array, Array, Array]:
    """Return 300 rows with two classes, three classes, and a positive number for each."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 4))
    rows[:, 3] = rng.integers(0, 6, 300)
    known = rows.copy()
    two = (known[:, 0] + known[:, 1] * (known[:, 3] % 2) > 0).astype(int)
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows, two, two + (known[:, 2] > 0.5), np.exp(known[:, 0])


class Exported:
    """A model as ONNX, opened in ONNX Runtime and as compiled C."""

    def __init__(self, model: Any, folder: Path) -> None:
        """Export a live model, or one that was found in a file, into a folder."""
        self.tabular: Tabular = model if isinstance(model, Tabular) else described(model)
        self.model = self.tabular.export(folder)
        self.path = self.model.path
        self.session = onnxruntime.InferenceSession(
            str(self.path), providers=["CPUExecutionProvider"]
        )

    def __call__(self, rows: Any) -> Array:
        """Return the answers to rows of numbers, as ONNX Runtime gives them."""
        given = np.asarray(rows, np.float64).astype(self.tabular.row.dtype)
        (answers,) = self.session.run(None, {"rows": given})
        assert isinstance(answers, np.ndarray)
        return answers

    @cached_property
    def _compiled(self) -> Session:
        """The model's own C; an operator that it doesn't cover is an error."""
        target, engine = Target.host().with_threads(1), CompiledC()
        opened = ExitStack()
        weakref.finalize(self, opened.close)
        artifact = engine.build(self.model, target, self.path.parent)
        return opened.enter_context(engine.open(artifact, target))

    def compiled(self, rows: Any) -> Array:
        """Return the answers to rows of numbers, as the model's own C gives them."""
        given = np.asarray(rows, np.float64).astype(self.tabular.row.dtype)
        assert self._compiled.batch_sizes is None, "rows aren't answered each by itself"
        (answers,) = self._compiled.run({"rows": given}).values()
        return answers

    def each(self, rows: Any) -> Iterator[Array]:
        """Yield the answers to rows of numbers of whatever ships: ONNX Runtime's, and compiled C's."""
        yield self(rows)
        yield self.compiled(rows)

    def by_the_standard(self, rows: Any) -> Array:
        """Return the answers to rows of numbers, as onnx's own evaluator gives them."""
        given = np.asarray(rows, np.float64).astype(self.tabular.row.dtype)
        (answers,) = ReferenceEvaluator(str(self.path)).run(None, {"rows": given})
        assert isinstance(answers, np.ndarray)
        return answers

    def splits(self) -> dict[int, list[float]]:
        """Return what the trees compare each column with."""
        found: dict[int, list[float]] = {}
        for node in onnx.load(self.path).graph.node:
            if node.op_type == "TreeEnsemble":
                given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
                numbers = onnx.numpy_helper.to_array(given["nodes_splits"]).tolist()
                for column, number in zip(given["nodes_featureids"], numbers, strict=True):
                    found.setdefault(column, []).append(number)
        return found

    def rows(
        self, more: Sequence[float] = ODD, categories: Sequence[float] | None = None
    ) -> st.SearchStrategy[Array]:
        """Return a row, repeated for each value of each column that decides something.

        Args:
            more: Values of every column beside its thresholds and their neighbours.
            categories: All values of the last column, where it has categories.
        """
        splits = self.splits()
        values = [
            [
                *more,
                *(
                    near
                    for split in sorted(set(splits.get(place, ())))
                    for near in neighbours(split)
                ),
            ]
            for place in range(len(self.tabular.row.columns))
        ]
        if categories is not None:
            values[-1] = [*categories, *(value for value in more if np.isnan(value))]
        one = st.tuples(*(st.sampled_from(some) for some in values))

        def every(row: tuple[float, ...]) -> Array:
            rows = np.repeat(np.array([row]), sum(map(len, values)), axis=0)
            start = 0
            for place, some in enumerate(values):
                rows[start : start + len(some), place] = some
                start += len(some)
            return rows

        return one.map(every)


def neighbours(split: float) -> list[float]:
    """Return a number, and the next ones to it in float64 and in float32."""
    if abs(split) > 1e30:  # of a split that asks for missing values alone
        return []
    near = np.float32(split)
    return [
        split,
        *(float(np.nextafter(split, way)) for way in (-np.inf, np.inf)),
        float(near),
        *(float(np.nextafter(near, np.float32(way))) for way in (-np.inf, np.inf)),
    ]
