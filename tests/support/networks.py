"""Torch modules to test with, and models that keep their torch programs (extra `torch`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.inputs.models.source import load_model


class Mirror(nn.Module):
    """What an ONNX file of `hasten.testing.models` computes, in torch.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        self.steps = list(graph.node)
        self.inputs = [one.name for one in graph.input]
        self.outputs = [one.name for one in graph.output]
        self.weights = [one.name for one in graph.initializer]
        for tensor in graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            self.register_buffer(f"weight_{tensor.name}", value)

    def forward(self, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        values = dict(zip(self.inputs, args, strict=True))
        values |= {name: getattr(self, f"weight_{name}") for name in self.weights}
        for step in self.steps:
            settings = {one.name: onnx.helper.get_attribute_value(one) for one in step.attribute}
            given = [values[name] for name in step.input]
            values[step.output[0]] = _computed(step.op_type, given, settings)
        return {name: values[name] for name in self.outputs}


def _computed(kind: str, given: list[torch.Tensor], settings: Mapping[str, Any]) -> torch.Tensor:
    """Return what one operator gives."""
    match kind:
        case "Conv":
            sides = settings.get("pads", [0, 0, 0, 0])
            stride, groups = settings.get("strides", [1, 1]), settings.get("group", 1)
            value, weight, bias = given
            return functional.conv2d(value, weight, bias, stride, sides[:2], 1, groups)
        case "Gemm":
            return given[0] @ given[1] + given[2]
        case "GlobalAveragePool":
            return given[0].mean((2, 3), keepdim=True)
        case "LayerNormalization":
            return functional.layer_norm(given[0], given[1].shape, given[1])
        case "Gather":
            return given[0][given[1]]
        case "ReduceMean":
            return given[0].mean(settings["axes"], keepdim=bool(settings["keepdims"]))
        case "Transpose":
            return given[0].permute(settings["perm"])
        case "Softmax":
            return given[0].softmax(-1)
        case "Flatten":
            return given[0].flatten(settings["axis"])
        case "MatMul":
            return given[0] @ given[1]
        case "Relu":
            return given[0].relu()
        case "Add":
            return given[0] + given[1]
        case "Mul":
            return given[0] * given[1]
    raise NotImplementedError(kind)


class Encoder(nn.Module):
    """A transformer's encoder: x `(n, 64, 256)` to `(n, 10)`, by two layers of four heads."""

    def __init__(self, layers: int = 2, width: int = 256) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, activation="gelu", batch_first=True, dropout=0.1
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.head(self.layers(x).mean(1))
        return mixed


class Linear(nn.Module):
    """One matrix product: x `(n, rows, width)` by a square of weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.product = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.product(x)
        return product


def with_program(module: Any, sample: Mapping[str, Array], folder: Path) -> Model:
    """Export a module to ONNX, keep its program, and settle its request.

    Args:
        module: In any mode.
        sample: One sample by input name.
        folder: Folder for both files.
    """
    model = load_model(module, sample, folder, keep_program=True)
    return model.settled_by({name: np.asarray(array) for name, array in sample.items()})
