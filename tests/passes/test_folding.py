"""The end of an image pipeline moves into the model's graph, and no answer changes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import defs
from tests.support.models import CONVNET, built

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Engine
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, ToLayout
from hasten.passes.base import Pass, Skipped
from hasten.passes.folding import folded

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIPELINE = Pipeline((CenterCrop((16, 16)), IMAGENET, ToLayout()))


def pixels(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def answers(model: Model, batch: Array) -> Any:
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    return session.run(None, {model.inputs[0].name: batch})[0]


def check_same(model: Model, pipeline: Pipeline, folder: Path, *pictures: Array) -> Model:
    """Check that the folded model answers pictures as the model does; return it."""
    made, shorter = folded(model, pipeline, folder)
    assert shorter.steps[-1] == ToLayout("HWC", "uint8")
    assert shorter.whole.steps[-2:] == pipeline.steps[-2:]
    batch = np.stack([shorter(picture) for picture in pictures])
    assert batch.dtype == np.uint8
    wanted = answers(model, np.stack([pipeline(picture) for picture in pictures]))
    np.testing.assert_array_equal(answers(made, batch), wanted)
    return made


def test_pixels_go_in_and_the_same_answers_come_out(tmp_path: Path) -> None:
    model = built(tmp_path, CONVNET)
    made = check_same(model, PIPELINE, tmp_path, pixels(20, 31), pixels(16, 16, 1))
    assert made.inputs == (TensorSpec("x", "uint8", ("batch", 16, 16, 3)),)
    assert load(made.path).inputs == made.inputs
    assert made.outputs == model.outputs


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20, defs.onnx_opset_version()])
def test_every_operator_set_since_9_is_taken(tmp_path: Path, opset: int) -> None:
    text = f"""
        <ir_version: 4, opset_import: ["": {opset}]>
        old (float[n, 3, h, w] photo) => (float[n, 5, 1, 1] y) <float[5, 3, 3, 3] w1, float[5] b1> {{
            c = Conv <pads = [1, 1, 1, 1]> (photo, w1, b1)
            y = GlobalAveragePool (c)
        }}"""
    made, _ = folded(_loaded(tmp_path, text), PIPELINE, tmp_path)
    assert made.inputs[0] == TensorSpec("photo", "uint8", ("n", "h", "w", 3))
    if opset > 22:  # newer than the installed ONNX Runtime may be
        onnx.checker.check_model(str(made.path), full_check=True)
        return
    for height, width in ((16, 16), (33, 17), (5, 8)):
        pipeline = Pipeline((CenterCrop((height, width)), IMAGENET, ToLayout()))
        check_same(_loaded(tmp_path, text), pipeline, tmp_path, pixels(40, 40))


def _loaded(folder: Path, text: str) -> Model:
    """Write ONNX text, and give its weights at random."""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(3)
    for value in proto.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        weight = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
    del proto.graph.value_info[:]
    path = folder / "model.onnx"
    onnx.save(proto, str(path))
    return load(path)


def test_a_model_with_channels_last_is_taken(tmp_path: Path) -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        last (float[n, 16, 16, 3] image) => (float[n, 16, 16, 4] y) <float[3, 4] w> {
            y = MatMul (image, w)
        }"""
    pipeline = Pipeline((CenterCrop(16), IMAGENET, ToLayout("HWC")))
    made = check_same(_loaded(tmp_path, text), pipeline, tmp_path, pixels(17, 30))
    assert "Transpose" not in [node.op_type for node in onnx.load(str(made.path)).graph.node]


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_a_model_of_gray_pictures_is_taken(tmp_path: Path, layout: Any) -> None:
    shape = "n, 1, 16, 16" if layout == "CHW" else "n, 16, 16, 1"
    text = f"""
        <ir_version: 8, opset_import: ["": 17]>
        gray (float[{shape}] x) => (float[{shape}] y) {{
            y = Abs (x)
        }}"""
    steps = (CenterCrop(16), Normalize((0.1307,), (0.3081,)), ToLayout(layout))
    pipeline = Pipeline((Decode(colors="gray"), *steps))
    made = check_same(_loaded(tmp_path, text), pipeline, tmp_path, pixels(17, 30))
    assert made.inputs == (TensorSpec("x", "uint8", ("n", 16, 16, 1)),)
    with pytest.raises(Skipped, match="3 channels, not 1"):
        folded(built(tmp_path, CONVNET), Pipeline((*steps[:2], ToLayout())), tmp_path)


@pytest.mark.parametrize(
    ("decode", "normalize", "channels"),
    [
        (Decode(colors="gray"), IMAGENET, 1),  # one channel becomes three
        (Decode(), Normalize((0.5,), (0.25,)), 3),
        (Decode(colors="BGR"), IMAGENET, 3),
    ],
)
def test_a_model_of_three_channels_may_take_pixels_of_one_and_one_mean_for_all(
    tmp_path: Path, decode: Decode, normalize: Normalize, channels: int
) -> None:
    model = built(tmp_path, CONVNET)
    pipeline = Pipeline((decode, CenterCrop(16), normalize, ToLayout()))
    made = check_same(model, pipeline, tmp_path, pixels(20, 31), pixels(16, 16, 1))
    assert made.inputs == (TensorSpec("x", "uint8", ("batch", 16, 16, channels)),)


def test_a_model_in_half_precision_is_taken(tmp_path: Path) -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        half (float16[n, 3, 16, 16] x) => (float16[n, 3, 16, 16] y) {
            y = Abs (x)
        }"""
    pipeline = Pipeline((CenterCrop(16), IMAGENET, ToLayout("CHW", "float16")))
    check_same(_loaded(tmp_path, text), pipeline, tmp_path, pixels(17, 30))


def test_a_value_that_inner_graphs_read_and_names_that_are_taken_are_no_matter(
    tmp_path: Path,
) -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        inner (float[1, 3, 16, 16] x) => (float[1, 3, 16, 16] y)
            <float zero = {0.0}> {
            s = ReduceSum <keepdims = 0> (x)
            positive = Greater (s, zero)
            y = If (positive) <
                then_branch = yes () => (float[1, 3, 16, 16] a) { a = Neg (x) },
                else_branch = no () => (float[1, 3, 16, 16] b) { b = Abs (x) }
            >
        }"""
    model = _loaded(tmp_path, text)
    proto = onnx.load(str(model.path))
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = "hasten/pixels/normalized"
    onnx.save(proto, str(model.path))
    for picture in (pixels(16, 16), np.zeros((16, 16, 3), np.uint8)):
        check_same(model, PIPELINE, tmp_path, picture)


def test_weights_outside_the_file_stay_outside(tmp_path: Path) -> None:
    model = built(tmp_path, CONVNET, external=True)
    assert model.files
    assert check_same(model, PIPELINE, tmp_path, pixels(16, 16)).files


def test_weights_that_are_listed_as_inputs_stay_weights(tmp_path: Path) -> None:
    model = built(tmp_path, CONVNET)
    proto = onnx.load(str(model.path))
    proto.ir_version = 3
    for weight in proto.graph.initializer:
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
    onnx.save(proto, str(model.path))
    check_same(load(model.path), PIPELINE, tmp_path, pixels(16, 16))


@pytest.mark.parametrize(
    ("text", "pipeline", "words"),
    [
        (
            CONVNET.replace("float[batch, 3", "float[batch, 1").replace(
                "16, 3, 3, 3", "16, 1, 3, 3"
            ),
            PIPELINE,
            "the model takes x: float32[batch, 1, 16, 16]: 1 channels, not 3",
        ),
        (
            CONVNET,
            Pipeline((CenterCrop(16), ToLayout("CHW"))),
            "the pipeline doesn't end in normalize and to_layout",
        ),
        (
            CONVNET,
            Pipeline((CenterCrop(16), ToLayout("CHW", "uint8"))),
            "the model already takes uint8",
        ),
        (
            CONVNET,
            Pipeline((IMAGENET, ToLayout("CHW", "float16"))),
            "the model takes x: float32[batch, 3, 16, 16], not images in float16",
        ),
        (
            """
            <ir_version: 8, opset_import: ["": 17]>
            same (float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] x, float[1, 3, 4, 4] y) {
                y = Abs (x)
            }""",
            PIPELINE,
            "the model returns its input 'x' as an output",
        ),
        (
            """
            <ir_version: 8, opset_import: ["": 8]>
            old (float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] y) {
                y = Abs (x)
            }""",
            PIPELINE,
            "the model has operator set 8; 9 or newer is needed",
        ),
        (
            """
            <ir_version: 8, opset_import: ["": 17]>
            two (float[1, 3, 4, 4] x, float[1, 3, 4, 4] z) => (float[1, 3, 4, 4] y) {
                y = Add (x, z)
            }""",
            PIPELINE,
            "the model has 2 inputs, not one",
        ),
    ],
)
def test_what_can_not_be_folded_is_left_and_said(
    tmp_path: Path, text: str, pipeline: Pipeline, words: str
) -> None:
    with pytest.raises(Skipped) as error:
        folded(_loaded(tmp_path, text), pipeline, tmp_path)
    assert str(error.value) == words


def _exported(module: Any, folder: Path, side: int) -> Model:
    import torch

    path = folder / "model.onnx"
    torch.onnx.export(
        module.eval(),
        (torch.zeros(1, 3, side, side),),
        str(path),
        dynamo=False,
        input_names=["input.1"],
        dynamic_axes={"input.1": {0: "n"}},
    )
    return load(path)


Forms = tuple[tuple[Model, Pipeline], tuple[Model, Pipeline]]


@pytest.fixture(
    scope="module",
    params=[
        ("tf_mobilenetv3_small_minimal_100", 97, {}),  # pads by itself, unevenly
        pytest.param(("tf_efficientnet_lite0", 97, {}), marks=pytest.mark.seconds),
        ("resnet18", 64, {"layers": (1, 1, 1, 1)}),  # pads in the convolution
        ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 2}),  # pads nothing
        # Its first convolution is like that of vit_tiny, with smaller patches.
        pytest.param(("convnext_atto", 65, {"depths": (1, 1, 1, 1)}), marks=pytest.mark.slow),
    ],
    ids=lambda architecture: architecture[0],
)
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """A real architecture with its pipeline, before and after folding; of few blocks where it may."""
    import timm
    import torch

    name, side, fewer = request.param
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, num_classes=10, **fewer)
    folder = tmp_path_factory.mktemp(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _exported(module, folder, side)
    pipeline = Pipeline((CenterCrop(side), IMAGENET, ToLayout()))
    return (model, pipeline), folded(model, pipeline, folder)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "litert"])
def test_real_architectures_answer_the_same_on_every_engine(
    tmp_path: Path, forms: Forms, engine: str
) -> None:
    target = Target.host().with_threads(1)
    runtime = next(iter(Engine.member(engine).variants(target)))
    outputs = []
    for number, (form, steps) in enumerate(forms):
        sample = steps(pixels(100, 117))
        form = form.settled_by({"input.1": sample})
        (tmp_path / f"{number}").mkdir()
        artifact = runtime.build(form, target, tmp_path / f"{number}")
        with runtime.open(artifact, target) as session:
            (answer,) = session.run({"input.1": sample[None]}).values()
            outputs.append(answer.copy())
    one, other = outputs
    assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()


QUANTIZERS = (
    ("static_quantization", "onnxruntime"),
    ("nncf_quantization", "openvino"),
    ("litert_quantization", "litert"),
)


@pytest.mark.parametrize(("step", "engine"), QUANTIZERS)
def test_int8_rounds_the_same_values_before_and_after(
    tmp_path: Path, step: str, engine: str
) -> None:
    # Unlike deviations: a scale that all channels shared before they are normalized would be coarse.
    uneven = Normalize((0.2, 0.5, 0.8), (0.02, 0.2, 1.0))
    model = built(tmp_path, CONVNET)
    pipeline = Pipeline((CenterCrop(16), uneven, ToLayout()))
    made, shorter = folded(model, pipeline, tmp_path)
    target = Target.host().with_threads(1)
    runtime = next(iter(Engine.member(engine).variants(target)))
    pictures = [pixels(16, 16, seed) for seed in range(12)]
    outputs = []
    for name, form, steps in (("before", model, pipeline), ("after", made, shorter)):
        data = ArrayDataset({"x": np.stack([steps(picture) for picture in pictures])})
        form = form.settled_by({"x": steps(pictures[0])})
        (tmp_path / name / "built").mkdir(parents=True)
        (tmp_path / name / "quantized").mkdir()
        quantizer = next(iter(Pass.member(step).variants(form, target)))
        small = quantizer(form, data, tmp_path / name / "quantized")
        artifact = runtime.build(small, target, tmp_path / name / "built")
        with runtime.open(artifact, target) as session:
            rows = [session.run({"x": steps(picture)[None]}) for picture in pictures]
            outputs.append(np.concatenate([next(iter(row.values())).copy() for row in rows]))
    one, other = outputs
    assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
