from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer", reason="needs LiteRT: pip install 'hasten[litert]'")

from ai_edge_litert import schema_py_generated as schema
from tests.devices.edge.edge_models import Digits, device
from tests.support.models import Build, settled

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.litert.engine import LiteRt
from hasten.engines.litert.reference import LiteRtReference
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.optimization.grid import grid
from hasten.passes.litert_quantization import LitertQuantization
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests
from hasten.testing.pass_tests import (
    PassTests,
    answers,
    error_between,
    host,
    run,
    samples_of,
)

INTEGERS = LitertQuantization(ends="int8")
WIDE = LitertQuantization(ends="int16")


class TestLiteRtReference(EngineTests):
    engine = LiteRtReference()


def types(model: Model) -> list[set[str]]:
    """Return the element types of a file's inputs, of its outputs, and of all tensors that are read."""
    names = {number: name for name, number in vars(schema.TensorType).items()}
    graph = schema.ModelT.InitFromPackedBuf(model.path.read_bytes()).subgraphs[0]
    used = {int(t) for operator in graph.operators for t in (*operator.inputs, *operator.outputs)}
    return [
        {names[graph.tensors[t].type] for t in tensors if t >= 0}
        for tensors in (graph.inputs, graph.outputs, used)
    ]


class TestIntegers(PassTests):
    bound = 0.05
    engine = LiteRtReference()

    @pytest.fixture
    def value(self) -> LitertQuantization:
        return INTEGERS

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_there_is_no_float_in_the_file(self, result: Model) -> None:
        inputs, outputs, used = types(result)
        assert (inputs, outputs) == ({"INT8"}, {"INT8"})
        assert used <= {"INT8", "INT32", "INT64"}

    def test_the_session_takes_and_gives_floats_all_the_same(
        self, model: Model, result: Model, tmp_path: Path
    ) -> None:
        assert result.inputs == model.inputs
        for name, array in answers(result, samples_of(model), tmp_path / "a", LiteRt()).items():
            assert array.dtype == np.float32, name

    def test_the_border_rounds_as_the_file_with_float_ends_does(
        self, value: LitertQuantization, model: Model, result: Model, tmp_path: Path
    ) -> None:
        with_floats = run(LitertQuantization(value.rounding), model, tmp_path, "floats")
        assert types(with_floats)[:2] == [{"FLOAT32"}, {"FLOAT32"}]
        data, engine = samples_of(model, count=64, scale=1.5), LiteRtReference()
        expected = answers(with_floats, data, tmp_path / "a", engine)
        for name, array in answers(result, data, tmp_path / "b", engine).items():
            np.testing.assert_array_equal(array, expected[name])


class TestIntegersByLayer(TestIntegers):
    @pytest.fixture
    def value(self) -> LitertQuantization:
        return LitertQuantization("layer", ends="int8")


class TestWideIntegers(PassTests):
    bound = 0.005
    engine = LiteRtReference()

    @pytest.fixture
    def value(self) -> LitertQuantization:
        return WIDE

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_activations_have_16_bits_and_weights_8(self, result: Model) -> None:
        inputs, outputs, used = types(result)
        assert (inputs, outputs) == ({"INT16"}, {"INT16"})
        assert used == {"INT8", "INT16", "INT32", "INT64"}


def test_halves_are_rounded_away_from_zero(build: Build, tmp_path: Path) -> None:
    model = build(
        '<ir_version: 10, opset_import: ["": 20]> one (float[batch, 1] x) => (float[batch, 1] y) '
        "<float[1, 1] w> { [product] y = MatMul (x, w) }"
    )
    (tmp_path / "result").mkdir()
    extremes = ArrayDataset({"x": np.array([[-128], [127]], np.float32)})
    result = INTEGERS(model, extremes, tmp_path / "result")
    (tmp_path / "built").mkdir()
    engine = LiteRtReference()
    artifact = engine.build(result, host(), tmp_path / "built")
    with engine.open(artifact, host()) as session:
        (scale,) = session._scales_in.values()  # type: ignore[attr-defined]
    halves = np.float32(scale.scale) * np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e6], np.float32)
    np.testing.assert_array_equal(
        scale.to_integers(halves) - scale.zero_point, [1, 2, 3, -1, -2, 127 - scale.zero_point]
    )


def test_what_lives_at_once_and_the_file_are_told_and_no_time(build: Build, tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    chain (float[1, 8] x) => (float[1, 4] y) <float[8, 32] a, float[32, 4] b>
    { [wide] t = MatMul (x, a)  [narrow] y = MatMul (t, b) }
    """
    (tmp_path / "built").mkdir()
    engine = LiteRtReference()
    artifact = engine.build(settled(build(text)), host(), tmp_path / "built")
    estimate = engine.estimate(artifact, device("litert"), tmp_path)
    assert (estimate.source, estimate.latency_ns, estimate.rank) == ("none", None, None)
    assert estimate.figures == {
        "file_size_bytes": artifact.path.stat().st_size,
        "activations_peak_size_bytes": 4 * (8 + 32),
    }


def test_a_node_that_stays_in_float_is_named(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = run(LitertQuantization(), convnet, tmp_path).path.read_bytes()
    monkeypatch.setattr(LitertQuantization, "_quantized", lambda *_: content)
    with pytest.raises(CandidateError) as caught:
        run(INTEGERS, convnet, tmp_path, "integers")
    assert str(caught.value).startswith("the AI Edge Quantizer left the node ")
    assert str(caught.value).endswith(" in float")


def test_nothing_can_be_kept_in_float(convnet: Model, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        run(LitertQuantization(ends="int8", keep_float=("head",)), convnet, tmp_path)
    assert str(caught.value) == ("ends=int8 can't keep any node in float: got keep_float='head'")


def test_the_edge_alone_is_offered_integers(convnet: Model) -> None:
    found = grid(convnet, device("litert"), engine_names=("litert_reference",))
    assert {step for candidate in found for step in candidate.passes} >= {INTEGERS}
    lossy = {s for candidate in found for s in candidate.passes if not s.exact}
    assert {type(step).__name__ for step in lossy} == {"LitertQuantization"}
    assert {v.ends for v in LitertQuantization.variants(convnet, Target.host())} == {"float"}


def test_wider_activations_come_last_with_the_best_rounding_that_there_is(
    convnet: Model, tmp_path: Path
) -> None:
    def variants(model: Model) -> list[LitertQuantization]:
        return list(LitertQuantization.variants(model, device("litert")))

    assert variants(convnet) == [
        INTEGERS,
        LitertQuantization("layer", ends="int8"),
        LitertQuantization("layer", ends="int16"),
    ]
    # A transformer's products are MatMul, which "layer" doesn't round.
    assert variants(settled(load(models.tiny_transformer_block(tmp_path)))) == [INTEGERS, WIDE]


@pytest.mark.parametrize(("value", "bound"), [(INTEGERS, 0.1), (WIDE, 0.01)])
def test_a_normalization_is_in_integers_too(
    tmp_path: Path, value: LitertQuantization, bound: float
) -> None:
    model = settled(load(models.tiny_transformer_block(tmp_path)))
    result = run(value, model, tmp_path)
    data = samples_of(model)
    exact = answers(model, data, tmp_path / "a")
    found = answers(result, data, tmp_path / "b", LiteRtReference())
    assert 0 < error_between(exact, found) < bound


def test_digits_are_still_read_in_integers(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "integers").mkdir()
    model = INTEGERS(digits.model, digits.calibration, tmp_path / "integers")
    assert types(model)[2] <= {"INT8", "INT32", "INT64"}
    data = ArrayDataset({"x": digits.images})
    logits = {
        "float": answers(digits.model, data, tmp_path / "a", batch=64)["output"],
        "reference": answers(model, data, tmp_path / "b", LiteRtReference())["output"],
        "xnnpack": answers(model, data, tmp_path / "c", LiteRt())["output"],
    }
    reads: dict[str, Array] = {name: array.argmax(1) for name, array in logits.items()}
    right = {name: float(np.mean(read == digits.labels)) for name, read in reads.items()}
    agree = float(np.mean(reads["float"] == reads["reference"]))
    assert right["float"] > 0.97
    assert right["reference"] > right["float"] - 0.02
    assert agree > 0.98
