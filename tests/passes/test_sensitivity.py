from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support import ragged

from hasten.core.model import Model
from hasten.errors import CandidateError
from hasten.inputs.data.ragged import RaggedDataset
from hasten.inputs.models.onnx import load
from hasten.passes.base import Skipped
from hasten.passes.sensitivity import GROUPS, SensitivityPlan, layers, planned, sensitivities
from hasten.testing.pass_tests import samples_of

TWINS = """
<ir_version: 10, opset_import: ["": 20]>
twins (float[batch, 16] x) => (float[batch, 8] y)
<float[16, 32] calm, float[32, 32] loud, float[32, 8] last>
{
    [calm] a = MatMul (x, calm)
    [relu1] ra = Relu (a)
    [loud] b = MatMul (ra, loud)
    [relu2] rb = Relu (b)
    [last] y = MatMul (rb, last)
}
"""


@pytest.fixture
def twins(build: Any) -> Model:
    """Three products; of the second's weights one is so large that int8 loses its neighbours."""
    model: Model = build(TWINS)
    proto = onnx.load(str(model.path))
    for tensor in proto.graph.initializer:
        if tensor.name == "loud":
            weights = onnx.numpy_helper.to_array(tensor).copy()
            weights[0, :] = 30 * np.abs(weights).max()
            weights[0, ::2] *= -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "loud"))
        if tensor.name == "calm":
            weights = onnx.numpy_helper.to_array(tensor).copy()
            weights[:, 0] = 0  # what the large weights are multiplied by
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "calm"))
    onnx.save(proto, str(model.path))
    return model


def test_the_layer_that_int8_suits_least_has_the_most_noise(twins: Model) -> None:
    noise = sensitivities(twins, samples_of(twins))
    assert list(noise) == ["calm", "loud", "last"]
    assert 0 < max(noise["calm"], noise["last"]) < 0.01
    assert noise["loud"] > 10 * max(noise["calm"], noise["last"])


def test_the_sum_foretells_what_all_layers_together_do(convnet: Model) -> None:
    """By the same rounding, with all layers rounded at once."""
    from hasten.passes import sensitivity

    data = samples_of(convnet)
    noise = sensitivities(convnet, data)
    assert set(noise) == {"conv1", "conv2", "head"}
    study = sensitivity._Study(convnet, data, 32, 8, 1)
    study._look()
    session = study._session(study._proto)
    exact = [session.run(study._outputs, request) for request in study._requests]
    (error,) = study._errors(study._layers, exact, SensitivityPlan(1, 4, len(exact))).values()
    (variance,) = study._variances(exact).values()
    together = error / variance
    assert sum(noise.values()) / 2 < together < sum(noise.values()) * 2


def test_a_bit_less_makes_four_times_the_noise_of_weights(twins: Model) -> None:
    data = samples_of(twins)
    eight, seven = (sensitivities(twins, data, weight_bits=bits)["loud"] for bits in (8, 7))
    assert 3 < seven / eight < 5.5


def test_both_sides_of_a_product_of_activations_are_rounded(attention: Model) -> None:
    noise = sensitivities(attention, samples_of(attention))
    assert set(noise) == {"query", "key", "value", "score", "mix", "out"}
    assert all(value > 0 for value in noise.values())


def test_samples_may_differ_in_shape(tmp_path: Path) -> None:
    """A product of activations has as many columns as its sample has tokens."""
    path = ragged.encoder(tmp_path)
    proto = onnx.load(str(path))
    (loud,) = [one for one in proto.graph.initializer if one.name == "wv"]
    weights = onnx.numpy_helper.to_array(loud).copy()
    weights[0] = 30 * np.abs(weights).max()
    loud.CopyFrom(onnx.numpy_helper.from_array(weights, "wv"))
    onnx.save(proto, str(path))
    ids = [np.arange(start, start + count) for start, count in enumerate((3, 9, 5, 7, 9, 4))]
    data = RaggedDataset({"ids": ids, "mask": [np.ones(len(one), np.int64) for one in ids]})
    model = load(path).settled_by({name: rows[0] for name, rows in data.inputs([0]).items()})
    noise = sensitivities(model, data)
    assert set(noise) == {"q", "k", "v", "scores", "states", "logits"}
    assert all(value > 0 for value in noise.values())
    assert noise["v"] > 3 * max(noise["q"], noise["k"], noise["scores"], noise["logits"])


def test_convolutions_of_pictures_that_differ_in_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (6, 9), (8, 8), (5, 5), (9, 6)]
    data = RaggedDataset({"x": [rng.normal(size=(3, *size)).astype("f4") for size in sizes]})
    model = load(ragged.convolutional(tmp_path)).settled_by({"x": data.inputs([0])["x"][0]})
    noise = sensitivities(model, data)
    assert set(noise) == {"c", "y"}
    assert all(0 < value < 0.01 for value in noise.values())


BANK = """
<ir_version: 10, opset_import: ["": 20]>
bank (float[1, 4, frames] x) => (float[1, 6, frames] y)
<float[SHAPE] filters, float[6, 1] back, int64[1] first = {0}>
{
    frames = Squeeze (x, first)
    [bank] h = PRODUCT
    g = Mul (h, back)
    y = Unsqueeze (g, first)
}
"""
"""Filters to the left of frames, as mel filters are."""


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        ("MatMul (filters, frames)", (6, 4)),
        ("Gemm (filters, frames)", (6, 4)),
        ("Gemm <transA = 1> (filters, frames)", (4, 6)),
    ],
)
def test_weights_on_the_left_have_a_scale_and_a_mean_error_for_each_of_their_rows(
    tmp_path: Path, product: str, shape: tuple[int, ...]
) -> None:
    """One filter is so large that a scale shared with it would lose the others."""
    size = ", ".join(map(str, shape))
    proto = onnx.parser.parse_model(BANK.replace("PRODUCT", product).replace("SHAPE", size))
    rng = np.random.default_rng(0)
    gains = np.array([1000, 1, 1, 1, 1, 1])
    filters = rng.normal(size=(6, 4)) * gains[:, None]
    filters = filters if shape == (6, 4) else filters.T
    for name, values in (("filters", filters), ("back", 1 / gains[:, None])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype("f4"), name))
    onnx.save(proto, str(tmp_path / "bank.onnx"))
    counts = (7, 9, 7, 5, 12)
    data = RaggedDataset({"x": [rng.normal(size=(4, count)).astype("f4") for count in counts]})
    model = load(tmp_path / "bank.onnx").settled_by({"x": data.inputs([0])["x"][0]})
    assert 0 < sensitivities(model, data)["bank"] < 0.001


def test_weights_that_are_a_vector_have_one_scale(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        pooled (float[1, frames, 8] x) => (float[1, frames] y)
        <float[8] w = {1, -1, 2, 0.5, -0.5, 1, 1, -2}>
        { [pool] y = MatMul (x, w) }
    """
    onnx.save(onnx.parser.parse_model(text), str(tmp_path / "pooled.onnx"))
    rng = np.random.default_rng(0)
    data = RaggedDataset({"x": [rng.normal(size=(count, 8)).astype("f4") for count in (7, 9, 5)]})
    model = load(tmp_path / "pooled.onnx").settled_by({"x": data.inputs([0])["x"][0]})
    assert 0 < sensitivities(model, data)["pool"] < 0.001


BOXES = """
<ir_version: 10, opset_import: ["": 20]>
boxes (float[batch, 16] x) => (OUTPUTS)
<float[16, 40] w1, float[16, 10] w2, int64 most = {10}, float overlap = {0.9}, float least = {0.0}>
{
    [corners] c = MatMul (x, w1)
    shape = Constant <value_ints = [1, 10, 4]> ()
    b = Reshape (c, shape)
    [rate] s = MatMul (x, w2)
    one = Constant <value_ints = [1, 1, 10]> ()
    scores = Reshape (s, one)
    found = NonMaxSuppression (b, scores, most, overlap, least)
    wholes = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [2]> ()
    end = Constant <value_ints = [3]> ()
    places = Slice (found, last, end, wholes)
    flat = Constant <value_ints = [-1]> ()
    index = Reshape (places, flat)
    rows = Constant <value_ints = [10, 4]> ()
    table = Reshape (b, rows)
    boxes = Gather (table, index)
}
"""
"""A detector's head: as many boxes as have a score above 0."""


def test_answers_whose_size_depends_on_values_arent_compared(build: Any) -> None:
    both = build(BOXES.replace("OUTPUTS", "float[boxes, 4] boxes, float[1, 1, 10] scores"))
    alone = build(BOXES.replace("OUTPUTS", "float[1, 1, 10] scores"), "alone")
    noise = sensitivities(both, samples_of(both))
    assert noise == sensitivities(alone, samples_of(alone))
    assert noise["rate"] > 0


def test_a_model_whose_answers_all_differ_in_size_says_so(build: Any) -> None:
    model = build(BOXES.replace("OUTPUTS", "float[boxes, 4] boxes"))
    message = r"^no layer can be quantized alone: the sizes of the answers depend on their values$"
    with pytest.raises(CandidateError, match=message):
        sensitivities(model, samples_of(model))


def test_answers_that_int8_alone_gives_another_size_arent_compared(tmp_path: Path) -> None:
    """No two samples have one shape, so nothing but the answers in int8 shows it."""
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        events (float[1, frames, 4] x) => (OUTPUTS)
        <float[4, 1] w = {1, -1, 2, 0.5}, float zero = {0}>
        {
            [rate] rates = MatMul (x, w)
            flat = Constant <value_ints = [-1]> ()
            line = Reshape (rates, flat)
            some = Greater (line, zero)
            events = Compress <axis = 0> (line, some)
        }
    """
    rng = np.random.default_rng(0)
    counts = range(900, 950, 10)
    data = RaggedDataset({"x": [rng.normal(size=(count, 4)).astype("f4") for count in counts]})
    noise = []
    for outputs in ("float[some] events, float[1, frames, 1] rates", "float[1, frames, 1] rates"):
        onnx.save(onnx.parser.parse_model(text.replace("OUTPUTS", outputs)), tmp_path / "m.onnx")
        model = load(tmp_path / "m.onnx").settled_by({"x": data.inputs([0])["x"][0]})
        noise.append(sensitivities(model, data))
    assert noise[0] == noise[1]


def test_layers_in_float16_arent_measured(build: Any) -> None:
    half = """
        <ir_version: 10, opset_import: ["": 20]>
        half (float16[batch, 16] x) => (float16[batch, 8] y)
        <float16[16, 8] w>
        { [product] y = MatMul (x, w) }
    """
    model = build(half)
    message = r"^the convolutions and matrix products are in float16, not in float32$"
    with pytest.raises(Skipped, match=message):
        sensitivities(model, samples_of(model))
    mixed = """
        <ir_version: 10, opset_import: ["": 20]>
        mixed (float[batch, 16] x) => (float[batch, 8] y)
        <float[16, 16] w1, float16[16, 8] w2>
        {
            [wide] a = MatMul (x, w1)
            h = Cast <to = 10> (a)
            [narrow] b = MatMul (h, w2)
            y = Cast <to = 1> (b)
        }
    """
    model = build(mixed, "mixed")
    assert list(sensitivities(model, samples_of(model))) == ["wide"]


def test_neighbours_in_a_deep_network_are_looked_at_together(build: Any) -> None:
    count = GROUPS + 10
    lines = "\n".join(f"[m{i}] a{i + 1} = MatMul (a{i}, w)" for i in range(count))
    deep = build(
        f"""
        <ir_version: 10, opset_import: ["": 20]>
        deep (float[batch, 4] x) => (float[batch, 4] y)
        <float[4, 4] w>
        {{
            a0 = Identity (x)
            {lines}
            y = Identity (a{count})
        }}
        """
    )
    noise = sensitivities(deep, samples_of(deep), samples=4)
    assert list(noise) == [f"m{i}" for i in range(count)]
    assert noise["m0"] == noise["m1"]


def test_a_model_without_layers_is_skipped(elementwise: Model) -> None:
    with pytest.raises(Skipped, match=r"^there is no convolution or matrix product$"):
        sensitivities(elementwise, samples_of(elementwise))


def test_answers_that_never_vary_tell_nothing(build: Any) -> None:
    model = build(
        """
        <ir_version: 10, opset_import: ["": 20]>
        constant (float[batch, 4] x) => (float[batch, 4] y)
        <float[4, 4] w>
        {
            [product] p = MatMul (x, w)
            [same] q = Sub (p, p)
            y = Identity (q)
        }
        """
    )
    message = r"^no layer can be quantized alone: the answers don't vary, or aren't finite$"
    with pytest.raises(CandidateError, match=message):
        sensitivities(model, samples_of(model))


def test_constants_are_weights_wherever_they_stand(build: Any) -> None:
    model = build(TWINS)
    found = layers(onnx.load(str(model.path)))
    assert [(layer.node.name, list(layer.weights)) for layer in found] == [
        ("calm", [1]),
        ("loud", [1]),
        ("last", [1]),
    ]


def test_the_source_is_left_alone(convnet: Model, tmp_path: Path) -> None:
    before = convnet.path.read_bytes()
    sensitivities(convnet, samples_of(convnet))
    assert convnet.path.read_bytes() == before


def test_layers_without_a_name_go_by_their_output(twins: Model) -> None:
    proto = onnx.load(str(twins.path))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, str(twins.path))
    assert list(sensitivities(twins, samples_of(twins))) == ["a", "b", "y"]


@pytest.mark.parametrize(
    ("layers", "each_s", "opening_s", "plan"),
    [
        (20, 0.001, 0.01, SensitivityPlan(20, 4, 16)),
        (20, 0.05, 0.1, SensitivityPlan(20, 4, 16)),
        (64, 0.04, 0.05, SensitivityPlan(64, 2, 8)),
        (270, 0.04, 0.1, SensitivityPlan(32, 1, 12)),
        (64, 0.4, 1.0, SensitivityPlan(8, 1, 8)),
    ],
)
def test_a_slow_model_is_looked_at_less_closely(
    layers: int, each_s: float, opening_s: float, plan: SensitivityPlan
) -> None:
    assert planned(layers, 16, each_s, opening_s, limit_s=30.0) == plan


def test_a_model_that_would_take_minutes_is_left_alone() -> None:
    with pytest.raises(
        CandidateError, match=r"^measuring 270 layers would take 2\d\d s: the limit is 30 s"
    ):
        planned(270, 16, 0.8, 1.0, limit_s=30.0)
