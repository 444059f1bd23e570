"""A classifier whose highest score isn't the class that it gives itself, as of NuSVC with two classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.quick import quick_runs

import hasten

REVERSED = """
<ir_version: 8, opset_import: ["" : 13]>
reversed (float[n, 2] x) => (int64[n] label, float[n, 2] scores)
{
  label = ArgMax <axis: int = 1, keepdims: int = 0> (x)
  scores = Neg (x)
}
"""


@pytest.mark.seconds
@pytest.mark.parametrize("metric", [None, "top1@label"])
def test_a_low_accuracy_names_the_output_of_classes(tmp_path: Path, metric: str | None) -> None:
    onnx.save(onnx.parser.parse_model(REVERSED), tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((300, 2), np.float32)
    with quick_runs(races=False):
        result = hasten.optimize(
            tmp_path / "model.onnx",
            (x, x.argmax(axis=1)),
            metric=metric,
            engines=("onnxruntime",),
            out=tmp_path / "out.hasten",
        )
    own = [note for note in result.notes if "own accuracy is" in note]
    hint = "if the labels are the numbers that the output 'label' gives, name it: metric=\"top1@label\""
    assert (hint in own[0]) == (metric is None)
    assert ("is 0.0%" in own[0]) == (metric is None)
