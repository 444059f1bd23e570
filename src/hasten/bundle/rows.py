"""Rows of a table, answered by a bundle whose pipeline begins with the step `row`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline, as_request
from hasten.inputs.pipeline.row_reader import RowReader
from hasten.inputs.pipeline.rows import Row

NOWHERE = Origin()
"""Origin of a row, which is no picture's."""


def most_json_bytes(pipeline: Pipeline) -> int:
    """Return the most bytes of a row's JSON; 0 for a pipeline that doesn't begin with the step `row`."""
    first = pipeline.steps[0] if pipeline.steps else None
    return first._most_bytes if isinstance(first, Row) else 0


class RowPath:
    """Way from rows to a model's only input, and from its outputs to decisions.

    Attributes:
        reader: Reader of rows.
        name: Name of the model's input.
        after: Steps after the model.

    Args:
        pipeline: Steps before and after the model.
        inputs: The model's inputs.

    Raises:
        InputError: the pipeline has other steps than `row` before the model, or the model's input isn't
            one row of numbers.
    """

    def __init__(self, pipeline: Pipeline, inputs: Sequence[TensorSpec]) -> None:
        (*others, step) = pipeline.joined or (None,)
        if others or not isinstance(step, Row):
            names = ", ".join(one.name for one in pipeline.steps) or "none"
            raise InputError(
                f"rows need a pipeline whose only step before the model is row; this one has {names}: use "
                "decide"
            )
        self.reader = RowReader(step)
        (self.name,) = as_request(np.zeros(self.reader.columns, self.reader.dtype), inputs)
        self.after = pipeline.after

    @classmethod
    def of(cls, pipeline: Pipeline | None, inputs: Sequence[TensorSpec]) -> RowPath | None:
        """Return the way of a pipeline; None for one that takes something else than rows."""
        if pipeline is None:
            return None
        try:
            return cls(pipeline, inputs)
        except InputError:
            return None

    def request(self, value: Any) -> dict[str, Array]:
        """Return one row as a request.

        Raises:
            InputError: the row can't be read; the message names the column.
        """
        into = np.empty((1, self.reader.columns), self.reader.dtype)
        self.reader.read(value, into)
        return {self.name: into}

    def decided(self, outputs: Tensors, place: int = 0) -> Any:
        """Return the decision on one row of the outputs.

        Raises:
            InputError: the outputs aren't what a step after the model needs.
        """
        value: Any = {name: array[place] for name, array in outputs.items()}
        for step in self.after:
            value = step(value, NOWHERE)
        return value


class BoundRow:
    """A bundle's whole way from one row to its decision, through arrays that stay the same.

    Only one thread may call at a time.

    Attributes:
        row: Row as the model got it last, of shape (1, columns).
        outputs: The model's last answer, by output name.
        run: Call that answers from `row` to `outputs`.

    Args:
        path: Way of the rows.
        bind: Function that binds a call to its inputs and outputs.
        outputs: The model's outputs.
    """

    def __init__(
        self,
        path: RowPath,
        bind: Callable[[Tensors, Tensors], Callable[[], None]],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self.row = np.zeros((1, path.reader.columns), path.reader.dtype)
        self.outputs = {
            spec.name: np.zeros([n if isinstance(n, int) else 1 for n in spec.shape], spec.dtype)
            for spec in outputs
        }
        self._read, self._after = path.reader.read, path.after
        self.run = bind({path.name: self.row}, self.outputs)
        self._firsts = tuple((name, array[0]) for name, array in self.outputs.items())

    def __call__(self, row: Any) -> Any:
        """Answer one row; see `Loaded.decide`.

        Args:
            row: Row in any form that `Loaded.decide` takes, such as a mapping of column name to value.

        Returns:
            The decision as plain values that JSON can represent; without steps after the model, its
            outputs for the row by name, without a batch axis.

        Raises:
            InputError: the row can't be read; the message names the column. Or a number is no row of a table that
                the model looks it up in.
            CandidateError: the engine failed, another thread is in this call, or the bundle is closed.
        """
        self._read(row, self.row)
        self.run()
        value: Any = {name: array.copy() for name, array in self._firsts}
        for step in self._after:
            value = step(value, NOWHERE)
        return value
