"""A whole run on two LSTMs that share their weights, as a search over pairs of texts has them."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.models import built
from tests.support.quick import quick_runs

import hasten

pytestmark = pytest.mark.seconds

TWINS = """
<ir_version: 10, opset_import: ["": 20]>
twins (float[batch, 12, 64] x, float[batch, 12, 64] z) => (float[batch, 8] scores)
<float[1, 1024, 64] w, float[1, 1024, 256] r, float[1, 2048] b, float[512, 8] head>
{
    xf = Transpose <perm = [1, 0, 2]> (x)
    zf = Transpose <perm = [1, 0, 2]> (z)
    left_all, left, left_cell = LSTM <hidden_size = 256> (xf, w, r, b)
    right_all, right, right_cell = LSTM <hidden_size = 256> (zf, w, r, b)
    both = Concat <axis = 2> (left, right)
    shape = Constant <value_ints = [-1, 512]> ()
    row = Reshape (both, shape)
    scores = MatMul (row, head)
}
"""


def test_lstms_that_share_weights_keep_their_answers_in_int8(tmp_path: Path) -> None:
    model = built(tmp_path / "source", TWINS).path
    proto = onnx.load(str(model))
    for one in proto.graph.initializer:
        if len(one.dims) == 3:  # as large as those of a trained one
            values = onnx.numpy_helper.to_array(one) / 16
            one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    onnx.save(proto, str(model))
    rng = np.random.default_rng(0)
    data = {name: rng.standard_normal((400, 12, 64), np.float32) for name in ("x", "z")}
    with quick_runs(passes=True):
        result = hasten.optimize(
            model,
            data,
            out=tmp_path / "b.hasten",
            metric="agreement",
            max_drop=0.2,
            effort="quick",
            engines=["onnxruntime"],
            passes=["dynamic_quantization"],
        )
    (said,) = [said for name, said in result.tried.items() if "dynamic int8" in name]
    found = re.search(r"([-+][\d.]+) points lost", said)
    assert found, said
    assert abs(float(found[1])) < 20
