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
    together = study._noise(study._layers, exact, SensitivityPlan(1, 4, len(exact)))
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
