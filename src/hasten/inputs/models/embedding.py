"""Rows of the embedding that a model looks tokens up in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.text import Tokenize

if TYPE_CHECKING:
    import onnx

_SAME_VALUES = frozenset(("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
"""Operators that hand numbers on as they are."""
_ROUNDED = 128
"""Largest multiple to which models usually round the rows of their embedding up."""
_SPARE = 1.01
"""Rows that some models have in reserve, by what their tokenizer and rounding explain."""


def check_vocabulary(pipeline: Pipeline, proto: onnx.ModelProto) -> str:
    """Check that a model's embedding has a row for every token of its pipeline's tokenizer.

    A model whose embedding can't be found, as in one that was split or fused, passes.

    Returns:
        Note for people where the embedding has more rows than its rounding up explains, as where
        the tokenizer is that of another model; "" otherwise.

    Raises:
        InputError: the tokenizer has more tokens than the embedding has rows.
    """
    for step in pipeline.steps:
        if not isinstance(step, Tokenize):
            continue
        rows = embedding_rows(proto.graph, step.ids)
        if rows is not None and step.vocabulary > rows:
            raise InputError(
                f"the tokenizer's numbers go up to {step.vocabulary - 1}, but the model's "
                f"embedding has {rows} rows: give the tokenizer that the model was trained with"
            )
        if rows is not None and rows > math.ceil(step.vocabulary / _ROUNDED) * _ROUNDED * _SPARE:
            return (
                f"the model's embedding has {rows} rows, but the tokenizer's numbers go up to "
                f"{step.vocabulary - 1} only: check that the model was trained with this tokenizer, "
                "because another one gives wrong answers and no error"
            )
    return ""


def embedding_rows(graph: onnx.GraphProto, name: str) -> int | None:
    """Return the rows of the first matrix that a graph looks an input's numbers up in, or None."""
    sizes = {tensor.name: tensor.dims for tensor in graph.initializer}
    handed_on = {name}
    for node in graph.node:  # ONNX has nodes in the order of their computation
        if node.op_type in _SAME_VALUES and node.input[0] in handed_on:
            handed_on.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in handed_on:
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
            dims = sizes.get(node.input[0])
            if dims is not None and len(dims) == 2 and axis in (-2, -1, 0, 1):
                return int(dims[axis])
    return None
