import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.model import Model
from hasten.core.records import from_record, to_record
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import InputError
from hasten.inputs.models.onnx import load
from hasten.measure.candidate import Single
from hasten.passes.small_model import SmallModel
from hasten.testing.pass_tests import answers, run, samples_of

BIG = """
<ir_version: 10, opset_import: ["": 20]>
big (float[batch, 16] x) => (float[batch, 4] logits)
<float[16, 64] w1, float[64, 4] w2>
{
    [first] h = MatMul (x, w1)
    [relu] r = Relu (h)
    [last] logits = MatMul (r, w2)
}
"""
SMALL = """
<ir_version: 10, opset_import: ["": 20]>
small (float[n, 16] features) => (float[n, 4] scores)
<float[16, 4] w>
{
    [only] scores = MatMul (features, w)
}
"""


@pytest.fixture
def big(build: Any) -> Model:
    model: Model = build(BIG, "big")
    return model


@pytest.fixture
def small(build: Any) -> Model:
    model: Model = build(SMALL, "small")
    return model


def test_it_stands_in_the_originals_place_by_the_originals_names(
    big: Model, small: Model, tmp_path: Path
) -> None:
    result = run(SmallModel.of(small, big), big, tmp_path)
    assert [spec.name for spec in (*result.inputs, *result.outputs)] == ["x", "logits"]
    assert result.inputs[0].shape == ("batch", 16)
    assert result.request == big.request
    data = samples_of(big)
    with_own_names = samples_of(small)
    own = answers(small, with_own_names, tmp_path / "own")["scores"]
    np.testing.assert_array_equal(answers(result, data, tmp_path / "there")["logits"], own)


def test_tensors_that_are_called_alike_stay_apart(build: Any, tmp_path: Path) -> None:
    """Both take x and y, in another order; inside, the small one calls another tensor z."""
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        {name} ({takes}) => (float[batch, 4] {gives})
        <float[4, 4] w>
        {{
            [product] {inner} = MatMul (x, w)
            [difference] {gives} = Sub ({inner}, y)
        }}
    """
    x, y = "float[batch, 4] x", "float[batch, 4] y"
    big = build(text.format(name="big", takes=f"{x}, {y}", inner="h", gives="z"), "big")
    small = build(text.format(name="small", takes=f"{y}, {x}", inner="z", gives="out"), "small")
    result = run(SmallModel.of(small, big), big, tmp_path)
    assert [spec.name for spec in result.inputs] == ["x", "y"]
    data = samples_of(big)
    own = answers(small, data, tmp_path / "own")["out"]
    np.testing.assert_array_equal(answers(result, data, tmp_path / "there")["z"], own)


def test_a_size_that_only_the_small_model_settles_stays_settled(
    big: Model, build: Any, tmp_path: Path
) -> None:
    small = build(SMALL.replace("[n, ", "[1, "), "one")
    result = run(SmallModel.of(small, big), big, tmp_path)
    assert result.inputs[0].shape == (1, 16)
    assert result.outputs[0].shape == (1, 4)
    assert result.request == big.request


def test_weights_outside_the_file_come_along(big: Model, build: Any, tmp_path: Path) -> None:
    small = build(BIG, "small", external=True)
    result = run(SmallModel.of(small, big), big, tmp_path)
    assert [file.name for file in result.files] == ["small.onnx.data"]


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (
            "float[n, 16] features",
            "float[n, 15] features",
            "the small model takes features: float32[n, 15]; the original takes x: float32[1, 16]",
        ),
        (
            "float[n, 4] scores",
            "float[n, 5] scores",
            "the small model returns scores: float32[n, 5]; "
            "the original returns logits: float32[batch, 4]",
        ),
    ],
)
def test_a_model_of_another_task_is_refused(
    big: Model, build: Any, was: str, now: str, message: str
) -> None:
    other = build(SMALL, "small")
    own = "[15, 4] w" if "15" in now else "[16, 5] w"
    wanted = build(SMALL.replace(was, now).replace("[16, 4] w", own), "other")
    assert SmallModel.of(other, big)
    with pytest.raises(InputError) as error:
        SmallModel.of(wanted, big)
    assert str(error.value) == message


def test_it_is_lossy_and_known_by_its_content(big: Model, small: Model) -> None:
    step = SmallModel.of(small, big)
    assert not step.exact
    assert step.sha256 == small.sha256
    assert from_record(SmallModel, to_record(step)) == step
    assert to_record(step)["type"] == "little"  # as bundles have it since they were first written
    moved = dataclasses.replace(step, sha256="0")
    assert Single((moved,), OpenVino()).key != Single((step,), OpenVino()).key
    assert Single((step,), OpenVino()).label == "small model, OpenVINO"


def test_an_openvino_engine_runs_it(big: Model, small: Model, tmp_path: Path) -> None:
    result = run(SmallModel.of(small, big), big, tmp_path)
    found = answers(result, samples_of(big), tmp_path / "openvino", OpenVino())
    own = answers(
        load(small.path).settled_by({"features": np.zeros(16, np.float32)}),
        samples_of(small),
        tmp_path / "own",
    )
    np.testing.assert_allclose(found["logits"], own["scores"], atol=1e-5)
