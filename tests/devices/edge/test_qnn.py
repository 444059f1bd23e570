import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime_qnn", reason="needs QNN: pip install 'hasten[edge]'")

from onnx.numpy_helper import to_array
from tests.devices.edge.edge_models import Digits, FixedShapesTests, device
from tests.support.models import Build

from hasten.core.devices import FAMILIES
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.qnn import Qnn
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load, read
from hasten.optimization.grid import grid
from hasten.passes.qnn_quantization import QnnQuantization
from hasten.passes.weight_rounding import round_weights
from hasten.testing import models
from hasten.testing.engine_tests import request_for
from hasten.testing.pass_tests import (
    PassTests,
    answers,
    error_between,
    run,
    samples_of,
)


class TestQnn(FixedShapesTests):
    engine = Qnn()


class TestQnnQuantization(PassTests):
    bound = 0.05

    @pytest.fixture
    def value(self) -> QnnQuantization:
        return QnnQuantization()

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def types(self, result: Model) -> dict[str, int]:
        """Return the element type of each integer constant by name."""
        integers = {name: kind for name, kind in onnx.TensorProto.DataType.items() if "INT" in name}
        return {
            tensor.name: tensor.data_type
            for tensor in read(result.path).graph.initializer
            if tensor.data_type in integers.values()
        }

    def test_weights_are_int8_and_activations_unsigned(
        self, value: QnnQuantization, result: Model
    ) -> None:
        found = self.types(result)
        wide = {"uint8": onnx.TensorProto.UINT8, "uint16": onnx.TensorProto.UINT16}
        for name in ("w1", "w2", "w3"):
            assert found[f"{name}_quantized"] == onnx.TensorProto.INT8
        assert found["x_zero_point"] == wide[value.activations]

    def test_the_simulator_takes_all_of_it(
        self, model: Model, result: Model, tmp_path: Path
    ) -> None:
        data = samples_of(model, count=8)
        exact = answers(model, data, tmp_path / "a")
        assert 0 < error_between(exact, answers(result, data, tmp_path / "b", Qnn())) < self.bound


class TestQnnQuantizationByLayer(TestQnnQuantization):
    @pytest.fixture
    def value(self) -> QnnQuantization:
        return QnnQuantization(rounding="layer")

    def test_the_rounded_weights_are_stored_as_they_are(
        self, model: Model, result: Model, tmp_path: Path
    ) -> None:
        (tmp_path / "rounded").mkdir()
        rounded = round_weights(model, samples_of(model), tmp_path / "rounded")
        wanted = {t.name: to_array(t) for t in read(rounded.path).graph.initializer}
        stored = {t.name: to_array(t) for t in read(result.path).graph.initializer}
        for name in ("w1", "w2"):
            scale = stored[f"{name}_scale"].reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(stored[f"{name}_quantized"] * scale, wanted[name], atol=1e-6)
        np.testing.assert_allclose(
            stored["w3_quantized"] * stored["w3_scale"], wanted["w3"], atol=1e-6
        )


class TestQnnQuantizationTo16Bits(TestQnnQuantization):
    bound = 0.02

    @pytest.fixture
    def value(self) -> QnnQuantization:
        return QnnQuantization("uint16")


def phone(part: str = "sm8550") -> Target:
    return device(f"qnn:{part}")


def build_in(folder: Path, model: Model, target: Target) -> Artifact:
    folder.mkdir()
    return Qnn().build(model, target, folder)


def quantized(model: Model, tmp_path: Path, name: str = "result") -> Model:
    return run(QnnQuantization(), model, tmp_path, name)


def test_the_artifact_is_a_context_binary_with_its_source(convnet: Model, tmp_path: Path) -> None:
    model = quantized(convnet, tmp_path)
    artifact = build_in(tmp_path / "built", model, phone())
    names = [file.name for file in (artifact.path, *artifact.files)]
    assert names == ["quantized_htp.onnx", "quantized_htp_qnn.bin", "quantized.onnx"]
    assert [node.op_type for node in read(artifact.path).graph.node] == ["EPContext"]
    assert artifact.inputs == model.request
    assert [str(spec) for spec in artifact.outputs] == ["y: float32[1, 5]"]


def test_the_generation_of_the_htp_shows_in_the_answers(convnet: Model, tmp_path: Path) -> None:
    model = quantized(convnet, tmp_path)
    requests = [request_for(model.request, seed=seed) for seed in range(20)]
    found: dict[str, Array] = {}
    for part in ("sm8450", "sm8550", "sm8450"):
        artifact = build_in(tmp_path / f"built{len(found)}{part}", model, phone(part))
        with Qnn().open(artifact, phone(part)) as session:
            answer = np.concatenate([session.run(request)["y"] for request in requests])
        np.testing.assert_array_equal(found.setdefault(part, answer), answer)
    assert np.any(found["sm8450"] != found["sm8550"])


@pytest.mark.parametrize("part", FAMILIES["qnn"].parts)
def test_every_chip_that_can_be_named_is_known_to_the_compiler(part: str, tmp_path: Path) -> None:
    # Where a name isn't known, a gather in float doesn't compile.
    program = """
import sys
from pathlib import Path
from hasten.core.devices import find_target
from hasten.engines.qnn import Qnn
from hasten.inputs.models.onnx import load
from hasten.testing import models
folder = Path(sys.argv[1])
(folder / "built").mkdir()
Qnn().build(load(models.two_inputs(folder, batch=1)), find_target(sys.argv[2]), folder / "built")
"""
    command = [sys.executable, "-c", program, str(tmp_path), f"qnn:{part}"]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


def test_the_compiler_tells_a_size_and_no_time(convnet: Model, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "built", quantized(convnet, tmp_path), phone())
    estimate = Qnn().estimate(artifact, phone(), tmp_path)
    assert (estimate.source, estimate.latency_ns, estimate.rank) == (
        "compiler estimate",
        None,
        None,
    )
    assert estimate.figures == {
        "context_binary_size_bytes": artifact.files[0].stat().st_size,
    }


def test_where_it_runs_is_said(convnet: Model, tmp_path: Path) -> None:
    target = phone("sm8650")
    artifact = build_in(tmp_path / "built", convnet, target)
    with Qnn().open(artifact, target) as session:
        assert session.properties() == {"runs_on": "QNN's simulator of the HTP of sm8650"}


def test_an_operator_that_the_htp_lacks_is_named_with_its_node(
    build: Build, tmp_path: Path
) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    odd (float[batch, 8] x) => (float[batch, 8] y)
    { [first] r = Relu (x)  [culprit] a = Acosh (r)  [other] b = Acosh (x)  [sum] y = Add (a, b) }
    """
    with pytest.raises(CandidateError) as caught:
        build_in(tmp_path / "built", build(text), phone())
    assert str(caught.value) == (
        "the HTP can't take the operator Acosh (node 'culprit', and 1 more nodes)"
    )


def test_an_open_shape_is_refused(tmp_path: Path) -> None:
    model = load(models.linear_classifier(tmp_path))
    with pytest.raises(CandidateError) as caught:
        build_in(tmp_path / "built", model, phone())
    assert str(caught.value) == (
        "the HTP takes only fixed shapes: got x: float32[batch, 16]; give a sample of data to "
        "fix it"
    )


def test_an_attached_device_is_used_or_missed_aloud(convnet: Model, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "built", convnet, phone())
    attached = replace(phone(), kind="attached", system="Linux 6.1.0 x86_64")
    with pytest.raises(CandidateError) as caught:
        with Qnn().open(artifact, attached):
            pass
    assert str(caught.value) == "QNN's provider finds no HTP on this host (Linux 6.1.0 x86_64)"


def test_a_damaged_binary_is_one_line(convnet: Model, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "built", convnet, phone())
    artifact.files[0].write_bytes(b"nonsense" * 10)
    with pytest.raises(CandidateError) as caught:
        with Qnn().open(artifact, phone()):
            pass
    assert str(caught.value).startswith("QNN can't load the model: ")
    assert "\n" not in str(caught.value)


def test_a_closed_session_says_so(convnet: Model, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "built", convnet, phone())
    with Qnn().open(artifact, phone()) as session:
        pass
    with pytest.raises(CandidateError) as caught:
        session.run(request_for(artifact.inputs))
    assert str(caught.value) == "the session is closed: open the artifact again"


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(InputError) as caught:
        Qnn.version()
    assert str(caught.value) == (
        "QNN isn't installed (import of onnxruntime_qnn halted; None in sys.modules): "
        "pip install 'hasten[edge]'"
    )


def test_nothing_is_said_on_standard_output(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from hasten.engines.qnn import Qnn
from hasten.inputs.models.onnx import load
from hasten.core.target import Target
from hasten.testing import models
folder = Path(sys.argv[1])
(folder / "built").mkdir()
Qnn().build(load(models.small_cnn(folder, batch=1)), Target.host(), folder / "built")
print("after")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("after\n", "")


@pytest.mark.parametrize("name", ["conv1", "conv2", "head"])
def test_a_kept_node_is_computed_in_float16_between_integers(
    name: str, convnet: Model, tmp_path: Path
) -> None:
    model = run(QnnQuantization(keep_float=(name,)), convnet, tmp_path)
    data = samples_of(convnet, count=8)
    exact = answers(convnet, data, tmp_path / "a")
    kept = error_between(exact, answers(model, data, tmp_path / "b", Qnn()))
    everywhere = quantized(convnet, tmp_path, "everywhere")
    assert kept != error_between(exact, answers(everywhere, data, tmp_path / "c", Qnn()))
    assert 0 < kept < 0.05


def test_a_quantizer_that_changes_nothing_is_refused(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(self: QnnQuantization, source: Path, path: Path, reader: object) -> None:
        path.write_bytes(source.read_bytes())

    monkeypatch.setattr(QnnQuantization, "_quantize", copied)
    with pytest.raises(CandidateError) as caught:
        quantized(convnet, tmp_path)
    assert str(caught.value) == (
        "ONNX Runtime's quantizer left all 3 convolutions and matrix products in float"
    )


def test_the_htp_alone_is_offered_its_own_quantization(convnet: Model) -> None:
    passes = {
        type(step).__name__
        for candidate in grid(convnet, phone(), engine_names=("qnn",))
        for step in candidate.passes
    }
    assert passes == {"QnnQuantization"}
    assert list(QnnQuantization.variants(convnet, Target.host())) == []
    assert list(QnnQuantization.variants(convnet, phone())) == [
        QnnQuantization(),
        QnnQuantization(rounding="layer"),
        QnnQuantization("uint16", "layer"),
    ]


def test_without_a_layer_to_round_wider_activations_follow_the_nearest_integers(
    tmp_path: Path,
) -> None:
    model = load(models.tiny_transformer_block(tmp_path))
    assert list(QnnQuantization.variants(model, phone())) == [
        QnnQuantization(),
        QnnQuantization("uint16"),
    ]


def test_digits_are_still_read_by_the_simulator(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    model = QnnQuantization()(digits.model, digits.calibration, tmp_path / "int8")
    reads = {
        "float": choices(OnnxRuntime(), digits.model, digits.images, tmp_path / "a"),
        "onnxruntime": choices(OnnxRuntime(), model, digits.images, tmp_path / "b"),
        "qnn": choices(Qnn(), model, digits.images, tmp_path / "c"),
    }
    right = {name: float(np.mean(read == digits.labels)) for name, read in reads.items()}
    agree = float(np.mean(reads["float"] == reads["qnn"]))
    assert right["float"] > 0.97
    assert right["qnn"] > right["float"] - 0.02
    assert agree > 0.98


def choices(engine: Engine, model: Model, images: Array, folder: Path) -> Array:
    """Return which digit a model takes each image for."""
    folder.mkdir()
    artifact = engine.build(model, phone(), folder)
    with engine.open(artifact, phone()) as session:
        logits = [session.run({"x": image[None]})["output"] for image in images]
    chosen: Array = np.concatenate(logits).argmax(1)
    return chosen
