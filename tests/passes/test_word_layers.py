"""Layers of a quantized model get 16-bit activations; the others stay as they were."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.models import built

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.engines.compiled.engine import CompiledC, read
from hasten.engines.compiled.integers import Integers
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.plan import Plan
from hasten.errors import CandidateError, InputError
from hasten.passes.base import Pass, Skipped
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization
from hasten.passes.word_layers import WordLayers
from hasten.testing.pass_tests import PassTests, answers, error_between, host, run, samples_of

RESIDUAL = """
<ir_version: 10, opset_import: ["": 20]>
residual (float[batch, 3, 12, 12] x) => (float[batch, 5] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[16, 8, 1, 1] w2, float[16] b2, float[16, 1, 3, 3] w3, float[16] b3,
 float[8, 16, 1, 1] w4, float[8] b4, float[16, 8, 1, 1] w5, float[16] b5, float[16, 5] w6, float[5] b6>
{
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [expand] e = Conv (s, w2, b2)
    [relu1] r = Relu (e)
    [depth] d = Conv <pads = [1, 1, 1, 1], group = 16> (r, w3, b3)
    [relu2] q = Relu (d)
    [project] p = Conv (q, w4, b4)
    [sum] a = Add (p, s)
    [last] l = Conv (a, w5, b5)
    [relu3] k = Relu (l)
    [pool] g = GlobalAveragePool (k)
    [flat] f = Flatten (g)
    [head] y = Gemm (f, w6, b6)
}
"""
"""An inverted residual block between a stem and a classifier."""
LAYERS = ("stem", "expand", "depth", "project", "last", "head")
QUANTIZERS = [NncfQuantization(), StaticQuantization()]


def quantized(model: Model, folder: Path, step: Pass) -> Model:
    return replace(run(step, model, folder, "quantized"), origin=model)


@pytest.fixture(scope="module", params=QUANTIZERS, ids=["NNCF", "ONNX Runtime"])
def in_int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The block in 8 bits, made once; nothing changes it."""
    folder = tmp_path_factory.mktemp("block")
    return quantized(built(folder / "source", RESIDUAL), folder, request.param)


def plan_of(model: Model, folder: Path) -> Plan:
    folder.mkdir(exist_ok=True)
    return read(CompiledC().build(model, host(), folder))[0]


def reads_words(plan: Plan) -> set[str]:
    """Layers that read 16 bits in a plan."""
    found = [one for one in plan.operations if isinstance(one, Conv8)]
    found = [one for one in found if not one.depthwise or one.kernel == (3, 3)]
    assert len(found) == len(LAYERS)
    pairs = zip(LAYERS, found, strict=True)
    return {name for name, one in pairs if one.given_type == "int16"}


@pytest.mark.parametrize("names", [("expand",), ("last",), ("project",), ("stem", "head"), LAYERS])
def test_only_the_named_layers_read_16_bits_and_nothing_becomes_float(
    in_int8: Model, tmp_path: Path, names: tuple[str, ...]
) -> None:
    mixed = run(WordLayers(names), in_int8, tmp_path)
    before, after = plan_of(in_int8, tmp_path / "before"), plan_of(mixed, tmp_path / "after")
    assert not reads_words(before)
    assert reads_words(after) == set(names)
    floats = [
        [
            one
            for one in plan.operations
            if any(plan.tensor(n).dtype == "float32" for n in one.writes)
        ]
        for plan in (before, after)
    ]
    assert len(floats[1]) <= len(floats[0]), after.operations


@pytest.mark.parametrize("names", [("last",), ("depth", "head"), LAYERS])
def test_c_gives_the_bits_of_numpy_and_is_nearer_to_the_original(
    in_int8: Model, tmp_path: Path, names: tuple[str, ...]
) -> None:
    assert in_int8.origin is not None
    data = samples_of(in_int8.origin)
    mixed = run(WordLayers(names), in_int8, tmp_path)
    exact = answers(in_int8.origin, data, tmp_path / "exact")
    found = answers(mixed, data, tmp_path / "c", CompiledC())
    numbers = answers(mixed, data, tmp_path / "numpy", Integers())
    assert found["y"].tobytes() == numbers["y"].tobytes()
    bytes_ = answers(in_int8, data, tmp_path / "bytes", CompiledC())
    near, far = error_between(exact, found), error_between(exact, bytes_)
    assert 0 < near < far
    # The file says the same to a runtime that calculates with floats.
    assert error_between(found, answers(mixed, data, tmp_path / "floats")) < 0.02


def test_the_range_stays_and_so_do_other_layers_bytes(in_int8: Model, tmp_path: Path) -> None:
    mixed = run(WordLayers(("expand",)), in_int8, tmp_path)
    proto = onnx.load(mixed.path)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    made = {node.output[0]: node for node in proto.graph.node}

    def ends(node: onnx.NodeProto) -> Array:
        scale, zero = (constants[name] for name in node.input[1:3])
        kind = np.iinfo(zero.dtype)
        found: Array = (np.array([kind.min, kind.max]) - zero.astype(float)) * scale
        return found

    narrowed = [
        (node, made[made[node.input[0]].input[0]])
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.output[0].endswith(":byte")
    ]
    for node, wide in narrowed:
        np.testing.assert_allclose(ends(node), ends(wide), rtol=1e-5)
    wide = [one for one in constants.values() if one.dtype == np.uint16]
    assert wide


def in_pairs(folder: Path, build: Any, attributes: str = "", more: str = "") -> Model:
    """Return four products of one rounded input, which two nodes change back, each for two of them."""
    model = build(
        """<ir_version: 10, opset_import: ["": 20]>
        four (float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w> {
            [one] a = MatMul (x, w)  [two] b = MatMul (x, w)  [three] c = MatMul (x, w)  [four] d = MatMul (x, w)
            [all] y = Sum (a, b, c, d) }"""
    )
    text = f"""<ir_version: 10, opset_import: ["": 20]>
        four (float[batch, 4] x) => (float[batch, 4] y{more})
        <float s = {{0.03125}}, uint8 z = {{128}}, float ws = {{0.01}}, int8 wz = {{0}}, int8[4, 4] q =
        {{1, 20, -30, 4, 50, -6, 70, 8, -9, 100, 11, -12, 13, 14, -15, 16}}> {{
            [round] r = QuantizeLinear {attributes} (x, s, z)
            [back] e = DequantizeLinear (r, s, z)  [again] f = DequantizeLinear (r, s, z)
            [weights] w = DequantizeLinear (q, ws, wz)
            [one] a = MatMul (e, w)  [two] b = MatMul (e, w)  [three] c = MatMul (f, w)  [four] d = MatMul (f, w)
            [all] y = Sum (a, b, c, d) }}"""
    file = folder / "pairs.onnx"
    onnx.save(onnx.parser.parse_model(text), file)
    made: Model = replace(model, path=file, files=(), origin=model)
    return made


def test_nodes_that_round_again_have_names_of_their_own(build: Any, tmp_path: Path) -> None:
    pairs = in_pairs(tmp_path, build, "<axis = 0, saturate = 1>")
    mixed = run(WordLayers(("one", "three")), pairs, tmp_path)
    proto = onnx.load(mixed.path)
    names = [node.name for node in proto.graph.node]
    assert len(names) == len(set(names)) == 13
    data = samples_of(pairs)
    found = answers(mixed, data, tmp_path / "mixed")
    assert 0 < error_between(answers(pairs, data, tmp_path / "pairs"), found) < 0.05


@pytest.mark.parametrize(
    ("attributes", "more"), [("", ", uint8[batch, 4] r"), ("<output_dtype = 2>", "")]
)
def test_a_rounding_whose_type_is_stated_elsewhere_stays(
    build: Any, tmp_path: Path, attributes: str, more: str
) -> None:
    """As an output of the model, or by the attribute that operator set 21 brought."""
    with pytest.raises(CandidateError, match="none of the 1 layers reads 8 bits"):
        run(WordLayers(("one",)), in_pairs(tmp_path, build, attributes, more), tmp_path)


def test_an_input_that_is_left_out_is_not_taken_for_an_output_that_is(
    build: Any, tmp_path: Path
) -> None:
    """Both have an empty name, as a Clip's lower bound and a GRU's answers to each step here."""
    model = build(
        """<ir_version: 10, opset_import: ["": 21]>
        two (float[1, 2, 4] x) => (float[1, 2, 3] y, float[1, 2, 2] h)
        <float[1, 6, 4] gw, float[1, 6, 2] gr, float s = {0.03125}, uint8 z = {128}, float most = {2},
         float ws = {0.01}, int8 wz = {0}, int8[4, 3] q = {1, 20, -30, 4, 50, -6, 70, 8, -9, 100, 11, -12}> {
            [far] r = QuantizeLinear (x, s, z)  [afar] e = DequantizeLinear (r, s, z)
            [near] n = QuantizeLinear (x, s, z)  [anear] f = DequantizeLinear (n, s, z)
            [recur] steps, h = GRU <hidden_size = 2> (e, gw, gr)
            [bound] c = Clip (f, least, most)
            [weights] w = DequantizeLinear (q, ws, wz)  [one] y = MatMul (c, w) }"""
    )
    proto = onnx.load(model.path)
    nodes = {node.name: node for node in proto.graph.node}
    nodes["recur"].output[0] = nodes["bound"].input[1] = ""
    onnx.save(proto, model.path)
    mixed = onnx.load(run(WordLayers(("one",)), replace(model, origin=model), tmp_path).path)
    zeros = {node.name: node.input[2] for node in mixed.graph.node if node.op_type[0] in "QD"}
    assert zeros["near"] != "z"
    assert zeros["far"] == "z"


def test_what_cannot_be_done_is_said(in_int8: Model, tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="no layer is named"):
        run(WordLayers(()), in_int8, tmp_path, "a")
    with pytest.raises(InputError, match="no node 'expnd'; did you mean expand"):
        run(WordLayers(("expnd",)), in_int8, tmp_path, "b")
    with pytest.raises(CandidateError, match="none of the 1 layers reads 8 bits"):
        run(WordLayers(("relu1",)), in_int8, tmp_path, "c")
    with pytest.raises(CandidateError, match="the original model is missing"):
        run(WordLayers(("expand",)), replace(in_int8, origin=None), tmp_path, "d")


def test_a_profile_says_which_layers_calculate_with_16_bits(in_int8: Model, tmp_path: Path) -> None:
    assert in_int8.origin is not None
    mixed = run(WordLayers(("last",)), in_int8, tmp_path)
    (tmp_path / "built").mkdir()
    artifact = CompiledC().build(mixed, host(), tmp_path / "built")
    data = samples_of(in_int8.origin)
    steps = CompiledC().profile(artifact, host(), [data.inputs([0])])
    found = [step.precision for step in steps if step.operator in ("Conv8", "Conv16")]
    assert {"i8", "i16"} == set(found)


def test_a_label_says_how_many_layers() -> None:
    assert WordLayers(("a",)).words() == "1 layer with 16-bit activations"
    assert WordLayers(("a", "b")).words() == "2 layers with 16-bit activations"


class TestConformance(PassTests):
    bound = 0.05
    engine = CompiledC()

    @pytest.fixture
    def value(self) -> Pass:
        return WordLayers(("expand", "last"))

    @pytest.fixture
    def model(self, build: Any, tmp_path: Path) -> Model:
        return quantized(build(RESIDUAL), tmp_path, StaticQuantization())

    @pytest.fixture
    def idle_model(self, model: Model) -> Model:
        return model

    def test_nothing_to_do_is_skipped_with_a_reason(
        self, value: Pass, idle_model: Model, tmp_path: Path
    ) -> None:
        with pytest.raises(Skipped, match="no layer is named"):
            run(WordLayers(()), idle_model, tmp_path)

    def test_a_draft_of_nothing_is_skipped_too(
        self, value: Pass, idle_model: Model, tmp_path: Path
    ) -> None:
        with pytest.raises(Skipped, match="no layer is named"):
            WordLayers(()).draft(idle_model, samples_of(idle_model), tmp_path)
