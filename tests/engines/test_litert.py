import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.models import depthwise_cnn

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.litert.engine import LiteRt
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for


class TestLiteRt(EngineTests):
    engine = LiteRt()


@pytest.fixture
def host() -> Target:
    return replace(Target.host(), cpus=(0, 1), threads=2)


def build(path: Path, target: Target) -> Artifact:
    folder = path.parent / "built"
    folder.mkdir()
    return LiteRt().build(load(path), target, folder)


def write(folder: Path, text: str, **constants: Any) -> Path:
    proto = onnx.parser.parse_model(models.HEADER + text)
    for name, value in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def test_it_has_as_many_threads_as_it_is_told(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    for engine, threads in ((LiteRt(), "2"), (LiteRt(threads=1), "1")):
        with engine.open(artifact, host) as session:
            assert session.properties()["threads"] == threads
    assert list(LiteRt().tunings(host)) == [LiteRt(threads=1)]
    assert list(LiteRt().tunings(host.with_threads(1))) == []
    assert list(LiteRt(threads=1).tunings(host)) == []


def test_xnnpack_runs_all_of_a_network_and_says_so(host: Target, tmp_path: Path) -> None:
    artifact = build(depthwise_cnn(tmp_path), host)
    with LiteRt().open(artifact, host) as session:
        assert session.properties()["xnnpack"] == "8 of 8 operators"


def test_what_xnnpack_leaves_to_others_is_counted(host: Target, tmp_path: Path) -> None:
    text = "part (float[1, 3] x) => (float[1, 3] y) { r = Relu(x)  p = Pow(r, e)  y = Relu(p) }"
    artifact = build(write(tmp_path, text, e=np.float32(3)), host)
    with LiteRt().open(artifact, host) as session:
        assert session.properties()["xnnpack"] == "2 of 3 operators"


def test_float32_is_not_run_in_half_precision(host: Target, tmp_path: Path) -> None:
    text = "sum (float[1, 2] x) => (float[1, 2] y) { y = Add(x, w) }"
    artifact = build(write(tmp_path, text, w=np.full(2, 2048, np.float32)), host)
    with LiteRt().open(artifact, host) as session:
        answer = session.run({"x": np.full((1, 2), 0.25, np.float32)})["y"]
    np.testing.assert_array_equal(answer, 2048.25)


def test_the_artifact_is_one_file(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    assert artifact.path == tmp_path / "built" / "small_cnn.tflite"
    assert artifact.files == ()
    assert artifact.inputs == load(tmp_path / "small_cnn.onnx").inputs


def test_tflite_is_taken_as_it_is(host: Target, tmp_path: Path) -> None:
    first = build(models.small_cnn(tmp_path), host)
    model = Model(first.path, "tflite", first.inputs, first.outputs)
    (tmp_path / "again").mkdir()
    again = LiteRt().build(model, host, tmp_path / "again")
    assert again.path.read_bytes() == first.path.read_bytes()
    with LiteRt().open(again, host) as session:
        assert session.batch_sizes is None
        assert session.run(request_for(again.inputs))["logits"].shape == (1, 10)


def test_tflite_with_other_names_is_not_built(host: Target, tmp_path: Path) -> None:
    first = build(models.small_cnn(tmp_path), host)
    (tmp_path / "again").mkdir()
    for inputs, outputs, said in (
        ((replace(first.inputs[0], name="z"),), first.outputs, "the artifact has no input 'z'"),
        (first.inputs, (replace(first.outputs[0], name="z"),), "the artifact has no output 'z'"),
    ):
        with pytest.raises(CandidateError) as caught:
            LiteRt().build(Model(first.path, "tflite", inputs, outputs), host, tmp_path / "again")
        assert str(caught.value) == said


def test_shapes_may_change_and_change_back(host: Target, tmp_path: Path) -> None:
    artifact = build(models.two_inputs(tmp_path), host)
    with LiteRt().open(artifact, host) as session:
        for batch in (1, 4, 1, 2, 4):
            request = request_for(artifact.inputs, batch=batch, seed=batch)
            np.testing.assert_array_equal(session.run(request)["same_ids"], request["ids"])


def test_a_batch_that_cannot_be_planned_spoils_no_other(
    host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    artifact = build(models.small_cnn(tmp_path), host)
    one, three = (request_for(artifact.inputs, batch=size) for size in (1, 3))

    def refuse(self: Interpreter) -> None:
        raise RuntimeError("there is no memory\nfor that")

    with LiteRt().open(artifact, host) as session:
        before = session.run(one)["logits"]
        with monkeypatch.context() as patch:
            patch.setattr(Interpreter, "allocate_tensors", refuse)
            with pytest.raises(CandidateError, match=r"^LiteRT failed: there is no memory$"):
                session.run(three)
        np.testing.assert_array_equal(session.run(one)["logits"], before)
        assert session.run(three)["logits"].shape == (3, 10)


def test_other_open_sizes_than_the_batch_are_settled_to_the_request(
    host: Target, tmp_path: Path
) -> None:
    text = "wide (float[batch, width] x) => (float[batch, width] y) { y = Relu(x) }"
    model = load(write(tmp_path, text)).settled_by({"x": np.ones(5, np.float32)})
    (tmp_path / "built").mkdir()
    artifact = LiteRt().build(model, host, tmp_path / "built")
    assert [str(spec) for spec in artifact.inputs] == ["x: float32[batch, 5]"]
    with LiteRt().open(artifact, host) as session:
        assert session.run({"x": np.ones((3, 5), np.float32)})["y"].shape == (3, 5)
        with pytest.raises(CandidateError) as caught:
            session.run({"x": np.ones((1, 6), np.float32)})
    assert str(caught.value) == "LiteRT takes x: float32[batch, 5]; got [1, 6]"


@pytest.mark.parametrize(
    "nodes", ["m = ReduceMean<axes = [0]>(x)  y = Sub(x, m)", "y = Add(x, w)", "y = MatMul(v, x)"]
)
def test_a_model_that_mixes_requests_takes_one_at_a_time(
    nodes: str, host: Target, tmp_path: Path
) -> None:
    text = f"mixes (float[batch, 3] x) => (float[rows, 3] y) {{ {nodes} }}"
    constants = {"w": np.ones((1, 3), np.float32), "v": np.ones((2, 1), np.float32)}
    artifact = build(write(tmp_path, text, **constants), host)
    with LiteRt().open(artifact, host) as session:
        alone = nodes.startswith("y = Add")
        assert session.batch_sizes == (None if alone else (1,))
        assert session.run({"x": np.ones((1, 3), np.float32)})["y"].shape[1] == 3
        if not alone:
            with pytest.raises(
                CandidateError, match=r"^LiteRT takes x: float32\[1, 3\]; got \[2, 3\]$"
            ):
                session.run({"x": np.ones((2, 3), np.float32)})


def test_an_unknown_operator_is_told_in_one_line(host: Target, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        build(models.unknown_operator(tmp_path), host)
    assert str(caught.value) == "LiteRT can't take the operator Frobnicate (node 'the_culprit')"


def test_a_damaged_artifact_is_one_line(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    for content in (b"", b"nonsense" * 40, artifact.path.read_bytes()[:500]):
        artifact.path.write_bytes(content)
        with pytest.raises(CandidateError) as caught:
            with LiteRt().open(artifact, host):
                pass
        assert str(caught.value).startswith("LiteRT can't load the model: ")
        assert "\n" not in str(caught.value)


def test_a_request_of_another_type_is_one_line(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with LiteRt().open(artifact, host) as session:
        with pytest.raises(CandidateError) as caught:
            session.run({"x": np.ones((1, 16), np.float64)})
        assert session.run(request_for(artifact.inputs))["logits"].shape == (1, 4)
    assert str(caught.value).startswith(
        "LiteRT failed: Cannot set tensor: Got value of type FLOAT64"
    )


def test_an_input_that_is_missing_is_named(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with LiteRt().open(artifact, host) as session:
        with pytest.raises(CandidateError) as caught:
            session.run({})
    assert str(caught.value) == "LiteRT didn't get the input 'x'"


def test_a_closed_session_says_so(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with LiteRt().open(artifact, host) as session:
        pass
    with pytest.raises(CandidateError) as caught:
        session.run(request_for(artifact.inputs))
    assert str(caught.value) == "the session is closed: open the artifact again"


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError) as caught:
        LiteRt.version()
    assert str(caught.value) == (
        "LiteRT isn't installed (import of ai_edge_litert.interpreter halted; None in "
        "sys.modules): pip install 'hasten[litert]'"
    )


def test_nothing_is_said_on_standard_error_and_it_is_put_back(tmp_path: Path) -> None:
    import subprocess

    program = """
import sys
from pathlib import Path
from hasten.engines.litert.engine import LiteRt
from hasten.inputs.models.onnx import load
from hasten.core.target import Target
from hasten.testing import models
folder = Path(sys.argv[1])
(folder / "built").mkdir()
LiteRt().build(load(models.small_cnn(folder)), Target.host(), folder / "built")
print("after", file=sys.stderr)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("", "after\n")
