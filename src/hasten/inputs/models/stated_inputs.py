"""Inputs and outputs that a model states by itself, as far as they can be told without data."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.silence import silenced
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.models import onnx
from hasten.inputs.models.hugging_face import Folder
from hasten.inputs.models.keras import output_names
from hasten.inputs.models.tensorflow import TensorFlowModel
from hasten.inputs.models.torch_file import TorchFile

_OPEN = ("attention_mask", "input_ids", "input_values", "token_type_ids")
"""Inputs of transformers whose first axis after the batch is as long as the text or the sound."""


def stated_inputs(found: Any) -> tuple[TensorSpec, ...]:
    """Return the inputs of a model, the batch first; empty where nothing states them.

    An input of which only the name is stated has the shape `("...",)`.

    Args:
        found: Model that `find_model` returned.

    Raises:
        InputError: the model's file can't be read.
    """
    if isinstance(found, Path):
        return onnx.load(found).inputs
    if isinstance(found, Folder):
        return _of_folder(found)
    if isinstance(found, TensorFlowModel):
        return found.stated_inputs()
    if isinstance(found, TorchFile):
        return found.stated.inputs
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(found, keras.Model):
        tensors = getattr(found, "inputs", None) or ()
        return _of_keras(tensors, [str(tensor.name) for tensor in tensors])
    if torch is not None and isinstance(found, torch.export.ExportedProgram):
        return _of_program(found)
    if torch is not None and isinstance(found, torch.nn.Module):
        return _of_module(found)
    return ()


def stated_outputs(found: Any) -> tuple[TensorSpec, ...]:
    """Return the outputs of a model, the batch first; empty where nothing states them, as in TorchScript and SavedModels.

    Of a folder of Hugging Face and a network by name, what no file states is read from two answers of the module to
    samples that are made up. No other model runs.

    Args:
        found: Model that `find_model` returned.

    Raises:
        InputError: the model's file can't be read.
    """
    if isinstance(found, Path):
        return onnx.load(found).outputs
    if isinstance(found, Folder) and found.sentence is None:
        return _outputs_of_folder(found)
    if isinstance(found, TensorFlowModel):
        return found.stated_outputs()
    if isinstance(found, TorchFile):
        return found.stated.outputs
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(found, keras.Model):
        tensors = getattr(found, "outputs", None) or ()
        return _of_keras(tensors, output_names(found, len(tensors)))
    if torch is not None and isinstance(found, torch.export.ExportedProgram):
        return _outputs_of_program(found)
    shape = getattr(found, "hasten_sample", None)
    if shape is not None:
        return _answered(found, {"x": np.ones(shape, np.float32)}, ())
    return ()


def _outputs_of_folder(folder: Folder) -> tuple[TensorSpec, ...]:
    """Return the outputs of a folder without what sentence-transformers adds; empty where its module can't be run."""
    if folder.file is not None:
        return onnx.load(folder.file).outputs
    try:
        module = folder.module()
        sample = folder.made_up(module)
    except InputError:
        return ()
    return _answered(
        module, sample, [name for name, array in sample.items() if _is_open(name, array)]
    )


def _answered(
    module: Any, sample: Mapping[str, Array], lengthy: Sequence[str]
) -> tuple[TensorSpec, ...]:
    """Return the outputs of a torch module by its answers to two batches; empty where it can't run them.

    Args:
        module: The module.
        sample: One sample by input name, without an axis for the batch.
        lengthy: Names of the inputs whose first axis may have any length.
    """
    import torch

    from hasten.inputs.models.torch import evaluating, flat_outputs
    from hasten.inputs.models.torch_inputs import batch_of

    shorter = {
        name: array[: len(array) // 2] if name in lengthy else array
        for name, array in sample.items()
    }
    each = []
    try:
        with silenced(), torch.no_grad(), evaluating(module):
            for batch, given in ((2, sample), (3, shorter)):
                tensors = {n: torch.from_numpy(batch_of(one, batch)) for n, one in given.items()}
                one_input = len(tensors) == 1  # its name may be another
                answer = module(*tensors.values()) if one_input else module(**tensors)
                each.append(flat_outputs(answer))
    except Exception:  # a module of somebody else raises anything
        return ()
    return tuple(
        TensorSpec(
            f"{name}_out" if name in sample else name,
            str(one.dtype).removeprefix("torch."),
            tuple(
                size if size == other else "sequence" if axis else "batch"
                for axis, (size, other) in enumerate(
                    zip(one.shape, each[1][name].shape, strict=False)
                )
            ),
        )
        for name, one in each[0].items()
        if name in each[1]
    )


def _is_open(name: str, array: Array) -> bool:
    """Whether a sample of an input is a text or a sound of any length."""
    return array.ndim == 1 and name in _OPEN


def _of_folder(folder: Folder) -> tuple[TensorSpec, ...]:
    """Return the inputs of a folder's module; empty where the libraries that load it aren't installed."""
    if folder.file is not None:
        return onnx.load(folder.file).inputs
    try:
        sample = folder.made_up(folder.module())
    except InputError:
        return ()
    return tuple(
        TensorSpec(name, str(array.dtype), ("batch", *(("sequence",) if open_ else array.shape)))
        for name, array in sample.items()
        for open_ in (_is_open(name, array),)
    )


def _of_keras(tensors: Sequence[Any], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    specs = []
    for tensor, name in zip(tensors, names, strict=True):
        sizes = [
            size if size is not None else "batch" if axis == 0 else f"axis_{axis}"
            for axis, size in enumerate(tensor.shape)
        ]
        specs.append(TensorSpec(name, str(tensor.dtype), tuple(sizes)))
    return tuple(specs)


def _outputs_of_program(program: Any) -> tuple[TensorSpec, ...]:
    """Return a program's outputs, by the names that its ONNX file will have; empty where they aren't plain tensors."""
    from torch.utils import _pytree as pytree

    from hasten.inputs.models.torch import flat_outputs

    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    try:
        values = [nodes[name].meta["val"] for name in signature.user_outputs]
        named = flat_outputs(pytree.tree_unflatten(values, program.call_spec.out_spec))
    except Exception:  # a file may state anything
        return ()
    taken = set(map(str, signature.user_inputs))
    return tuple(
        TensorSpec(
            f"{name}_out" if name in taken else name,
            str(value.dtype).removeprefix("torch."),
            tuple(size if isinstance(size, int) else str(size) for size in value.shape),
        )
        for name, value in named.items()
    )


def _of_program(program: Any) -> tuple[TensorSpec, ...]:
    nodes = {node.name: node for node in program.graph.nodes}
    specs = []
    for name in map(str, program.graph_signature.user_inputs):
        value: Any = nodes[name].meta["val"] if name in nodes else None
        if not hasattr(value, "shape"):
            return ()
        sizes = [size if isinstance(size, int) else str(size) for size in value.shape]
        specs.append(TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(sizes)))
    return tuple(specs)


def _of_module(module: Any) -> tuple[TensorSpec, ...]:
    from hasten.inputs.models import torch_inputs, torchscript

    script = hasattr(getattr(module, "forward", None), "schema")
    names = (torchscript if script else torch_inputs).input_names(module)
    shape = getattr(module, "hasten_sample", None)
    if shape is not None and len(names) == 1:
        return (TensorSpec(names[0], "float32", ("batch", *map(int, shape))),)
    return tuple(TensorSpec(name, "float32", (onnx.UNKNOWN_RANK,)) for name in names)
