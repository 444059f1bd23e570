"""Sentences for data that lacks inputs of the model: what the model's own names and shapes show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.core.model import Model
from hasten.core.sequences import likely_states
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.models import onnx
from hasten.optimization.unrolling import hint_of_states
from hasten.passes.onnx_files import op_counts, read_onnx

_TAKING_NAN = {"Imputer", "IsNaN"}
"""Operators that put something else in NaN's place, beside trees."""


def hint_of_inputs(model: Any, said: str) -> str:
    """Return sentences on inputs that the data lacks; "" where nothing is known of them.

    Args:
        model: Model that `find_model` returned.
        said: Message that lists the inputs of the model, and then what the data has.
    """
    try:
        inputs = onnx.load(model).inputs if isinstance(model, Path) else ()
    except InputError:
        inputs = ()
    return f"{hint_of_states(model)}{hint_of_scalars(inputs, said)}"


def hint_of_scalars(inputs: Sequence[TensorSpec], said: str) -> str:
    """Return a sentence on inputs that take a single number and aren't in the data; "" where there are none.

    Args:
        inputs: Inputs of the model.
        said: Message that lists the inputs of the model, and then what the data has.
    """
    given = said.partition(" has ")[2].replace(",", " ").split()
    lacking = [s for s in inputs if s.shape == () and s.name not in given]
    if not lacking or not given:
        return ""
    one = lacking[0]
    names = " and ".join(spec.name for spec in lacking)
    takes = "takes a single number" if len(lacking) == 1 else "take a single number each"
    return (
        f'; {names} {takes}: add one for each sample to the data, as np.full(n, 1, "{one.dtype}")'
    )


def hint_of_missing(model: Model, said: str) -> str:
    """Return a sentence on NaN in the data of a model whose operators take it; "" for anything else.

    Args:
        model: Model, loaded.
        said: Message on the data.
    """
    rows = len(model.inputs) == 1 and len(model.inputs[0].shape) == 2
    about_inputs = said.startswith("input ") and "has NaN or Inf" in said
    if not rows or model.format != "onnx" or not about_inputs:
        return ""
    counts = op_counts(read_onnx(model, weights=False))
    if not any(op.startswith("TreeEnsemble") or op in _TAKING_NAN for op in counts):
        return ""
    return (
        "; if NaN stands for a missing value, which this model may take, give a pipeline of "
        'the step row, which names the columns, with missing="nan"'
    )


def note_of_states(model: Any, dataset: Dataset) -> list[str]:
    """Return a note on inputs that the data gives though they look like states; none where none do.

    Args:
        model: Model, loaded.
        dataset: Data to judge on.
    """
    found = [
        pair for pair in likely_states(model.inputs, model.outputs) if pair[0] in dataset.names
    ]
    if not found:
        return []
    each = " and ".join(f"{one} (with {other})" for one, other in found)
    text = ", ".join(f"{one}={other}" for one, other in found)
    verb = "looks like a state" if len(found) == 1 else "look like states"
    return [
        f"{each} {verb} that the model carries from step to step; this run used the values in "
        "the data, and took each sample by itself: if samples are whole sequences, name the "
        f"states, {text}"
    ]
