"""A whole run with a smaller model beside the original."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hasten
from hasten.bundle import read
from hasten.testing.quick import quick_runs

FEATURES, HIDDEN, CLASSES = 16, 30_000, 4
X = np.random.default_rng(3).standard_normal((2400, FEATURES), dtype=np.float32)
CLEAR = np.random.default_rng(1).standard_normal((FEATURES, CLASSES)).astype(np.float32)


def small(folder: Path) -> Path:
    """Write a linear classifier, under names of its own."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "w"], ["scores"])],
        "small",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(CLEAR, "w")],
    )
    return _saved(graph, folder / "small.onnx")


def big(folder: Path) -> Path:
    """Write the same with something added that takes a hundred times as long and changes some answers."""
    rng = np.random.default_rng(2)
    weights = {
        "clear": CLEAR,
        "w1": rng.standard_normal((FEATURES, HIDDEN)),
        "w2": 0.6 * rng.standard_normal((HIDDEN, CLASSES)) / np.sqrt(HIDDEN / 2),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "wide"),
        helper.make_node("Sin", ["h"], ["s1"]),
        helper.make_node("Cos", ["s1"], ["s2"]),
        helper.make_node("Sin", ["s2"], ["s3"]),
        helper.make_node("Sin", ["h"], ["s4"]),
        helper.make_node("Mul", ["s3", "s4"], ["m"]),
        helper.make_node("MatMul", ["m", "w2"], ["more"], "narrow"),
        helper.make_node("MatMul", ["x", "clear"], ["most"], "clear"),
        helper.make_node("Add", ["most", "more"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "big",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    return _saved(graph, folder / "big.onnx")


def _saved(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(("max_drop", "asks_again"), [(0.3, False), (0.04, True)])
def test_it_answers_alone_where_that_is_enough_and_is_backed_by_the_original_elsewhere(
    tmp_path: Path, max_drop: float, asks_again: bool
) -> None:
    with quick_runs(passes=True):
        result = hasten.optimize(
            big(tmp_path),
            X,
            max_drop=max_drop,
            metric="agreement",
            little=small(tmp_path),
            engines=("onnxruntime",),
            out=tmp_path / "b.hasten",
        )
    assert result.status == "certified", result.why
    assert result.winner.label.startswith("little + ")
    assert ("cascade(" in result.winner.label) == asks_again
    assert result.winner.statistic == ("mean" if asks_again else "p50")
    assert ("by its mean" in " ".join(result.notes)) == asks_again
    assert result.speedup > 1.5
    winner = read(tmp_path / "b.hasten").winner
    assert winner.label == result.winner.label
    assert winner.passes[0]["path"] == "small.onnx"  # not where it lay
    with hasten.load(tmp_path / "b.hasten") as fast:
        found = np.concatenate([fast(X[i : i + 1])["logits"] for i in range(100)])
        share = fast.properties().get("asked again", "none")
    with quick_runs():
        timed = hasten.bench(tmp_path / "b.hasten", data=X, rounds=12)
    assert timed.bundle.statistic == result.winner.statistic
    assert ("by its mean" in " ".join(timed.notes)) == asks_again
    exact = X[:100] @ CLEAR
    assert found.shape == (100, CLASSES)
    if asks_again:
        again, of = (int(n) for n in share.split(" of "))
        assert of == 100
        assert 0 < again < of
    else:
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)


def test_a_model_of_another_task_is_refused_before_anything_is_tried(tmp_path: Path) -> None:
    with quick_runs(), pytest.raises(hasten.InputError) as error:
        hasten.optimize(big(tmp_path), X, little=tmp_path / "none.onnx", out=tmp_path / "b.hasten")
    assert str(error.value) == f"no such file: {tmp_path / 'none.onnx'}"
    assert not (tmp_path / "b.hasten.work").exists()
