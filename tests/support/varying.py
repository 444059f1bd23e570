"""Models with outputs whose size depends on a sample's values, and engines that answer these otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from tests.support.rivals import Rival

from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.onnxruntime.engine import OnnxRuntime

_DETECTOR = """<ir_version: 9, opset_import: ["": 17]>
detector (float[N, 3, 8, 8] picture) => (float[N, 5] kind, int64[found, 3] selected, float[found, 4] boxes)
<int64[1] most = {20}, float[1] overlap = {0.3}, float[1] least = {0.8}, int64[3] by_box = {0, 4, 16},
 int64[3] by_score = {0, 1, 16}, int64[2] split = {4, 1}, int64[2] flat = {-1, 4}, int64 last = {2}> {
    c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (picture, w_first)
    a = Relu (c)
    pooled = GlobalAveragePool (a)
    features = Flatten (pooled)
    kind = MatMul (features, w_kind)
    d = Conv <pads = [1, 1, 1, 1]> (a, w_boxes)
    corners, sure = Split <axis = 1> (d, split)
    rows = Reshape (corners, by_box)
    columns = Transpose <perm = [0, 2, 1]> (rows)
    all_boxes = Sigmoid (columns)
    scored = Reshape (sure, by_score)
    scores = Sigmoid (scored)
    selected = NonMaxSuppression (all_boxes, scores, most, overlap, least)
    picked = Gather <axis = 1> (selected, last)
    candidates = Reshape (all_boxes, flat)
    boxes = Gather (candidates, picked)
}"""
_PLACES = """<ir_version: 9, opset_import: ["": 17]>
places (float[N, 6] x) => (float[N, 3] y, int64[found, 2] positive) <float zero = {0}> {
    y = MatMul (x, w)  above = Greater (x, zero)  found = NonZero (above)  positive = Transpose (found)
}"""

_LENGTHS = """<ir_version: 9, opset_import: ["": 17]>
lengths (float[N, length] x) => (float[N, 1] y, int64[found, 2] positive) <float zero = {0}> {
    y = ReduceMax <axes = [1]> (x)  above = Greater (x, zero)  found = NonZero (above)  positive = Transpose (found)
}"""


def detector(folder: Path) -> Path:
    """picture: float32[N, 3, 8, 8] -> kind: float32[N, 5], and the boxes that are left without overlaps.

    `selected` and `boxes` hold as many rows as there are boxes.
    """
    rng = np.random.default_rng(0)
    weights = {"w_first": (8, 3, 3, 3), "w_boxes": (5, 8, 3, 3), "w_kind": (8, 5)}
    return _saved(folder, _DETECTOR, {n: rng.standard_normal(s) for n, s in weights.items()})


def places(folder: Path) -> Path:
    """x: float32[N, 6] -> y: float32[N, 3], and where x is positive: int64[found, 2]."""
    return _saved(folder, _PLACES, {"w": np.random.default_rng(0).standard_normal((6, 3))})


def lengths(folder: Path) -> Path:
    """x: float32[N, length] -> y: float32[N, 1], and where x is positive: int64[found, 2]."""
    return _saved(folder, _LENGTHS, {})


def pictures(count: int, seed: int = 0) -> dict[str, Array]:
    """Samples for the detector."""
    shape = (count, 3, 8, 8)
    return {"picture": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def _saved(folder: Path, text: str, weights: Mapping[str, Array]) -> Path:
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"{model.graph.name}.onnx"
    onnx.save(model, path)
    return path


@dataclass(frozen=True)
class Changing(Rival):
    """One rival is right and quick but for the boxes.

    Attributes:
        how: "fewer" leaves out the last box, "moved" moves one of them by a hundredth, "swapped" swaps the first two.
    """

    how: str = ""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield nothing; each kind has its own."""
        yield from ()

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        with super().open(artifact, target) as session:
            yield _Changed(session, _CHANGES[self.how]) if self.how else session

    def words(self) -> str:
        return f"{super().words()} {self.how}".strip()


@dataclass(frozen=True)
class Fewer(Changing):
    """A rival that says that it is exact, and leaves out a box."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        yield cls(OnnxRuntime(), how="fewer")


@dataclass(frozen=True)
class MovedBox(Changing):
    """A rival that says that it is exact, and moves a box."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        yield cls(OnnxRuntime(), how="moved")


@dataclass(frozen=True)
class Swapped(Changing):
    """A rival that says that it is exact, and answers the same boxes in another order."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        yield cls(OnnxRuntime(), how="swapped")


@dataclass(frozen=True)
class InexactFewer(Changing):
    """A rival that doesn't say that it is exact, and leaves out a box."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        yield cls(OnnxRuntime(), how="fewer", lossy=True)


def _moved(outputs: Tensors) -> dict[str, Array]:
    boxes = outputs["boxes"].copy()
    boxes[-1:, 0] += 0.01
    return {**outputs, "boxes": boxes}


def _swapped(outputs: Tensors) -> dict[str, Array]:
    order = np.arange(len(outputs["boxes"]))
    order[:2] = order[:2][::-1]
    return {**outputs, "boxes": outputs["boxes"][order]}


def _fewer(outputs: Tensors) -> dict[str, Array]:
    return {**outputs, "selected": outputs["selected"][:-1], "boxes": outputs["boxes"][:-1]}


_CHANGES: dict[str, Callable[[Tensors], dict[str, Array]]] = {
    "fewer": _fewer,
    "moved": _moved,
    "swapped": _swapped,
}


class _Changed(Session):
    def __init__(self, inner: Session, change: Callable[[Tensors], dict[str, Array]]) -> None:
        self.inputs, self.outputs, self.batch_sizes = inner.inputs, inner.outputs, inner.batch_sizes
        self._inner, self._change = inner, change

    def run(self, inputs: Tensors) -> dict[str, Array]:
        return self._change(self._inner.run(inputs))
