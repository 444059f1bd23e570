import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from tests.support.tflite import with_custom_operator

from hasten.cli import main
from hasten.core.processes import descendants, name_of
from hasten.core.target import Target
from hasten.engines.litert.tflite.conversion import convert
from hasten.errors import InputError
from hasten.inputs.models import apart
from hasten.inputs.models.onnx import load
from hasten.inputs.models.source import check_has_program, find_model, load_model, stated_pipeline
from hasten.inputs.models.stated_inputs import stated_inputs
from hasten.inputs.models.tensorflow import TensorFlowModel
from hasten.testing.models import linear_classifier

X = np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution and a product as a SavedModel, and beside it as a TFLite file."""
    tf: Any = pytest.importorskip("tensorflow", reason="needs the extra keras")
    pytest.importorskip("tf2onnx", reason="needs the extra keras")
    random = np.random.default_rng(0)
    module = tf.Module()
    module.kernel = tf.Variable(random.standard_normal((3, 3, 3, 8)).astype(np.float32))
    module.weight = tf.Variable(random.standard_normal((8, 4)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")])  # type: ignore[untyped-decorator]
    def answer(image: Any) -> Any:
        maps = tf.nn.relu(tf.nn.conv2d(image, module.kernel, 1, "SAME"))
        return {"scores": tf.matmul(tf.reduce_mean(maps, [1, 2]), module.weight)}

    module.answer = answer
    folder = tmp_path_factory.mktemp("tensorflow") / "saved"
    tf.saved_model.save(module, str(folder), signatures=answer)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    folder.with_name("model.tflite").write_bytes(converter.convert())
    return folder


@pytest.mark.parametrize("sample", [None, {"anything": X}])
def test_a_saved_model_is_converted_with_its_own_names(
    saved: Path, sample: Any, tmp_path: Path
) -> None:
    model = load_model(find_model(saved, trust_code=True), sample, tmp_path)
    assert [str(spec) for spec in model.inputs] == ["image: float32[batch, 8, 8, 3]"]
    assert [spec.name for spec in model.outputs] == ["scores"]


def test_a_tflite_file_answers_as_the_model_it_was_made_from(saved: Path, tmp_path: Path) -> None:
    answers = []
    for number, path in enumerate((saved, saved.with_name("model.tflite"))):
        (tmp_path / str(number)).mkdir()
        model = load_model(find_model(path, trust_code=True), None, tmp_path / str(number))
        session = onnxruntime.InferenceSession(str(model.path))
        answers.append(session.run(None, {"image": np.stack([X, -X])})[0])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_a_sample_that_doesnt_fit_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^input 'image': the model takes image: float32\[batch, 8"
    ):
        load_model(find_model(saved, trust_code=True), {"image": X[:4]}, tmp_path)


def test_a_tflite_file_on_which_litert_crashes_is_refused(tmp_path: Path) -> None:
    """The settings of a custom operator are read as the file is opened, and not checked."""
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    path = tmp_path / "m.tflite"
    convert(load(linear_classifier(tmp_path)), path)
    sound = stated_inputs(find_model(path))
    assert [str(spec) for spec in sound] == ["x: float32[batch, 16]"]
    path.write_bytes(with_custom_operator(path.read_bytes(), b"\x7f\xff\xff\x7f\x24\x04"))
    with pytest.raises(InputError) as error:
        stated_inputs(find_model(path))
    assert str(error.value) == (
        f"{path} is damaged: LiteRT crashed (SIGSEGV) while it read the file"
    )
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match=r"m\.tflite can't be read: ValueError: ") as error:
        stated_inputs(find_model(path))
    assert "\n" not in str(error.value)


def test_what_cant_be_converted_is_said_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="needs the extra keras")
    (tmp_path / "m.tflite").write_bytes(b"no model")
    with pytest.raises(InputError) as error:
        load_model(find_model(tmp_path / "m.tflite"), None, tmp_path)
    said = str(error.value)
    assert said.startswith(f"tf2onnx can't convert {tmp_path}/m.tflite: ")
    assert said.endswith(
        "; save the model without that operation, or export the model to ONNX yourself"
    )
    assert "\n" not in said


def converter(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let a program of this code run in place of tf2onnx."""
    own = folder / "own" / "tf2onnx"
    own.mkdir(parents=True)
    (own / "__init__.py").touch()
    (own / "convert.py").write_text(code)
    monkeypatch.syspath_prepend(str(own.parent))
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(own.parent), before))))


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_answers_of_a_tflite_file_are_compared_with_those_of_its_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    proto = onnx.load(linear_classifier(tmp_path))
    convert(load(linear_classifier(tmp_path)), tmp_path / "m.tflite")
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(off), tensor.name)
        )
    onnx.save(proto, tmp_path / "converted.onnx")
    copied = f"import shutil, sys; shutil.copy({str(tmp_path / 'converted.onnx')!r}, sys.argv[sys.argv.index('--output') + 1])"
    converter(tmp_path, monkeypatch, copied)
    found = find_model(tmp_path / "m.tflite")
    if off:
        with pytest.raises(InputError, match=r"'logits' is off by .* from TensorFlow's"):
            load_model(found, None, tmp_path)
    else:
        assert [str(spec) for spec in load_model(found, None, tmp_path).outputs] == [
            "logits: float32[batch, 4]"
        ]


@pytest.mark.parametrize(
    ("code", "limit_s", "share_bytes", "why"),
    [
        ("import time; time.sleep(999)", 3.0, 1 << 40, "hung: no answer within 3 s"),
        (
            "import time; held = b'x' * (1 << 30); time.sleep(999)",
            600.0,
            1 << 29,
            r"ran out of memory: it held \d+ MiB of the \d+ MiB",
        ),
    ],
)
def test_a_conversion_that_takes_all_time_or_memory_is_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    limit_s: float,
    share_bytes: int,
    why: str,
) -> None:
    converter(tmp_path, monkeypatch, code)
    monkeypatch.setattr(apart, "LIMIT_S", limit_s)
    monkeypatch.setattr(apart, "MEMORY_SHARE", share_bytes / Target.host().memory_bytes)
    (tmp_path / "m.tflite").write_bytes(b"no model")
    with pytest.raises(InputError, match=why) as error:
        load_model(find_model(tmp_path / "m.tflite"), None, tmp_path)
    assert str(error.value).startswith(f"tf2onnx can't convert {tmp_path}/m.tflite: ")
    assert str(error.value).endswith(", killed; export the model to ONNX yourself")
    assert "tf2onnx.convert" not in map(name_of, descendants(os.getpid()))


def test_a_tflite_file_that_takes_all_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra litert")
    convert(load(linear_classifier(tmp_path)), tmp_path / "m.tflite")
    monkeypatch.setattr(apart, "MEMORY_SHARE", 1e-4)
    with pytest.raises(InputError, match=r"m\.tflite can't be used: ran out of memory: it held "):
        stated_inputs(find_model(tmp_path / "m.tflite"))


def test_models_of_tensorflow_are_found_without_importing_it(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "m.tflite").write_bytes(b"")
    found = find_model(tmp_path / "saved")
    assert found == TensorFlowModel(tmp_path / "saved", "SavedModel")
    assert find_model(str(tmp_path / "m.tflite")).kind == "TFLite"
    assert stated_pipeline(found) is None
    with pytest.raises(InputError, match=r"not from ONNX: got a SavedModel model; give the torch"):
        check_has_program(found)


def test_a_saved_model_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(InputError) as error:
        load_model(find_model(tmp_path / "saved"), None, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/saved is a SavedModel, a program that runs while it is converted and can "
        "read and write files: if you trust it, add trust_code=True"
    )
    for command in ("optimize", "profile"):
        refused = CliRunner().invoke(main, [command, str(tmp_path / "saved")])
        assert refused.stderr.endswith("if you trust it, add --trust-code\n")
        trusted = CliRunner().invoke(main, [command, "--trust-code", str(tmp_path / "saved")])
        assert trusted.exit_code == 2
        assert "tf2onnx" in trusted.stderr or "hasten[keras]" in trusted.stderr
