import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from tests.support.models import Build

from hasten.core.model import Model
from hasten.core.records import to_record
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.passes.base import Skipped
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.openvino_graphs import PRODUCTS, bias_of, converted
from hasten.testing import models
from hasten.testing.pass_tests import NARROW, PassTests, answers, error_between, run, samples_of

F32 = OpenVino(precision="f32")


def operations(model: Model) -> dict[str, Any]:
    """Return the operations of an IR by name."""
    import openvino

    graph = openvino.Core().read_model(model.path)
    return {operation.get_friendly_name(): operation for operation in graph.get_ordered_ops()}


def is_quantized(operation: Any) -> bool:
    """Whether an operation reads its first input through a FakeQuantize."""
    return bool(operation.input_value(0).get_node().get_type_name() == "FakeQuantize")


def test_a_model_in_a_folder_with_a_comma_is_converted(tmp_path: Path) -> None:
    (tmp_path / "a,(b)").mkdir()
    model = load(models.small_cnn(tmp_path / "a,(b)"))
    assert [port.any_name for port in converted(model).inputs] == ["x"]


class TestNncfQuantization(PassTests):
    bound = 0.05
    engine = F32

    @pytest.fixture
    def value(self) -> NncfQuantization:
        return NncfQuantization(reduce_range=NARROW)

    @pytest.fixture
    def model(self, convnet: Model) -> Model:
        return convnet

    @pytest.fixture
    def idle_model(self, elementwise: Model) -> Model:
        return elementwise

    def test_products_read_quantized_inputs(self, result: Model) -> None:
        assert result.format == "openvino"
        found = operations(result)
        assert all(
            is_quantized(found[name]) for name in ("conv1/WithoutBiases", "conv2/WithoutBiases")
        )


class TestTransformer(TestNncfQuantization):
    @pytest.fixture
    def value(self) -> NncfQuantization:
        return NncfQuantization(transformer=True, reduce_range=NARROW)

    @pytest.fixture
    def model(self, attention: Model) -> Model:
        return attention

    def test_products_read_quantized_inputs(self, result: Model) -> None:
        found = operations(result)
        assert is_quantized(found["out"])

    def test_activations_are_smoothed_into_weights(self, result: Model) -> None:
        assert any("smooth_quant" in name for name in operations(result))


@pytest.mark.parametrize("preset", ["mixed", "performance"])
@pytest.mark.parametrize("fast", [True, False])
def test_every_preset_and_bias_correction_keeps_the_answers(
    convnet: Model, tmp_path: Path, preset: Literal["mixed", "performance"], fast: bool
) -> None:
    result = run(NncfQuantization(preset, fast, reduce_range=NARROW), convnet, tmp_path)
    data = samples_of(convnet)
    exact = answers(convnet, data, tmp_path / "a")
    quick = answers(result, data, tmp_path / "b", F32)
    assert 0 < error_between(exact, quick) < 0.05


def input_range(model: Model) -> tuple[float, float]:
    """Return the range that the model's input is quantized to."""
    first = operations(model)["x/fq_output_0"]
    low, high = (first.input_value(i).get_node().get_data().item() for i in (1, 2))
    return low, high


@pytest.mark.seconds
def test_the_range_of_the_samples_shows_in_the_result(convnet: Model, tmp_path: Path) -> None:
    low, high = input_range(run(NncfQuantization(), convnet, tmp_path, "small"))
    wide_low, wide_high = input_range(run(NncfQuantization(), convnet, tmp_path, "large", scale=10))
    assert wide_high - wide_low == pytest.approx(10 * (high - low), rel=0.01)
    few = input_range(run(NncfQuantization(samples=2), convnet, tmp_path, "few"))
    assert few != (low, high)


def test_symmetric_activations_are_symmetric(convnet: Model, tmp_path: Path) -> None:
    low, high = input_range(run(NncfQuantization("performance"), convnet, tmp_path))
    assert low == pytest.approx(-high * 128 / 127)


@pytest.mark.parametrize(
    ("name", "kept", "others"),
    [
        ("conv2", "conv2/WithoutBiases", "conv1/WithoutBiases"),
        ("conv1", "conv1/WithoutBiases", "conv2/WithoutBiases"),
        ("head", "head/WithoutBiases", "conv1/WithoutBiases"),
    ],
)
def test_a_kept_node_stays_in_float_with_all_that_it_became(
    convnet: Model, tmp_path: Path, name: str, kept: str, others: str
) -> None:
    found = operations(run(NncfQuantization(keep_float=(name,)), convnet, tmp_path))
    weights = found[kept].input_value(1).get_node().get_type_name()
    assert weights != "FakeQuantize"
    assert is_quantized(found[others])


def test_a_name_that_is_unknown_gets_the_nearest_ones(convnet: Model, tmp_path: Path) -> None:
    message = r"^keep_float: the model has no node 'conv3'; did you mean conv2, conv1\?$"
    with pytest.raises(InputError, match=message):
        run(NncfQuantization(keep_float=("conv3",)), convnet, tmp_path)


def test_a_node_that_openvino_merges_away_cant_be_kept(build: Any, tmp_path: Path) -> None:
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        merged (float[batch, 8] x) => (float[batch, 8] y)
        <float[8, 8] w>
        {
            [same] i = Identity (x)
            [product] y = MatMul (i, w)
        }
        """
    )
    message = r"^can't keep 'same' in float: OpenVINO merged it into another operation$"
    with pytest.raises(CandidateError, match=message):
        run(NncfQuantization(keep_float=("same",)), model, tmp_path)


def rounded(operation: Any) -> bool:
    """Whether an operation rounds, or changes the shape of what was rounded."""
    while operation.get_type_name() == "Reshape":
        operation = operation.input_value(0).get_node()
    return bool(operation.get_type_name() == "FakeQuantize")


def readers(model: Model) -> set[str]:
    """Return the operations that read rounded numbers in any place, but for changes of shape."""
    return {
        name
        for name, operation in operations(model).items()
        if operation.get_type_name() != "Reshape"
        and any(rounded(value.get_node()) for value in operation.input_values())
    }


@pytest.mark.parametrize("keep", [(), ("conv1",)])
def test_a_draft_rounds_what_nncf_rounds(
    convnet: Model, tmp_path: Path, keep: tuple[str, ...]
) -> None:
    value = NncfQuantization("performance", keep_float=keep)
    (tmp_path / "draft").mkdir()
    draft = value.draft(convnet, samples_of(convnet), tmp_path / "draft")
    assert readers(draft) == readers(run(value, convnet, tmp_path))
    first = operations(draft)["conv2/WithoutBiases"].input_value(0).get_node()
    assert first.input_value(1).get_node().get_data() == 0.0  # a Clip to 0 and more is before it


@pytest.mark.seconds
def test_a_draft_of_attention_is_nncfs(attention: Model, tmp_path: Path) -> None:
    value = NncfQuantization("mixed", transformer=True)
    (tmp_path / "draft").mkdir()
    draft = value.draft(attention, samples_of(attention), tmp_path / "draft")
    assert readers(draft) == readers(run(value, attention, tmp_path))


LSTM = """
<ir_version: 10, opset_import: ["": 20]>
recurrent (float[1, 5, 8] x) => (float[1, 4] y)
<float[1, 24, 8] w, float[1, 24, 6] r, int64[1] axis = {0}, float[8, 8] u, float[6, 4] v>
{
    [foot] f = MatMul (x, u)
    [turn] t = Transpose <perm = [1, 0, 2]> (f)
    [steps] all, last, cell = LSTM <hidden_size = 6> (t, w, r)
    [squeeze] h = Squeeze (last, axis)
    [head] y = MatMul (h, v)
}
"""


def test_a_draft_of_what_it_does_not_know_is_nncfs(build: Any, tmp_path: Path) -> None:
    model = build(LSTM)
    (tmp_path / "draft").mkdir()
    draft = NncfQuantization().draft(model, samples_of(model), tmp_path / "draft")
    kinds = [one.get_type_name() for one in operations(draft).values()]
    whole = operations(run(NncfQuantization(), model, tmp_path)).values()
    assert sorted(kinds) == sorted(one.get_type_name() for one in whole)


def test_what_is_behind_the_last_product_stays_in_float(build: Any, tmp_path: Path) -> None:
    """As boxes that a detector decodes from what its last convolution gives."""
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        decoded (float[batch, 3, 8, 8] x) => (float[batch, 8, 8, 8] y)
        <float[8, 3, 3, 3] w, float[8] b, float[8, 8, 1, 1] v>
        {
            [first] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            [gate] g = Sigmoid (c)
            [between] m = Mul (c, g)
            [last] d = Conv (m, v)
            [scale] e = Exp (d)
            [score] s = Sigmoid (d)
            [shift] y = Add (e, s)
        }
        """
    )
    result = run(NncfQuantization(), model, tmp_path)
    found = readers(result)
    assert {"first/WithoutBiases", "last"} <= found
    assert not any(name.startswith(("y", "shift", "scale")) for name in found)
    (tmp_path / "draft").mkdir()
    draft = NncfQuantization().draft(model, samples_of(model), tmp_path / "draft")
    assert not any(name.startswith(("y", "shift", "scale")) for name in readers(draft))


def test_why_it_was_skipped_is_said_in_full(elementwise: Model, tmp_path: Path) -> None:
    message = r"^nothing to quantize: there is no convolution or matrix product to quantize$"
    with pytest.raises(Skipped, match=message):
        run(NncfQuantization(), elementwise, tmp_path)


def biases(graph: Any) -> list[Any]:
    """Return the constants that a graph adds to its products."""
    found = [bias_of(one) for one in graph.get_ordered_ops() if one.get_type_name() in PRODUCTS]
    return [one.input_value(i).get_node().get_data() for one, i in filter(None, found)]


def test_the_biases_of_convolutions_are_corrected(convnet: Model, tmp_path: Path) -> None:
    import openvino

    before = biases(converted(convnet))
    after = biases(openvino.Core().read_model(run(NncfQuantization(), convnet, tmp_path).path))
    assert len(before) == len(after) == 3
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


TINY = """
<ir_version: 10, opset_import: ["": 20]>
tiny (float[batch, 4, 8, 8] x) => (float[batch, 4, 8, 8] y)
<float[4, 4, 1, 1] w, float[4] b = {1e-7, -1e-7, 1e-7, -1e-7}, float[4] d = {1e-7, 1e-7, 1e-7, 1e-7}>
{
    [first] a = Conv (x, w, b)
    [bend] r = Relu (a)
    [second] c = Conv (r, w, d)
    [end] y = Relu (c)
}
"""


def test_a_model_of_which_no_bias_can_be_corrected_is_quantized_all_the_same(
    build: Build, tmp_path: Path
) -> None:
    result = run(NncfQuantization(), build(TINY), tmp_path)
    assert is_quantized(operations(result)["first/WithoutBiases"])


def test_a_quantizer_that_changes_nothing_is_refused(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf

    monkeypatch.setattr(nncf, "quantize", lambda model, *_, **__: model)
    message = r"^NNCF left all 3 convolutions and matrix products in float$"
    with pytest.raises(CandidateError, match=message):
        run(NncfQuantization(), convnet, tmp_path)


def test_external_data_is_read(outside: Model, tmp_path: Path) -> None:
    result = run(NncfQuantization(reduce_range=NARROW), outside, tmp_path)
    data = samples_of(outside)
    exact = answers(outside, data, tmp_path / "a")
    assert 0 < error_between(exact, answers(result, data, tmp_path / "b", F32)) < 0.05


@pytest.mark.seconds
def test_a_fresh_process_sends_nothing_says_nothing_needs_no_torch_and_leaves_the_home_folder_alone(
    convnet: Model, tmp_path: Path
) -> None:
    for name in ("home", "fresh", "here"):
        (tmp_path / name).mkdir()
    program = """
        import json, socket, sys
        from pathlib import Path

        def refuse(*_):
            raise AssertionError("something wants the network")

        socket.socket.connect = refuse
        socket.getaddrinfo = refuse
        from hasten.core.absent import absent
        from hasten.inputs.models.onnx import load
        from hasten.passes.base import Pass
        from hasten.core.records import from_record
        from hasten.inputs.data.arrays import ArrayDataset
        import numpy as np

        record, source, workdir = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
        model = load(source).settled_by({"x": np.zeros((3, 16, 16), np.float32)})
        data = ArrayDataset({"x": np.ones((2, 3, 16, 16), np.float32)})
        step = from_record(Pass, record)
        with absent(step.needless):
            result = step(model, data, workdir)
        assert result.format == "openvino"
        assert "torch" not in sys.modules
        from nncf.telemetry import telemetry
        assert not telemetry._impl.consent
        # NNCF is quiet of itself where pytest is loaded, which would prove nothing.
        assert "pytest" not in sys.modules
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(program),
            json.dumps(to_record(NncfQuantization())),
            str(convnet.path),
            str(tmp_path / "fresh"),
        ],
        env={**{k: v for k, v in os.environ.items() if k != "CI"}, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "home").iterdir()) == []
    data = ArrayDataset({"x": np.ones((2, 3, 16, 16), np.float32)})
    same = NncfQuantization()(convnet, data, tmp_path / "here")  # with torch, where it is installed
    assert (tmp_path / "fresh" / "quantized.bin").read_bytes() == same.files[0].read_bytes()


@pytest.mark.parametrize("reduce_range", [True, False])
def test_weights_have_seven_bits_only_when_asked_and_depthwise_ones_never(
    convnet: Model, tmp_path: Path, reduce_range: bool
) -> None:
    result = run(NncfQuantization("performance", reduce_range=reduce_range), convnet, tmp_path)
    largest = {
        operation.get_data().ndim: int(abs(operation.get_data().astype(int)).max())
        for operation in operations(result).values()
        if operation.get_type_name() == "Constant" and operation.get_data().dtype == np.int8
    }
    product, convolution, depthwise = 2, 4, 5  # axes of their weights
    assert largest[depthwise] == 127
    bound = 64 if reduce_range else 127
    assert bound - 1 <= min(largest[product], largest[convolution])
    assert max(largest[product], largest[convolution]) <= bound
