"""Models with operators of the user's own: a library that a package ships, and one compiled here."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import hasten
from hasten.engines.openvino import OpenVino
from hasten.frontends.onnx import load
from hasten.target import Target
from hasten.testing.quick import quick_runs

ONES = np.ones((1, 16), np.float32)


def written(folder: Path, opset: str, body: str) -> Path:
    text = f"""
        <ir_version: 8, opset_import: ["" : 17, "{opset}" : 1]>
        custom (float["batch", 16] x) => (float["batch", 16] y) {{ {body} }}
    """
    onnx.save(onnx.parser.parse_model(text), folder / "custom.onnx")
    return folder / "custom.onnx"


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OpenVINO extension in twice.cpp, compiled against the headers in OpenVINO's own package."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs the Debian package g++ to compile an OpenVINO extension")
    spec = importlib.util.find_spec("openvino")
    assert spec is not None
    assert spec.origin is not None
    openvino = Path(spec.origin).parent
    library = tmp_path_factory.mktemp("extension") / "twice.so"
    libraries = sorted((openvino / "libs").glob("libopenvino.so.*"))
    libraries += sorted((openvino / "libs").glob("libopenvino_onnx_frontend.so.*"))
    subprocess.run(
        [
            *(compiler, "-std=c++17", "-shared", "-fPIC", f"-I{openvino / 'include'}"),
            *(str(Path(__file__).with_name("twice.cpp")), *map(str, libraries)),
            *("-o", str(library)),
        ],
        check=True,
    )
    return library


def test_an_extension_of_openvinos_answers_through_the_ir_that_is_kept(
    twice: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, "mine", "y = mine.Twice (x)")
    model = load(path, (twice,)).settled_by({"x": ONES[0]})
    (tmp_path / "built").mkdir()
    engine, target = OpenVino(), Target.host().with_threads(1)
    artifact = engine.build(model, target, tmp_path / "built")
    assert artifact.custom_ops == (twice,)
    with engine.open(artifact, target) as session:
        np.testing.assert_array_equal(session.run({"x": ONES})["y"], 2 * ONES)


def test_an_operator_library_of_onnx_runtimes_is_named_from_search_to_service(
    tmp_path: Path,
) -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    library = Path(extensions.get_library_path())
    body = "n, p = ai.onnx.contrib.NegPos (x)  y = Sub (n, p)"
    path = written(tmp_path, "ai.onnx.contrib", body)
    x = np.random.default_rng(0).standard_normal((200, 16), np.float32)
    with quick_runs():
        result = hasten.optimize(
            path, x, engines=("onnxruntime",), custom_ops=(library,), out=tmp_path / "b.hasten"
        )
    assert result.status == "exact"
    with hasten.load(result.bundle, custom_ops=(library,)) as fast:
        np.testing.assert_array_equal(fast(x[:1])["y"], -np.abs(x[:1]))
    with pytest.raises(hasten.InputError) as error:
        hasten.load(result.bundle)
    assert str(error.value) == (
        "this model needs 1 operator libraries, the same files as when it was made; got 0"
    )
