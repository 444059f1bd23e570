"""A whole run with a smaller model beside the original."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.support.nominal_times import Asked, nominal_times
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.target import Target
from hasten.inputs.models.onnx import load
from hasten.optimization.grid import grid
from hasten.passes.small_model import SmallModel, Student
from hasten.reporting.evidence import gathered
from hasten.reporting.rows import won

pytestmark = pytest.mark.seconds

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
        "w2": 0.45 * rng.standard_normal((HIDDEN, CLASSES)) / np.sqrt(HIDDEN / 2),
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


def latencies_of(asked: Asked) -> Sequence[int]:
    """Return what a small model takes, a cascade that asks again about every third request, and a big one."""
    if asked["engine"]["type"] == "cascade":
        return (100_000, 100_000, 900_000)
    made_of = Path(asked["artifact"]["path"]).stem
    return (100_000,) if made_of in ("small", "wrong") else (800_000,)


def _saved(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(("max_drop", "asks_again"), [(0.3, False), (0.04, True)])
def test_it_answers_alone_where_that_is_enough_and_is_backed_by_the_original_elsewhere(
    tmp_path: Path, max_drop: float, asks_again: bool
) -> None:
    with quick_runs(passes=True, races=False), nominal_times(latencies_of):
        result = hasten.optimize(
            big(tmp_path),
            X,
            max_drop=max_drop,
            metric="agreement",
            small_model=small(tmp_path),
            engines=("onnxruntime",),
            passes=(),
            out=tmp_path / "b.hasten",
        )
    assert result.status == "certified", result.why
    assert result.winner.label.startswith("small model")
    assert ("first, then the original" in result.winner.label) == asks_again
    assert result.winner.statistic == ("mean" if asks_again else "p50")
    assert ("by its mean" in " ".join(result.notes)) == asks_again
    assert result.speedup == pytest.approx(2.2 if asks_again else 8.0, rel=0.15)
    winner = read(tmp_path / "b.hasten").winner
    assert winner.label == result.winner.label
    assert winner.passes[0]["path"] == "small.onnx"  # not where it lay
    with hasten.load(tmp_path / "b.hasten") as fast:
        found = np.concatenate([fast(X[i : i + 1])["logits"] for i in range(100)])
        share = fast.properties().get("asked again", "none")
    with quick_runs(races=False), nominal_times(latencies_of):
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


def wrong(folder: Path) -> Path:
    """Write a classifier as fast as the small one, that is wrong about most."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        "wrong",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(-CLEAR, "w")],
    )
    return _saved(graph, folder / "wrong.onnx")


def test_of_several_the_ways_stand_side_by_side_and_one_is_said_to_have_won(tmp_path: Path) -> None:
    with quick_runs(passes=True, races=False), nominal_times(latencies_of):
        result = hasten.optimize(
            big(tmp_path),
            X,
            max_drop=0.3,
            metric="agreement",
            small_model=[
                Student("small", small(tmp_path), trained="by hand"),
                Student("wrong", wrong(tmp_path)),
            ],
            engines=("onnxruntime",),
            passes=("simplify",),
            budget_s=1e-3,
            notes=["made for a test"],
            out=tmp_path / "b.hasten",
        )
    assert "made for a test" in result.notes
    by_name = {way.name: way for way in result.methods}
    assert set(by_name) == {"as it is", "small", "wrong"}
    assert by_name["small"].trained == "by hand"
    assert by_name["small"].label == result.winner.label
    assert by_name["small"].said == result.why
    assert by_name["small"].ratio.estimate < by_name["as it is"].ratio.estimate
    assert result.budget_ns == 1e6
    said = won(result)
    assert said.startswith("the best method: small; ")
    assert "within the budget of 1 ms" in said
    page = (tmp_path / "b.hasten" / "report.html").read_text()
    assert "The methods for a lighter model" in page
    assert "by hand" in page
    (again,) = gathered(tmp_path / "b.hasten").result.methods[:1]
    assert again == result.methods[0]


def test_a_small_model_in_int8_is_not_quantized_again(tmp_path: Path) -> None:
    little = SmallModel(small(tmp_path), (), "0", "small", quantized=True)
    model = load(big(tmp_path)).settled_by({"x": X[0]})
    proposals = [c for c in grid(model, Target.host(), small_models=[little]) if little in c.passes]
    assert proposals
    assert all(c.passes == (little,) for c in proposals)
    assert not any(c.engine.float_only for c in proposals)


def test_a_model_of_another_task_is_refused_before_anything_is_tried(tmp_path: Path) -> None:
    with quick_runs(races=False), pytest.raises(hasten.InputError) as error:
        hasten.optimize(
            big(tmp_path), X, small_model=tmp_path / "none.onnx", out=tmp_path / "b.hasten"
        )
    assert str(error.value) == f"no such file: {tmp_path / 'none.onnx'}"
    assert not (tmp_path / "b.hasten.work").exists()
