"""Models whose first axis may be time instead of the batch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.errors import InputError

WITH_OTHER_NAMES = "(float[T, N, 8] x) => (float[N, 3] y) { m = MatMul(x, w) y = ReduceMean<keepdims=0>(m, first) }"
STEPS = "(float[T, N, 8] x) => (float[T, N, 3] y) { y = MatMul(x, w) }"
UNNAMED = "(float[seq_len, batch, 8] x) => (float[p, q, 3] y) { y = MatMul(x, w) }"
BATCH_FIRST = "(float[N, T, 8] x) => (float[N, T, 3] y) { y = MatMul(x, w) }"
NEITHER = "(float[batch, steps, 8] x) => (float[out, 3] y) { m = MatMul(x, w) y = ReduceMean<keepdims=0>(m, first) }"
NOTE = "axis 0 of x: float32[T, N, 8] is taken as the batch: if it is time, give samples [T, 1, 8]"


def model(folder: Path, signature: str) -> Path:
    graph = onnx.parser.parse_graph(f"g {signature}")
    weights = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    if "first" in signature:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("signature", "shape", "note"),
    [
        (WITH_OTHER_NAMES, (5, 8), NOTE),
        (WITH_OTHER_NAMES, (5, 1, 8), None),
        (WITH_OTHER_NAMES, None, NOTE),
        (STEPS, (5, 8), NOTE),
        (
            UNNAMED,
            (5, 8),
            "axis 0 of x: float32[seq_len, batch, 8] is taken as the batch: if it is time, give samples [seq_len, 1, 8]",
        ),
        (BATCH_FIRST, (5, 8), None),
        (NEITHER, (5, 8), None),
    ],
)
def test_a_first_axis_that_may_be_time_is_noted(
    tmp_path: Path, signature: str, shape: tuple[int, ...] | None, note: str | None
) -> None:
    data = None
    if shape is not None:
        data = {"x": np.random.default_rng(0).standard_normal((99, *shape), np.float32)}
    with quick_runs(races=False):
        result = hasten.optimize(
            model(tmp_path, signature),
            data,
            metric=None if data is None else "regression:0.1",
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
        )
    assert [one for one in result.notes if "axis 0" in one] == ([] if note is None else [note])


def test_answers_that_no_metric_reads_since_time_comes_first_are_explained(tmp_path: Path) -> None:
    data = {"x": np.zeros((99, 5, 8), np.float32) + np.arange(99, dtype=np.float32)[:, None, None]}
    with quick_runs(races=False), pytest.raises(InputError) as error:
        hasten.optimize(
            model(tmp_path, WITH_OTHER_NAMES),
            data,
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
        )
    assert str(error.value).startswith(
        "no metric was named, and only you know how far the numbers of y: float32[n, N, 3] may be off: "
    )
    assert str(error.value).endswith(f"; {NOTE}")


def test_numbers_of_a_graphs_nodes_are_no_class_scores(tmp_path: Path) -> None:
    nodes = np.random.default_rng(0).standard_normal((99, 5, 8), np.float32)
    with pytest.raises(InputError) as error:
        hasten.optimize(
            model(tmp_path, "(float[nodes, 8] x) => (float[nodes, 3] y) { y = MatMul(x, w) }"),
            {"x": nodes},
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
        )
    assert str(error.value).startswith(
        "no metric was named, and only you know how far the numbers of y: float32[n, nodes, 3] may be off: "
    )
