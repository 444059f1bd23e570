"""Inputs of a torch module or exported program: their names, their order, and a sample of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError

if TYPE_CHECKING:
    import torch

Sample: TypeAlias = Mapping[str, Array] | Sequence[Array]
"""One sample by the names of forward's parameters, or in their order; no axis for samples."""


def input_names(module: Any) -> tuple[str, ...]:
    """Return the required inputs of a module or an exported program, in order.

    Where all inputs are optional, this is the only input, or the one that the module declares as
    its main input, as those of transformers do. It is empty where there is neither, and where
    forward takes `*args`.
    """
    if hasattr(module, "graph_signature"):
        return tuple(str(name) for name in module.graph_signature.user_inputs)
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if _nameable(p)]
    required = tuple(p.name for p in named if p.default is p.empty)
    main = getattr(module, "main_input_name", None)
    if not required and (len(named) == 1 or main in [p.name for p in named]):
        return (named[0].name if len(named) == 1 else str(main),)
    return required


def token_names(module: Any, given: Sequence[str]) -> tuple[str, ...]:
    """Return the inputs of a module that a text is turned into: the required ones, and optional ones as given.

    Args:
        module: Module or exported program.
        given: Names of the inputs that a tokenizer gives.
    """
    required = input_names(module)
    if hasattr(module, "graph_signature"):
        return required
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(p.name for p in parameters if p.name in required or p.name in given)


def has_optional_inputs(module: Any) -> bool:
    """Whether forward may take inputs beyond those of `input_names`."""
    if hasattr(module, "graph_signature"):
        return False
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(map(_nameable, parameters)) > len(input_names(module))


def takes_any_inputs(module: Any) -> bool:
    """Whether forward takes `*args` and names no input."""
    parameters = inspect.signature(module.forward).parameters.values()
    return not any(map(_nameable, parameters)) and any(
        p.kind is p.VAR_POSITIONAL for p in parameters
    )


def takes(module: torch.nn.Module, names: Sequence[str]) -> bool:
    """Whether forward has parameters of these names."""
    return set(names) <= set(inspect.signature(module.forward).parameters)


def numbered_names(count: int) -> list[str]:
    """Return names for the inputs of a module that names none."""
    return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]


def _nameable(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def named_inputs(
    sample: Sample, module: torch.nn.Module, names: Sequence[str] | None
) -> dict[str, Array]:
    """Return a sample's inputs by name, in the order of forward's parameters.

    Raises:
        InputError: the inputs aren't those that forward takes.
    """
    if names is not None:
        return ordered(sample, list(names), list(names))
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if _nameable(p)]
    required = [p.name for p in named if p.default is p.empty]
    if len(sample) == 1 and not required:
        required = list(input_names(module))
    return ordered(sample, [p.name for p in named], required)


def ordered(sample: Sample, names: list[str], required: list[str]) -> dict[str, Array]:
    """Return a sample's inputs by name, in the order of `names`.

    Raises:
        InputError: there are inputs beyond `names`, or a required one is missing.
    """
    if isinstance(sample, Mapping):
        if len(sample) == 1 and (len(required) == 1 or len(names) == 1):
            return dict(zip(required or names, sample.values(), strict=True))
        if set(required) <= set(sample) <= set(names):
            return {name: sample[name] for name in names if name in sample}
        came = ", ".join(sample) or "none"
    else:
        if len(required) <= len(sample) <= len(names):
            return dict(zip(names, sample, strict=False))
        came = str(len(sample))
    optional = [name for name in names if name not in required]
    also = f" and may take {', '.join(optional)}" if optional else ""
    raise InputError(
        f"the module takes the inputs {', '.join(required) or 'none'}{also}; the data has {came}"
    )


def check_dtypes(sample: Mapping[str, Array], module: torch.nn.Module) -> None:
    """Check for the commonest mistake: float64 from numpy for a module of lower precision.

    Raises:
        InputError: an input is float64, and the module computes in other types.
    """
    own = {
        str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()
    }
    for name, array in sample.items():
        if array.dtype == np.float64 and own and "float64" not in own:
            raise InputError(
                f"input {name!r}: the module computes in {', '.join(sorted(own))}; a sample of the "
                f'data is float64{list(array.shape)}; convert it with x.astype("float32")'
            )


def batch_of(sample: Array, size: int) -> Array:
    """Return a batch `(size, ...)` of the sample and, if it holds floats, scaled copies of it."""
    batch = np.stack([sample] * size)
    if batch.dtype.kind == "f":
        scales = (1 / (1 + np.arange(size))).astype(batch.dtype)
        batch *= scales.reshape(-1, *[1] * sample.ndim)
    return batch


def open_axes(samples: Sequence[Mapping[str, Array]], *, batch: bool) -> list[dict[int, str]]:
    """Return the axes of each input that are to stay open, with the names of their dimensions.

    Axes whose sizes are the same in every sample are one dimension: "length" where it is the only one.

    Args:
        samples: Samples by input name, without an axis for samples.
        batch: Whether the axis of the batch is open too.
    """
    columns: dict[tuple[int, ...], str] = {}
    found: list[dict[int, str]] = []
    for name, first in samples[0].items():
        own = {0: "batch"} if batch else {}
        for axis in range(first.ndim):
            sizes = tuple(one[name].shape[axis] for one in samples)
            if len(set(sizes)) > 1:
                own[axis + 1] = columns.setdefault(sizes, f"{name}_{axis + 1}")
        found.append(own)
    if len(columns) == 1:
        (only,) = columns.values()
        return [{n: "length" if said == only else said for n, said in own.items()} for own in found]
    return found
