"""ONNX Runtime with the certified request's shapes settled: one at a time fast, batches all the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime, OnnxRuntimeSettled
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests

X = np.random.default_rng(0).standard_normal((5, 16), dtype=np.float32)


class TestOnnxRuntimeSettled(EngineTests):
    engine = OnnxRuntimeSettled()


@pytest.fixture
def host() -> Target:
    return Target.host().with_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(models.linear_classifier(tmp_path)).settled_by({"x": X[0]})


def built(model: Model, host: Target, folder: Path, engine: OnnxRuntime):  # type: ignore[no-untyped-def]
    folder.mkdir()
    return engine.build(model, host, folder)


def test_one_sample_and_batches_have_the_answers_of_open_shapes(
    model: Model, host: Target, tmp_path: Path
) -> None:
    settled, plain = OnnxRuntimeSettled(), OnnxRuntime()
    ours, theirs = (
        built(model, host, tmp_path / "a", settled),
        built(model, host, tmp_path / "b", plain),
    )
    with settled.open(ours, host) as session, plain.open(theirs, host) as other:
        assert session.batch_sizes is None
        for rows in (1, 5, 2, 1):
            np.testing.assert_allclose(
                session.run({"x": X[:rows]})["logits"],
                other.run({"x": X[:rows]})["logits"],
                rtol=1e-5,
            )


def test_the_open_session_is_made_when_a_batch_comes(
    model: Model, host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[type] = []
    real = OnnxRuntime._load

    def noting(self: OnnxRuntime, *args: object, **rest: object) -> object:
        opened.append(type(self))
        return real(self, *args, **rest)  # type: ignore[arg-type]

    artifact = built(model, host, tmp_path / "a", OnnxRuntimeSettled())
    monkeypatch.setattr(OnnxRuntime, "_load", noting)
    with OnnxRuntimeSettled().open(artifact, host) as session:
        session.run({"x": X[:1]})
        assert opened == [OnnxRuntimeSettled]
        session.run({"x": X[:3]})
        session.run({"x": X[:2]})
    assert opened == [OnnxRuntimeSettled, OnnxRuntime]


def test_the_first_session_knows_its_shapes(model: Model, host: Target, tmp_path: Path) -> None:
    artifact = built(model, host, tmp_path / "a", OnnxRuntimeSettled())
    loaded = OnnxRuntimeSettled()._load(artifact, host)
    assert loaded.get_inputs()[0].shape == [1, 16]
    assert loaded.get_outputs()[0].shape == [1, 4]


def test_dimensions_without_a_name_are_settled_too(host: Target, tmp_path: Path) -> None:
    path = models.two_inputs(tmp_path)
    proto = onnx.load(str(path))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    del proto.graph.value_info[:]
    onnx.save(proto, str(path))
    nameless = load(path)
    assert {spec.shape[0] for spec in nameless.inputs} == {"?"}
    one = {
        spec.name: np.zeros([int(size) for size in spec.shape[1:]], spec.dtype)
        for spec in nameless.inputs
    }
    settled = nameless.settled_by(one)
    artifact = built(settled, host, tmp_path / "a", OnnxRuntimeSettled())
    loaded = OnnxRuntimeSettled()._load(artifact, host)
    assert [value.shape[0] for value in loaded.get_inputs()] == [1] * len(nameless.inputs)
    with OnnxRuntimeSettled().open(artifact, host) as session:
        asked = {name: np.repeat(array[None], 3, 0) for name, array in one.items()}
        assert all(len(array) == 3 for array in session.run(asked).values())


def test_a_name_that_stands_for_two_sizes_is_told_apart(host: Target, tmp_path: Path) -> None:
    text = """
        pair (float[n, 3] a, float[m, n] b) => (float[n, 3] s, float[m, n] t) {
            s = Relu(a)
            t = Relu(b)
        }"""
    path = models.write(tmp_path / "pair.onnx", text, {})
    model = replace(load(path))
    request = tuple(
        replace(spec, shape=shape)
        for spec, shape in zip(model.inputs, ((1, 3), (1, 7)), strict=True)
    )
    artifact = built(replace(model, request=request), host, tmp_path / "a", OnnxRuntimeSettled())
    loaded = OnnxRuntimeSettled()._load(artifact, host)
    assert [value.shape for value in loaded.get_inputs()] == [[1, 3], [1, 7]]


def test_a_bundle_of_it_takes_batches(tmp_path: Path) -> None:
    with quick_runs():
        result = hasten.optimize(
            models.linear_classifier(tmp_path),
            np.random.default_rng(0).standard_normal((120, 16), dtype=np.float32),
            engines=("onnxruntime_settled",),
            out=tmp_path / "b",
        )
    assert not any("can't batch" in note for note in result.notes)
    with hasten.load(tmp_path / "b") as fast:
        assert fast.batch_sizes is None
        together = fast(X)["logits"]
        for row, x in zip(together, X, strict=True):
            np.testing.assert_allclose(fast(x[None])["logits"][0], row, rtol=1e-4, atol=1e-6)


def test_a_winner_that_takes_no_batches_is_named(tmp_path: Path) -> None:
    with quick_runs():
        result = hasten.optimize(
            models.linear_classifier(tmp_path),
            np.random.default_rng(0).standard_normal((120, 16), dtype=np.float32),
            engines=("tests.support.one_at_a_time:OneAtATime",),
            out=tmp_path / "b",
        )
    assert [note for note in result.notes if "can't batch" in note] == [
        "original, one at a time takes one sample per request, although the model takes batches: "
        "a server can't batch its requests"
    ]
