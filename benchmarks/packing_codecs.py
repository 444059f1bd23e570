"""Codecs of packed bundles on real weights: sizes beside other coders', and how fast each decodes on one core.

    python benchmarks/packing_codecs.py [KIND ...] [--onnx FILE] [--rounds 41] [--chunk 262144]

The weights are EfficientNet-Lite0's, or an ONNX file's: fp32, fp16, bf16, fp32 of which the smaller 90% of
each tensor are zero, and int8 per channel, dense and with 50 to 97% zeros. Each tensor is coded by itself, in
chunks as the writer cuts them. A line for each kind: bytes as they are; the order-0 entropy of each tensor's
bytes (int8); zstd -19 of whole tensors; ZipNN where it is installed (fp32, fp16, bf16), the smaller of a
tensor's and of the tensor as it is; packed, and the processor time that coding takes. Then one chunk from
the middle by every codec: its size, and GB/s, median of the rounds and their middle half. Codecs take turns
within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from backports import zstd

from hasten.bundle.packing.blocks import Codecs, Coder, all_codecs
from hasten.bundle.packing.codecs.tables import counts_of, entropy_bytes
from hasten.bundle.packing.layout import Item, Piece
from hasten.bundle.packing.writer import whole_rows
from hasten.cli.demos.photos import pretrained
from hasten.core.tensors import Array

PRUNED = (50, 80, 90, 95, 97)
ZIPNN = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def kinds(state: list[Array]) -> dict[str, list[Array]]:
    """Return tensors by what they are, made of those of a network."""
    weights = [array for array in state if array.ndim > 1]
    bf16 = [(array.view(np.uint32) + 0x8000 >> 16).astype(np.uint16) for array in state]
    found = {
        "fp32": state,
        "fp16": [array.astype(np.float16) for array in state],
        "bf16": bf16,
        "fp32, 90% zeros": [pruned(array, 90) for array in weights],
        "int8": [quantized(array) for array in weights],
    }
    for percent in PRUNED:
        found[f"int8, {percent}% zeros"] = [quantized(pruned(array, percent)) for array in weights]
    return found


def efficientnet_lite0() -> list[Array]:
    tensors = pretrained().state_dict().values()
    return [tensor.numpy() for tensor in tensors if tensor.dtype.is_floating_point]


def of_onnx(file: Path) -> list[Array]:
    """Return the float32 tensors of an ONNX file, those that rows are multiplied by with an output in each row."""
    graph = onnx.load(file).graph
    turned = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    return [
        np.ascontiguousarray(array.T if name in turned and array.ndim == 2 else array)
        for name, array in found.items()
        if array.dtype == np.float32 and array.size
    ]


def raw(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def quantized(weights: Array) -> Array:
    """Return int8 that is symmetric, with a scale for each output channel."""
    rows = weights.reshape(len(weights), -1)
    scales = np.abs(rows).max(axis=1, keepdims=True) / 127
    return np.round(rows / np.where(scales, scales, 1)).astype(np.int8)


def pruned(weights: Array, percent: float) -> Array:
    """Return weights of which the smaller ones are zero."""
    least = np.quantile(np.abs(weights), percent / 100)
    return np.where(np.abs(weights) <= least, np.float32(0), weights)


def chunks(tensor: Array, size: int) -> Iterator[Array]:
    """Yield the bytes of a tensor in chunks as the writer cuts them, of at most so many elements."""
    data, width = raw(tensor), tensor.itemsize
    pieces = (Piece(0, 0, len(data)),)
    item = Item("", "", tensor.shape, width, pieces, size * width)
    step = whole_rows(item) if width == 1 else item.chunk
    for start in range(0, len(data), step):
        yield data[start : start + step]


def zipnn_bytes(kind: str, tensors: list[Array]) -> int | None:
    """Return what ZipNN makes of the tensors; None where it isn't installed, or isn't made for them."""
    try:
        from zipnn import ZipNN
    except ImportError:
        return None
    if kind not in ZIPNN:
        return None
    coder = ZipNN(bytearray_dtype=ZIPNN[kind], input_format="byte")
    total = 0
    for tensor in tensors:
        try:
            total += min(tensor.nbytes, len(coder.compress(bytearray(tensor.tobytes()))))
        except Exception:  # it fails on some that are very short
            total += tensor.nbytes
    return total


def sizes(kind: str, tensors: list[Array], coder: Coder, chunk: int) -> None:
    seconds, packed, decoded = 0.0, 0, Codecs(coder.names)
    for tensor in tensors:
        for part in chunks(tensor, chunk):
            began = time.process_time()
            block, out = coder.code(part, tensor.itemsize), np.empty(len(part), np.uint8)
            seconds += time.process_time() - began
            decoded.decode(memoryview(block), out, tensor.itemsize)
            assert (out == part).all()
            packed += len(block)
    whole = sum(tensor.nbytes for tensor in tensors)
    other = sum(len(zstd.compress(tensor.tobytes(), 19)) for tensor in tensors)
    line = (
        f"{kind}: {whole:,} B; zstd -19 {other:,}; packed {packed:,} ({packed / other:.4f} of zstd"
    )
    if tensors[0].itemsize == 1:
        bound = sum(entropy_bytes(counts_of(raw(tensor))) for tensor in tensors)
        line += f", {packed / bound:.4f} of the order-0 bound {bound:,.0f}"
    if (zipped := zipnn_bytes(kind, tensors)) is not None:
        line += f", {packed / zipped:.4f} of ZipNN's {zipped:,}"
    print(f"{line}), coded in {seconds:.1f} s of processor time", flush=True)


def speeds(tensors: list[Array], coder: Coder, chunk: int, rounds: int) -> None:
    width = tensors[0].itemsize
    data = np.concatenate([raw(tensor) for tensor in tensors])
    middle = len(data) // 2 // width * width
    data = data[middle : middle + chunk].copy()
    decoded, out = Codecs(coder.names), np.empty(len(data), np.uint8)
    blocks = {}
    for name, codec in zip(coder.names, coder.choice, strict=True):
        if not codec.widths or width in codec.widths:
            block = codec.encode(data, width, lambda part, size: coder.code(part, size, 2))
            if block is not None:
                blocks[name] = bytes([coder.names.index(name)]) + block
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(rounds):
        names = list(blocks)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            decoded.decode(memoryview(blocks[name]), out, width)
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        low, median, high = (len(data) / q / 1e9 for q in statistics.quantiles(seconds, n=4)[::-1])
        best = len(data) / min(seconds) / 1e9
        print(
            f"    {name:9} {len(blocks[name]):8,} B  {median:6.2f} GB/s ({low:.2f} to {high:.2f}; "
            f"best {best:.2f})",
            flush=True,
        )


def at_least_two(text: str) -> int:
    """Return a number of rounds: quartiles need two.

    Raises:
        argparse.ArgumentTypeError: it isn't one.
    """
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(
            f"the middle half of the times needs 2 rounds or more: got {text}"
        )
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--rounds", type=at_least_two, default=41)
    parser.add_argument("--chunk", type=int, default=1 << 18)
    given = parser.parse_args()
    coder = Coder(all_codecs())
    state = of_onnx(given.onnx) if given.onnx else efficientnet_lite0()
    for kind, tensors in kinds(state).items():
        if not given.kinds or kind in given.kinds:
            sizes(kind, tensors, coder, given.chunk)
            speeds(tensors, coder, given.chunk, given.rounds)


if __name__ == "__main__":
    main()
