"""Models of pure arithmetic, to see how fast a runtime can be at it; and one that does nothing.

Their inputs and outputs are small, so that passing them takes hardly any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.onnx import load
from hasten.measure.work import work

EMPTY_CALL = "empty call"
_HEADER = '<ir_version: 10, opset_import: ["": 17]>'
_DEPTH = 4
_SIDE, _ROWS_PER_THREAD = 1024, 128
_CHANNELS, _PIXELS = 128, 28
_SAMPLES = 4
_LARGEST = 63
"""Largest int8 weight: above it, sums of two products saturate where there is no VNNI."""


@dataclass(frozen=True)
class Kernel:
    """A model whose work is known.

    Attributes:
        name: Name for people: "matrix products", "convolutions", "empty call".
        precision: "f32", or "i8" for explicit QDQ.
        model: Model with its request settled.
        samples: Folder of a spool of requests.
        operations: Operations of one request; a multiply-accumulate counts as two.
    """

    name: str
    precision: str
    model: Model
    samples: Path
    operations: int


@dataclass(frozen=True)
class _Chain:
    """A product repeated several times, after an addition that brings the input to size.

    Attributes:
        name: Name for people.
        product: Operator of the product.
        last: Operator that makes the output small.
        width: Shape of the input, without the batch.
        base: Shape of the constant that the input is added to.
        weights: Shape of the weights.
    """

    name: str
    product: str
    last: str
    width: tuple[int, ...]
    base: tuple[int, ...]
    weights: tuple[int, ...]


def kernels(folder: Path, threads: int) -> list[Kernel]:
    """Write matrix products and convolutions, in f32 and in int8, and an empty call.

    The int8 form is the fastest for runtimes on x86-64: uint8 activations, int8 weights around 0,
    one scale per tensor.

    Args:
        folder: Existing folder to write to.
        threads: Number of threads; one request has about a billion operations for each.

    Raises:
        InputError: onnx isn't installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise missing_extra("what the machine can do at all", "optimize") from error
    image = (threads, _CHANNELS, _PIXELS, _PIXELS)
    chains = (
        _Chain(
            name="matrix products",
            product="MatMul",
            last="ReduceMax <axes = [0]>",
            width=(_SIDE,),
            base=(_ROWS_PER_THREAD * max(2, threads), _SIDE),
            weights=(_SIDE, _SIDE),
        ),
        _Chain(
            name="convolutions",
            product="Conv <pads = [1, 1, 1, 1]>",
            last="GlobalMaxPool",
            width=(_CHANNELS, 1, 1),
            base=image,
            weights=(_CHANNELS, _CHANNELS, 3, 3),
        ),
    )
    made = [_chained(chain, kind, folder) for chain in chains for kind in ("f32", "i8")]
    return [*made, _written(EMPTY_CALL, "f32", ["y = Identity(x)"], (1,), {}, folder)]


def _chained(chain: _Chain, precision: str, folder: Path) -> Kernel:
    """Write a chain of products."""
    rng = np.random.default_rng(0)
    fan_in = int(np.prod(chain.weights[1:]))
    values: dict[str, Array] = {"base": rng.standard_normal(chain.base, np.float32)}
    lines = ["a0 = Add(x, base)"]
    if precision == "f32":
        values["w"] = rng.standard_normal(chain.weights, np.float32) / np.float32(fan_in**0.5)
        lines += [f"a{i + 1} = {chain.product}(a{i}, w)" for i in range(_DEPTH)]
        lines.append(f"y = {chain.last}(a{_DEPTH})")
    else:
        values["w"] = rng.integers(-_LARGEST, _LARGEST + 1, chain.weights, np.int8)
        values["weight_scale"] = np.array(2 / (_LARGEST * fan_in**0.5), np.float32)
        values["weight_zero"] = np.array(0, np.int8)
        values["scale"], values["zero"] = np.array(4 / 255, np.float32), np.array(0, np.uint8)
        for i in range(_DEPTH):
            lines += [
                *_quantized(i),
                f"w{i} = DequantizeLinear(w, weight_scale, weight_zero)",
                f"a{i + 1} = {chain.product}(d{i}, w{i})",
            ]
        lines += [*_quantized(_DEPTH), f"y = {chain.last}(d{_DEPTH})"]
    return _written(chain.name, precision, lines, chain.width, values, folder)


def _quantized(i: int) -> list[str]:
    return [
        f"q{i} = QuantizeLinear(a{i}, scale, zero)",
        f"d{i} = DequantizeLinear(q{i}, scale, zero)",
    ]


def _written(
    name: str,
    precision: str,
    lines: list[str],
    width: tuple[int, ...],
    values: dict[str, Array],
    folder: Path,
) -> Kernel:
    """Write a model and requests for it."""
    import onnx

    stem = f"{name} {precision}".replace(" ", "_")
    sizes = ", ".join(map(str, (1, *width)))
    body = "\n".join(lines)
    text = f"{_HEADER}\n{stem} (float[{sizes}] x) => (float y) {{\n{body}\n}}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, key) for key, value in values.items()
    )
    path = folder / f"{stem}.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    requests = np.random.default_rng(1).standard_normal((_SAMPLES, *width), np.float32)
    model = load(path).settled_by({"x": requests[0]})
    spool = write_spool(ArrayDataset({"x": requests}), folder / f"{stem}_requests")
    operations = sum(layer.operations for layer in work(model, {"x": requests[:1]}))
    return Kernel(name, precision, model, spool.folder, operations)
