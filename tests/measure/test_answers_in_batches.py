"""Answers in batches, and what proves that a graph answers each row by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk

from hasten.core.records import to_record
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.onnx import load
from hasten.measure.workbench import OpenWorker
from hasten.testing import models

HEAD = "net (float[batch, 16] x) => (float[batch, 16] y)"
GRAPHS = {
    "apart": "{ a = MatMul(x, w) y = Relu(a) }",
    "softmax over columns": "{ y = Softmax <axis = 1> (x) }",
    "softmax over rows": "{ y = Softmax <axis = 0> (x) }",
    "mean of rows": "{ m = ReduceMean <axes = [0], keepdims = 1> (x) y = Sub(x, m) }",
    "largest of all": "{ m = ReduceMax <keepdims = 1> (x) y = Div(x, m) }",
    "running sum": "{ y = CumSum(x, zero) }",
    "a batch's scale": "{ q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
    "normalized while trained": (
        "{ y, m, v = BatchNormalization <training_mode = 1> (x, one, nil, nil, one) }"
    ),
    "wrong in eights": (
        "{ s = Shape <start = 0, end = 1> (x) e = Equal(s, eight) n = Neg(x) y = Where(e, n, x) }"
    ),
    "rows reversed": (
        "{ s = Slice(x, last, first, zero, back) y = Identity(s) }"
    ),
}  # fmt: skip
PROVEN = {"apart", "softmax over columns"}
CONSTANTS = {
    "w": np.eye(16, dtype=np.float32),
    "zero": np.array([0]),
    "one": np.ones(16, np.float32),
    "nil": np.zeros(16, np.float32),
    "eight": np.array([8]),
    "last": np.array([-1]),
    "first": np.array([-(2**31)]),
    "back": np.array([-1]),
}


def answered(desk: Desk, opened: OpenWorker, rows: int, size: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((rows, 16), np.float32)
    spool = write_spool(ArrayDataset({"x": x}), desk.bench.folder / f"{rows} in {size}")
    parts = desk.bench.predict(replace(opened, batch=size), spool)
    return np.concatenate([one["logits"] for one in parts])


def test_every_sample_is_answered_once_in_batches_too(desk: Desk) -> None:
    opened = desk.open(OnnxRuntime(threads=1))
    desk.bench.chunk = 6
    lone = answered(desk, opened, 11, 1)
    assert lone.shape == (11, 4)
    for size in (2, 3, 4, 6):  # the last ones are filled up with others of their chunk
        assert np.allclose(answered(desk, opened, 11, size), lone, rtol=1e-5)


def test_a_model_that_takes_one_sample_fails_in_batches(desk: Desk, tmp_path: Path) -> None:
    desk.model = load(models.linear_classifier(tmp_path / "bench", batch=1)).settled_by(
        {"x": np.zeros(16, np.float32)}
    )
    opened = desk.open(OnnxRuntime(threads=1))
    with pytest.raises(CandidateError, match="the output 'logits' of a batch of 4 has the shape"):
        answered(desk, opened, 4, 4)


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_are_apart_only_where_no_operator_mixes_them(
    desk: Desk, tmp_path: Path, name: str
) -> None:
    import onnx
    from onnx import numpy_helper, parser

    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]>{HEAD}{GRAPHS[name]}')
    read = {given for node in proto.graph.node for given in node.input}
    for constant in read & CONSTANTS.keys():
        proto.graph.initializer.append(numpy_helper.from_array(CONSTANTS[constant], constant))
    onnx.save(proto, tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx").settled_by({"x": np.zeros(16, np.float32)})
    worker = desk.worker(OnnxRuntime(threads=1))
    asked = {"model": to_record(model), "request": to_record(model.request)}
    assert worker.ask("rows_apart", limit_s=60.0, **asked) == (name in PROVEN)
