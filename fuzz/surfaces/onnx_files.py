"""ONNX files and IR files, and the plans that the engine `compiled` makes of them."""

from __future__ import annotations

import functools
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz.messages import changed_message
from fuzz.mutation import changed_bytes, changed_leaves, changed_record, grown, like
from fuzz.outcomes import refused
from fuzz.surface import MOST_BYTES, Surface
from tests.support.models import built
from tests.support.quantized import inserted

from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.compiled.ir.reader import as_onnx
from hasten.engines.compiled.lowering import lower, lower_graph
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.source import write
from hasten.errors import HastenError
from hasten.inputs.models.onnx import load
from hasten.passes.fake_quantize import round_everywhere
from hasten.passes.openvino_graphs import behind_products, converted
from hasten.testing import models

_MOST_ELEMENTS, _MOST_AXES = 1 << 20, 32
_WORDS = ("float32", "int64", "uint8", "exp", "maximum", "sum", "copy", "x", "t0", "t1")
_BYTE_WORDS = ("int8", "int32")
_BLOCKS = """
<ir_version: 10, opset_import: ["": 20]>
blocks (float[1, 3, 12, 10] x) => (float[1, 5] y)
<float[8, 3, 3, 3] w0, float[8] b0, float[8, 1, 3, 3] w1, float[8] b1, float[8, 8, 1, 1] w2,
 float[8] b2, float[8, 16, 3, 3] w3, float[8] b3, float[8, 5] w4, float[5] b4, float[4] zoom = {1, 1, 2, 2}>
{
    [stem] s0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    [swish] s = HardSwish (s0)
    [deep] d0 = Conv <pads = [1, 1, 1, 1], group = 8> (s, w1, b1)
    [gate] d1 = Sigmoid (d0)
    [silu] d = Mul (d0, d1)
    [project] p0 = Conv (d, w2, b2)
    [turning] p = LeakyRelu <alpha = 0.1> (p0)
    [skip] r = Add (p, s)
    [both] c = Concat <axis = 1> (r, s)
    [down] n = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
    [up] u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (n, , zoom)
    [wide] v0 = Conv <pads = [1, 1, 1, 1]> (u, w3, b3)
    [cut] v = Relu (v0)
    [mean] g = GlobalAveragePool (v)
    [flat] f = Flatten (g)
    [head] y = Gemm (f, w4, b4)
}
"""
_QUOTED = re.compile(rb'"([^"]*)"')
"""Values of attributes in XML."""


def trained(folder: Path) -> Path:
    """Write a classifier of irises that scikit-learn trained."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    iris = load_iris()
    rows = iris.data.astype(np.float32)
    model = LogisticRegression(max_iter=500).fit(rows[:, :4], iris.target)
    path = folder / "iris.onnx"
    path.write_bytes(to_onnx(model, rows[:1], options={"zipmap": False}).SerializeToString())
    return path


def rounded(folder: Path) -> Path:
    """Write a small convolutional network of bytes, as a quantizer would."""
    model = inserted(onnx.load(built(folder, _BLOCKS, "blocks").path))
    path = folder / "bytes.onnx"
    onnx.save(model, path)
    return path


def settled(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the request of one row that a file states, and its outputs.

    Raises:
        HastenError: the file can't be read, or its inputs are no tensors of a settled size.
    """
    model = load(path)
    samples = {}
    for spec in model.inputs:
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in spec.shape[1:]]
        if len(shape) > _MOST_AXES or np.prod(shape, dtype=float) > _MOST_ELEMENTS:
            return (), ()
        samples[spec.name] = np.zeros(shape, spec.dtype)
    found = model.settled_by(samples)
    return found.request, found.outputs


_SEEDS = (models.linear_classifier, models.two_inputs, models.small_cnn, trained)


class OnnxFiles(Surface):
    """ONNX files, as they are read first and as the engine `compiled` reads them."""

    name = "onnx"
    most_s = 5.0
    most_mib = 256

    def seeds(self) -> list[bytes]:
        made = (*_SEEDS, rounded)
        return [make(self.folder).read_bytes() for make in made]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        kind = rng.random()
        if kind < 0.1:
            return changed_bytes(seed, rng)
        if kind < 0.15:
            return grown(seed, rng)
        for _ in range(rng.choice((1, 1, 2, 4))):
            seed = changed_message(seed, rng)
        return seed

    def check(self, data: bytes) -> str:
        path = self.folder / "input.onnx"
        path.write_bytes(data)
        try:
            request, outputs = settled(path)
        except HastenError as error:
            return refused(error)
        if not request:
            return "too large"
        try:
            lower(path, request, outputs)
        except HastenError as error:
            return f"read, then {refused(error)}"
        return "lowered"


class IrFiles(Surface):
    """Graphs of OpenVINO's IR with roundings; the first byte of an input says with which weights."""

    name = "ir"
    most_s = 5.0
    most_mib = 256

    def seeds(self) -> list[bytes]:
        import openvino

        model = built(self.folder, _BLOCKS, "blocks")
        self._request, self._outputs = settled(model.path)
        found = []
        self._weights = []
        for symmetric in (False, True):
            graph = converted(model)
            round_everywhere(graph, kept=behind_products(graph), symmetric=symmetric)
            path = self.folder / "input.xml"
            openvino.save_model(graph, path, compress_to_fp16=False)
            found.append(bytes([symmetric]) + path.read_bytes())
            self._weights.append(path.with_suffix(".bin").read_bytes())
        return found

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        which, seed = seed[:1], seed[1:]
        if rng.random() < 0.1:
            return which + changed_bytes(seed, rng)
        for _ in range(rng.choice((1, 1, 2, 4))):
            values = list(_QUOTED.finditer(seed))
            old, other = rng.choice(values), rng.choice(values)[1]
            if rng.random() < 0.5:
                numbers = [
                    int(one) if one.isdigit() else one for one in re.split(rb"(\d+)", old[1])
                ]
                at = rng.randrange(len(numbers))
                numbers[at] = (
                    like(numbers[at], rng) if isinstance(numbers[at], int) else numbers[at]
                )
                other = b"".join(b"%d" % one if isinstance(one, int) else one for one in numbers)
            seed = seed[: old.start(1)] + other + seed[old.end(1) :]
        return which + seed

    def check(self, data: bytes) -> str:
        path = self.folder / "input.xml"
        path.write_bytes(data[1:])
        path.with_suffix(".bin").write_bytes(self._weights[data[0] % len(self._weights)])
        try:
            lower_graph(as_onnx(path, self._request, self._outputs), self._request, self._outputs)
        except HastenError as error:
            return refused(error)
        return "lowered"


class Plans(Surface):
    """Plans: the first byte of an input says with which weights."""

    name = "plans"
    most_s = 10.0
    most_mib = 512

    def seeds(self) -> list[bytes]:
        made = (make(self.folder) for make in (*_SEEDS, rounded))
        pairs = [lower(path, *settled(path)) for path in made]
        self._weights = [weights for _, weights in pairs]
        self._target = Target.host()
        texts = [json.dumps(to_record(plan)).encode() for plan, _ in pairs]
        return [bytes([at]) + text for at, text in enumerate(texts)]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        record = _parsed(seed[1:])
        words = (*_WORDS, *_BYTE_WORDS, *record["tensors"])
        change = changed_leaves if rng.random() < 0.8 else changed_record
        return seed[:1] + json.dumps(change(record, rng, words)).encode()[: MOST_BYTES - 1]

    def check(self, data: bytes) -> str:
        try:
            record = json.loads(data[1:])
        except ValueError:
            return "no record"
        weights = self._weights[data[0] % len(self._weights)]
        try:
            plan: Plan = from_record(Plan, record)
            plan.check(len(weights))
            write(plan, weights, self._target)
        except HastenError as error:
            return refused(error)
        return "written"


@functools.cache
def _parsed(text: bytes) -> Any:
    return json.loads(text)
