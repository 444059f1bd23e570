"""Models whose inputs have open lengths beside the batch, and whose memory grows with the square of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.support.bundles import stated
from tests.support.servers import ONE_THREAD

from hasten.bundle import part, write
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.inputs.models.onnx import load
from hasten.measure.live_bytes import growth_of
from hasten.passes.onnx_files import read_onnx
from hasten.testing import models


@dataclass(frozen=True)
class Open:
    """An input with open lengths.

    Attributes:
        name: Name of the input.
        datatype: Type of its elements, in the protocol's terms.
        longest: Largest sizes in the data of the bundle, without the batch's.
    """

    name: str
    datatype: str
    longest: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of its elements."""
        return np.dtype({"UINT8": np.uint8, "FP32": np.float32}[self.datatype])


@dataclass(frozen=True)
class OpenModel:
    """A model of such inputs.

    Attributes:
        name: Name of the model.
        inputs: Its inputs.
        text: Its graph, as ONNX text.
        batched: Whether its inputs' first axis is that of a batch.
    """

    name: str
    inputs: tuple[Open, ...]
    text: str
    batched: bool = True


MODELS = (
    OpenModel(
        "plane",
        (Open("x", "UINT8", (16, 16)),),
        """plane (uint8[batch, height, width] x) => (float[batch] y)
            <int64[2] flat = {0, -1}, int64[1] one = {1}, int64[1] two = {2}, int64[2] both = {1, 2}> {
            numbers = Cast <to = 1> (x)  row = Reshape (numbers, flat)
            each = Unsqueeze (row, one)  other = Unsqueeze (row, two)  apart = Sub (each, other)
            far = Abs (apart)  y = ReduceSum <keepdims = 0> (far, both) }""",
    ),
    OpenModel(
        "across",
        (Open("x", "FP32", (32, 32)),),
        """across (float[batch, height, width] x) => (float[batch] y)
            <int64[1] two = {2}, int64[1] three = {3}, int64[3] all = {1, 2, 3}> {
            each = Unsqueeze (x, two)  other = Unsqueeze (x, three)  apart = Sub (each, other)
            far = Abs (apart)  y = ReduceSum <keepdims = 0> (far, all) }""",
    ),
    OpenModel(
        "pairs",
        (Open("q", "FP32", (100,)), Open("k", "FP32", (200,))),
        """pairs (float[batch, first] q, float[batch, second] k) => (float[batch] y)
            <int64[1] one = {1}, int64[1] two = {2}, int64[2] both = {1, 2}> {
            each = Unsqueeze (q, two)  other = Unsqueeze (k, one)  apart = Sub (each, other)
            far = Abs (apart)  y = ReduceSum <keepdims = 0> (far, both) }""",
    ),
    OpenModel(
        "alone",
        (Open("x", "FP32", (16, 16)),),
        """alone (float[height, width] x) => (float[1] y)
            <int64[1] flat = {-1}, int64[1] zero = {0}, int64[1] one = {1}, int64[2] both = {0, 1}> {
            row = Reshape (x, flat)
            each = Unsqueeze (row, zero)  other = Unsqueeze (row, one)  apart = Sub (each, other)
            far = Abs (apart)  sum = ReduceSum <keepdims = 0> (far, both)  y = Reshape (sum, flat) }""",
        batched=False,
    ),
)
"""Models that compare each number with each of all its own, of its row, of another input, and without a batch."""


def bundles_of_lengths(folder: Path) -> list[Path]:
    """Write the bundles of `MODELS`, whose data has samples of the largest sizes and of half of them."""
    return [_bundle(folder, one) for one in MODELS]


def _bundle(folder: Path, model: OpenModel) -> Path:
    loaded = load(models.write(folder / f"{model.name}.onnx", model.text, {}))
    settled = loaded.settled_by(
        {one.name: np.zeros(one.longest, one.dtype) for one in model.inputs}
    )
    place = folder / f"built-{model.name}"
    place.mkdir()
    built = part("a label", (), ONE_THREAD, ONE_THREAD.build(settled, Target.host(), place))
    shapes = [
        {one.name: tuple(size // by for size in one.longest) for one in model.inputs}
        for by in (1, 2)
    ]
    differ = extents(settled.inputs, shapes)
    proto = read_onnx(settled, weights=False)
    growth = growth_of(proto, settled.inputs, settled.request, differ)
    path = folder / f"{model.name}.hasten"
    write(path, stated(built, None, status="exact", shapes=differ, growth=growth), {})
    return path
