"""Inputs and outputs that a model states by itself, as far as they can be told without data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.models import onnx
from hasten.inputs.models.hugging_face import Folder
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
        return _of_keras(found)
    if torch is not None and isinstance(found, torch.export.ExportedProgram):
        return _of_program(found)
    if torch is not None and isinstance(found, torch.nn.Module):
        return _of_module(found)
    return ()


def stated_outputs(found: Any) -> tuple[TensorSpec, ...]:
    """Return the outputs of an ONNX file, also one in a folder; empty for other models.

    Args:
        found: Model that `find_model` returned.

    Raises:
        InputError: the model's file can't be read.
    """
    path = found.file if isinstance(found, Folder) and found.sentence is None else found
    return onnx.load(path).outputs if isinstance(path, Path) else ()


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
        for open_ in (array.ndim == 1 and name in _OPEN,)
    )


def _of_keras(model: Any) -> tuple[TensorSpec, ...]:
    specs = []
    for tensor in getattr(model, "inputs", None) or ():
        sizes = [
            size if size is not None else "batch" if axis == 0 else f"axis_{axis}"
            for axis, size in enumerate(tensor.shape)
        ]
        specs.append(TensorSpec(str(tensor.name), str(tensor.dtype), tuple(sizes)))
    return tuple(specs)


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
