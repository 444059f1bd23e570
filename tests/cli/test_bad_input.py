"""What the command line says of input that can't be used: one line, exit code 2, nothing left."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser
from PIL import Image

from hasten.cli import main
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.inputs.metrics.choice import forms
from hasten.testing import models


def said(*arguments: object) -> str:
    """Run a command that must end with 2, and return its one line; what it is about to do may precede."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    whole = re.fullmatch(r"(?:(?!hasten: |Traceback).*\n)*hasten: (.*)\n", result.stderr)
    assert whole, result.stderr
    return whole[1]


def printed(*arguments: object, first: str = "") -> str:
    """Run a command that must end with 2 as users do, without a terminal; return all it prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"{first}from hasten.cli import main; main()", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), (done.returncode, done.stdout, done.stderr)
    return done.stderr


def good(count: int = 60) -> Array:
    return np.random.default_rng(0).standard_normal((count, 16), dtype=np.float32)


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "eval.npz", **arrays)
    return folder / "eval.npz"


def spoiled(value: float) -> Array:
    x = good()
    x[:, 3] = value
    return x


def optimized(
    folder: Path, model: object, data: object, *more: object, engine: str = "onnxruntime"
) -> str:
    """Return what `optimize` says, and check that it leaves nothing."""
    before = sorted(folder.iterdir())
    out = ("--engine", engine, "--out", folder / "b.hasten")
    line = said("optimize", model, "--data", data, *out, *more)
    assert sorted(folder.iterdir()) == before
    return line


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    line = optimized(tmp_path, tmp_path / "m.onnx", saved(tmp_path, x=good()))
    assert line == f"no such file: {tmp_path}/m.onnx"


def test_data_that_are_not_there(tmp_path: Path) -> None:
    line = optimized(tmp_path, models.linear_classifier(tmp_path), tmp_path / "eval.npz")
    assert line == f"no such file: {tmp_path}/eval.npz"


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("this is no model")
    line = optimized(tmp_path, tmp_path / "m.onnx", saved(tmp_path, x=good()))
    assert line == f"{tmp_path}/m.onnx is not an ONNX file, or it is cut short"


def test_an_operator_that_no_engine_has(tmp_path: Path) -> None:
    x = np.zeros((60, 4), np.float32) + np.arange(60, dtype=np.float32)[:, None]
    line = optimized(tmp_path, models.unknown_operator(tmp_path), saved(tmp_path, x=x))
    assert re.fullmatch(
        r"no engine runs this model: original, ONNX Runtime: ONNX Runtime can't load the model: "
        r".*the_culprit.*Frobnicate.*",
        line,
    )


def test_a_model_of_float64_on_openvino_alone(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> wide (double[N, 4] x) => (double[N, 4] y) { y = Tanh(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    data = saved(tmp_path, x=np.arange(240.0).reshape(60, 4))
    line = optimized(tmp_path, tmp_path / "m.onnx", data, engine="openvino")
    assert "OpenVINO computes float64 in float32, as in Tanh" in line
    assert line.endswith(
        '; "float64 rounded to float32, OpenVINO" is tried only beside an engine that runs the model as it is: '
        "allow one more, such as onnxruntime"
    )


def test_an_operator_of_a_library_that_was_not_given(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17, "mine" : 1]>'
        "agraph (float[N, 4] x) => (float[N, 4] y) { y = mine.Own(x) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.zeros((60, 4), np.float32) + np.arange(60, dtype=np.float32)[:, None]
    line = optimized(tmp_path, tmp_path / "m.onnx", saved(tmp_path, x=x))
    assert line.startswith("no engine runs this model: original, ONNX Runtime: ")
    assert "mine:Own" in line
    assert line.endswith(
        "; if you have a library with the operator, give it with --custom-ops LIBRARY"
    )


def test_dynamic_shapes_that_the_data_does_not_settle(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef data():\n"
        "    return [np.full(16 + i % 2, i, np.float32) for i in range(20)]\n"
    )
    line = optimized(tmp_path, models.linear_classifier(tmp_path), f"{tmp_path}/mine.py:data")
    assert line == (
        "input 'x': sample 1 is [17], and the model takes x: float32[batch, 16], with "
        "dimension 1 fixed at "
        "16: pad, crop or resize all samples to that, or export the model with that dimension open"
    )


def test_a_pipeline_that_gives_another_shape_is_said_with_its_last_step(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / "photos" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "p.yaml").write_text("before: [decode, {resize: [9, 9]}, to_layout]\n")
    line = optimized(
        tmp_path,
        models.small_cnn(tmp_path),
        str(tmp_path / "photos"),
        "--pipeline",
        str(tmp_path / "p.yaml"),
    )
    assert line == (
        "input 'x': the model takes x: float32[batch, 3, 32, 32]; a sample of the data is float32[3, 9, 9]; the "
        "pipeline's last step, to_layout, gives it"
    )


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        (
            lambda: {"a": good(), "b": good()},
            "the model takes the inputs x; {npz} has the arrays a, b in addition to labels and groups",
        ),
        (
            lambda: {"x": good()[:, :5]},
            "input 'x': the model takes x: float32[batch, 16]; a sample of the data is float32[5]",
        ),
        (
            lambda: {"x": good().astype(np.float64)},
            "input 'x': the model takes x: float32[batch, 16]; a sample of the data is float64[16]; "
            'convert it with x.astype("float32")',
        ),
        (
            lambda: {"x": spoiled(np.nan)},
            "input 'x': sample 0 has NaN or Inf; repair it or leave it out",
        ),
        (
            lambda: {"x": spoiled(np.inf)},
            "input 'x': sample 0 has NaN or Inf; repair it or leave it out",
        ),
        (
            lambda: {"x": good(), "labels": np.zeros(7, int)},
            "labels: 7 for 60 samples; give one for each",
        ),
        (lambda: {"x": good()[:0]}, "{npz} has no samples"),
    ],
    ids=["names", "shape", "dtype", "nan", "inf", "labels", "none"],
)
def test_data_that_do_not_fit(
    tmp_path: Path, arrays: Callable[[], dict[str, Array]], line: str
) -> None:
    npz = saved(tmp_path, **arrays())
    got = optimized(tmp_path, models.linear_classifier(tmp_path), npz)
    assert got == line.replace("{npz}", str(npz))


@pytest.mark.seconds
def test_an_original_that_answers_nan(tmp_path: Path) -> None:
    npz = saved(tmp_path, x=good())
    engine = ("--engine", "tests.support.rivals:BadAnswers", "--out", tmp_path / "b.hasten")
    model = models.linear_classifier(tmp_path)
    *plan, line = printed("optimize", model, "--data", npz, *engine).splitlines()
    assert plan[0].startswith("model:    linear_classifier.onnx")
    assert line == (
        "hasten: the original model can't answer the data: output 'logits' has NaN for sample 0"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eval.npz", "linear_classifier.onnx"]


@pytest.mark.parametrize("others", ["", "float[N, 4] y, "], ids=["alone", "beside another"])
def test_an_output_whose_size_varies_from_sample_to_sample(tmp_path: Path, others: str) -> None:
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> agraph (float[N, 4] x) => '
        f"({others}int64[2, found] places) <float zero = {{0}}> "
        "{ y = Neg(x)  above = Greater(x, zero)  places = NonZero(above) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.array([[1, -1, -1, -1], [1, 1, -1, 1]] * 30, np.float32)
    x *= np.arange(1, 61, dtype=np.float32)[:, None]
    metric = ("--metric", "regression:1@places")
    line = optimized(tmp_path, tmp_path / "m.onnx", saved(tmp_path, x=x), *metric)
    if others:
        assert line == (
            "regression reads the output 'places'; the model has y; it can't read the output 'places', whose size depends on the "
            "sample's values: choose a metric that reads another output, as in agreement@NAME; if the model removes "
            "overlapping boxes itself, export it up to its raw boxes and give the steps yolo_boxes and nms after the "
            "model in a pipeline; else fill the output up to a fixed size in the graph"
        )
        return
    shapes, told, step = line.partition(" for another, ")
    assert shapes in {
        f"the original model's output 'places' has the shape [2, {one}] for one sample and [2, {other}]"
        for one, other in ((1, 3), (3, 1))  # which is first depends on how the data are split
    }
    assert told + step == (
        " for another, and hasten compares answers of one shape only: if the model removes overlapping boxes itself, "
        "export it up to its raw boxes and give the steps yolo_boxes and nms after the model in a pipeline; else fill "
        "the output up to a fixed size in the graph, or leave it out"
    )


def heavy(folder: Path) -> Path:
    """x: float32[batch, 16] -> y: float32[batch, 16], by way of weights of 144 MiB."""
    text = """<ir_version: 10, opset_import: ["": 17]>
        heavy (float[batch, 16] x) => (float[batch, 16] y) {
            wide = MatMul(x, up)
            mixed = MatMul(wide, across)
            y = MatMul(mixed, down)
        }"""
    model = parser.parse_model(text)
    for name, shape in (("up", (16, 6144)), ("across", (6144, 6144)), ("down", (6144, 16))):
        weight = np.zeros(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "heavy.onnx")
    return folder / "heavy.onnx"


@pytest.mark.seconds
def test_an_original_that_does_not_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(Target.host(), memory_bytes=64 << 20)
    monkeypatch.setattr(Target, "host", lambda: small)
    line = optimized(tmp_path, heavy(tmp_path), saved(tmp_path, x=good()))
    assert re.fullmatch(
        r"no engine runs this model: original, ONNX Runtime: ran out of memory: it held \d+ MiB of the 32 MiB "
        r"that a trial may take, killed",
        line,
    )


def test_a_node_to_keep_that_is_not_there(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((20, 3, 32, 32), dtype=np.float32)
    npz = saved(tmp_path, x=x)
    line = optimized(tmp_path, models.small_cnn(tmp_path), npz, "--keep-float", "conv11")
    assert line == "keep_float: the model has no node 'conv11'; did you mean conv1, conv2?"


def photos(folder: Path, classes: int = 2, each: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for label in range(classes):
        inner = folder / "photos" / f"class{label}"
        inner.mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(inner / f"{i}.png")
    return folder / "photos"


def test_an_empty_class_folder(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    (folder / "empty").mkdir()
    line = optimized(tmp_path, models.small_cnn(tmp_path), folder, "--image-size", 32)
    assert line == f"the class folder {folder}/empty has no images; fill it or remove it"


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    (folder / "class0" / "2.png").write_bytes(b"this is no image")
    line = optimized(tmp_path, models.small_cnn(tmp_path), folder, "--image-size", 32)
    assert line == (
        f"{folder}/class0/2.png can't be read as an image: it is no whole BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP file; "
        "it begins with b'this is no i'"
    )


def test_a_folder_of_images_without_a_word_on_how_to_prepare_them(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    line = optimized(tmp_path, models.small_cnn(tmp_path), folder)
    assert line == (
        f"{folder} is a folder of images, but nothing states how to prepare them: give a size, "
        "mean and std, or a pipeline file"
    )


@pytest.mark.parametrize("share", ["0", "100%", "-1%", "250%"])
def test_a_limit_out_of_range(tmp_path: Path, share: str) -> None:
    npz = saved(tmp_path, x=good())
    line = optimized(tmp_path, models.linear_classifier(tmp_path), npz, "--max-drop", share)
    number = float(share.rstrip("%")) / (100 if share.endswith("%") else 1)
    assert line == f"max_drop is a share between 0 and 1: got {number}; 1% is 0.01"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            ("--engine", "nosuch"),
            "no engine is called 'nosuch'; this version has: onnxruntime, openvino, litert, "
            "compiled",
        ),
        (
            ("--pass", "nosuch"),
            "no pass that you can choose is called 'nosuch'; the passes are: simplify, spectra, "
            "fix_shapes, nncf_quantization, litert_quantization, qnn_quantization, "
            "weight_compression, static_quantization, tensorrt_quantization, half_precision, jax_program, "
            "dynamic_quantization, block_quantization",
        ),
        (
            ("--metric", "nosuch"),
            f"there is no metric 'nosuch'; there are {forms()}",
        ),
        (
            ("--metric", "top1"),
            "the metric top1 needs labels, but the data has none; give labels, or use --metric "
            "agreement",
        ),
        (("--time-limit", "0s"), "the time limit is in seconds, above 0: got 0.0"),
        (("--time-limit", "nan"), "the time limit is in seconds, above 0: got nan"),
        (("--trial-limit", "0"), "the trial limit is in seconds, above 0: got 0.0"),
        (("--calibration", "0"), "--calibration 0: give at least 1 sample to calibrate with"),
        (
            ("--max-drop", "much"),
            "Invalid value for '--max-drop': 'much' is not a share; write 1% or 0.01; see main optimize "
            "--help",
        ),
        (
            ("--confidence", "20%"),
            "confidence is at least 0.5 and below 1: got 0.2; 95% is 0.95",
        ),
        (
            ("--image-mean", "0.5"),
            "--image-size is missing: the side of the square that the model takes",
        ),
    ],
)
def test_an_option_that_cannot_be(tmp_path: Path, more: tuple[str, ...], line: str) -> None:
    npz = saved(tmp_path, x=good())
    assert optimized(tmp_path, models.linear_classifier(tmp_path), npz, *more) == line


def test_a_place_that_is_taken_by_something_else(tmp_path: Path) -> None:
    (tmp_path / "b.hasten").mkdir()
    npz = saved(tmp_path, x=good())
    assert optimized(tmp_path, models.linear_classifier(tmp_path), npz) == (
        f"{tmp_path}/b.hasten exists and is not a bundle; give another --out or remove it"
    )


@pytest.mark.seconds
def test_a_full_disk(tmp_path: Path) -> None:
    npz = saved(tmp_path, x=good(6000))
    small = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000));"
    )
    words = ("--data", npz, "--engine", "onnxruntime", "--out", tmp_path / "b.hasten")
    assert printed("optimize", models.linear_classifier(tmp_path), *words, first=small) == (
        f"hasten: can't write {tmp_path}/b.hasten.work/search: File too large\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eval.npz", "linear_classifier.onnx"]


def test_a_name_that_would_write_to_the_terminal_is_written_out(tmp_path: Path) -> None:
    line = said("inspect", tmp_path / "a\x1b]0;pwn\x07\u202e\nhasten: fine")
    assert (
        line
        == rf"no bundle at {tmp_path}/a\x1b]0;pwn\x07\u202e\nhasten: fine: no such file or folder"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nosuch",), "No such command 'nosuch'; see main --help"),
        (("certify", "m.hasten"), "Missing option '--data'; see main certify --help"),
    ],
)
def test_a_command_that_is_called_otherwise_than_it_can_be(
    words: tuple[str, ...], line: str
) -> None:
    assert said(*words) == line
