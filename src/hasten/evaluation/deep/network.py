"""Small network of convolutions with its answers in float64, for runtimes to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import InputError

_HEADER = '<ir_version: 10, opset_import: ["": 17]>'
_GRAPH = """
    small (float[1, 3, 32, 32] x) => (float[1, 10] y) {
        c1 = Conv <kernel_shape = [3, 3], strides = [2, 2]> (x, w1, b1)
        r1 = Relu(c1)
        c2 = Conv <kernel_shape = [3, 3], strides = [2, 2]> (r1, w2, b2)
        r2 = Relu(c2)
        f = Flatten <axis = 1> (r2)
        h = Gemm(f, w3, b3)
        g = Relu(h)
        y = Gemm(g, w4, b4)
    }"""
_SHAPES = {
    **{"w1": (16, 3, 3, 3), "b1": (16,), "w2": (32, 16, 3, 3), "b2": (32,)},
    **{"w3": (32 * 49, 64), "b3": (64,), "w4": (64, 10), "b4": (10,)},
}


def weights() -> dict[str, Array]:
    """Return the network's weights in float32, the same every time.

    Source: He et al., arXiv:1502.01852, eq. 10, for activations that stay near unit size.
    """
    rng, made = np.random.default_rng(0), dict[str, Array]()
    for name, shape in _SHAPES.items():
        fan_in = {1: 1, 2: shape[0], 4: int(np.prod(shape[1:]))}[len(shape)]
        scale = 0.1 if len(shape) == 1 else np.sqrt(2 / fan_in)
        made[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return made


def requests(count: int, seed: int = 1) -> list[dict[str, Array]]:
    """Return requests of one sample each."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 32, 32), np.float32)} for _ in range(count)]


def answer(request: Mapping[str, Array], w: Mapping[str, Array] | None = None) -> Array:
    """Return the network's answer in float64, by numpy on this host.

    Args:
        request: One request.
        w: Weights; by default the network's own.
    """
    w = {name: array.astype(np.float64) for name, array in (w or weights()).items()}
    x = request["x"].astype(np.float64)
    x = np.maximum(_convolved(x, w["w1"], w["b1"]), 0)
    x = np.maximum(_convolved(x, w["w2"], w["b2"]), 0)
    x = np.maximum(x.reshape(1, -1) @ w["w3"] + w["b3"], 0)
    result: Array = x @ w["w4"] + w["b4"]
    return result


def _convolved(x: Array, weight: Array, bias: Array) -> Array:
    """Convolve `(1, c, h, w)` by 3x3 filters with a stride of 2, without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    result: Array = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    return result


def as_model(folder: Path, *, program: bool) -> Model:
    """Write the network as an ONNX file and, if asked for, as the program that torch runs.

    Raises:
        InputError: onnx, or torch for a program, isn't installed.
    """
    try:
        import onnx
        from onnx import numpy_helper, parser
    except ImportError as error:
        raise InputError(f"onnx isn't installed ({error}): pip install 'hasten[gpu]'") from error
    from hasten.inputs.models.onnx import load

    proto = parser.parse_model(_HEADER + _GRAPH)
    for name, array in weights().items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "small.onnx")
    model = load(folder / "small.onnx")
    model = model.settled_by({"x": requests(1)[0]["x"][0]})
    return replace(model, program=_program(folder / "small.pt2")) if program else model


def _program(path: Path) -> Path:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"torch isn't installed ({error}): pip install 'hasten[gpu]'") from error
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    made = {name: torch.from_numpy(array) for name, array in weights().items()}
    state = module.state_dict()
    with torch.no_grad():
        for place, number in zip((0, 2, 5, 7), (1, 2, 3, 4), strict=True):
            weight = made[f"w{number}"]
            state[f"{place}.weight"].copy_(weight if weight.ndim == 4 else weight.T)
            state[f"{place}.bias"].copy_(made[f"b{number}"])
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(1, 3, 32, 32),)), path)
    return path
