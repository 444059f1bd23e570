"""Models with operators of the user's own: a library that a package ships, and one compiled here."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from tests.support.quick import quick_runs

import hasten
from hasten.cli import main
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.models.onnx import load
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import NARROW, answers, error_between

pytestmark = pytest.mark.seconds

ONES = np.ones((1, 16), np.float32)


def with_weight(path: Path) -> Path:
    """Give a model whose text names a weight `w` one."""
    proto = onnx.load(path)
    weight = np.random.default_rng(1).standard_normal((16, 16), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, path)
    return path


def written(folder: Path, opset: str, body: str) -> Path:
    text = f"""
        <ir_version: 8, opset_import: ["" : 17, "{opset}" : 1]>
        custom (float["batch", 16] x) => (float["batch", 16] y) <float["batch", 16] s> {{ {body} }}
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
    path = written(tmp_path, "mine", "s = mine.Twice (x)  y = Identity (s)")
    model = load(path, (twice,)).settled_by({"x": ONES[0]})
    (tmp_path / "built").mkdir()
    engine, target = OpenVino(), Target.host().with_threads(1)
    artifact = engine.build(model, target, tmp_path / "built")
    assert artifact.custom_ops == (twice,)
    with engine.open(artifact, target) as session:
        np.testing.assert_array_equal(session.run({"x": ONES})["y"], 2 * ONES)


def library() -> Path:
    """The library of operators for ONNX Runtime that a package ships."""
    with pytest.MonkeyPatch.context() as environment:
        # The package sets this, which has protobuf run as Python in every process that starts later.
        environment.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")
        return Path(pytest.importorskip("onnxruntime_extensions").get_library_path())


def test_an_operator_library_of_onnx_runtimes_is_named_from_search_to_service(
    tmp_path: Path,
) -> None:
    operators = library()
    body = "n, p = ai.onnx.contrib.NegPos (x)  s = Sub (n, p)  y = Identity (s)"
    path = written(tmp_path, "ai.onnx.contrib", body)
    x = np.random.default_rng(0).standard_normal((200, 16), np.float32)
    with quick_runs():
        result = hasten.optimize(
            path, x, engines=("onnxruntime",), custom_ops=(operators,), out=tmp_path / "b.hasten"
        )
    assert result.status == "exact"
    with hasten.load(result.bundle, custom_ops=(operators,)) as fast:
        np.testing.assert_array_equal(fast(x[:1])["y"], -np.abs(x[:1]))
    with pytest.raises(hasten.InputError) as error:
        hasten.load(result.bundle)
    assert str(error.value) == (
        "this model needs 1 operator library, the same files as those that it was made with; got 0: name "
        "them by custom_ops="
    )
    opened = CliRunner().invoke(main, ["load", str(result.bundle), "--custom-ops", str(operators)])
    assert opened.exit_code == 0, opened.output
    assert opened.output.startswith("opened in ")


TURNS = """
import sys
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
import numpy as np
from hasten.core.records import file_digest
from hasten.core.target import Target
from hasten.engines.artifacts import place
from hasten.engines.base import Engine
from hasten.engines.checked import CheckedArtifact
from hasten.inputs.models.onnx import load

path, library, goal = map(Path, sys.argv[2:5])
engine, target = Engine.member(sys.argv[1])(), Target.host().with_threads(1)
x = np.ones((1, 16), np.float32)
model = load(path, (library,)).settled_by({"x": x[0]})
# ONNX Runtime's isn't built, which would load the library.
plain = place(model, goal) if sys.argv[1] == "onnxruntime" else engine.build(model, target, goal)
plain = CheckedArtifact(**{each.name: getattr(plain, each.name) for each in fields(plain)})
copy = CheckedArtifact(**{**vars(plain), "library_digests": {library: file_digest(library)}})

def answer(artifacts):
    with ExitStack() as closing:
        for artifact in artifacts:
            print(*closing.enter_context(engine.open(artifact, target)).run({"x": x})["y"][0, :1])

for turn in sys.argv[5].split():
    answer([plain if each == "p" else copy for each in turn])
"""


@pytest.mark.parametrize("order", ["c c pc cp", "pcpc p c p c"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_library_that_is_loaded_from_two_files_answers_from_both(
    runtime: str, order: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As where a program imports or uses a library, and loads a bundle, which has a copy of it."""
    if runtime == "openvino":
        operators: Path = request.getfixturevalue("twice")
        path = written(tmp_path, "mine", "s = mine.Twice (x)  y = Identity (s)")
        script, said = TURNS, "2.0"
    else:
        operators = library()
        body = "n, p = ai.onnx.contrib.NegPos (x)  s = Sub (n, p)  y = Identity (s)"
        path = written(tmp_path, "ai.onnx.contrib", body)
        script, said = f"import onnxruntime_extensions\n{TURNS}", "-1.0"
    (tmp_path / "built").mkdir()
    command = [sys.executable, "-c", script, runtime, str(path), str(operators)]
    done = subprocess.run(
        [*command, str(tmp_path / "built"), order], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [said] * len(order.replace(" ", ""))


PRODUCTS = """
    n, p = ai.onnx.contrib.NegPos (x)
    s = Sub (n, p)
    y = MatMul (s, w)
"""


@pytest.fixture
def product(tmp_path: Path) -> tuple[Model, Dataset]:
    """A model with an operator of a library's and a matrix product, and samples."""
    path = with_weight(written(tmp_path, "ai.onnx.contrib", PRODUCTS))
    x = np.random.default_rng(0).standard_normal((50, 16), np.float32)
    return load(path, (library(),)).settled_by({"x": x[0]}), ArrayDataset({"x": x})


def test_a_model_with_operators_of_a_library_is_quantized_with_it(
    product: tuple[Model, Dataset], tmp_path: Path
) -> None:
    model, samples = product
    (tmp_path / "work").mkdir()
    result = StaticQuantization(reduce_range=NARROW)(model, samples, tmp_path / "work")
    assert result.custom_ops == model.custom_ops
    exact = answers(model, samples, tmp_path / "a")
    assert 0 < error_between(exact, answers(result, samples, tmp_path / "b")) < 0.05


def test_openvinos_quantizer_is_given_no_library_of_another_runtimes(
    twice: Path, tmp_path: Path
) -> None:
    path = with_weight(written(tmp_path, "mine", "s = mine.Twice (x)  y = MatMul (s, w)"))
    x = np.random.default_rng(0).standard_normal((50, 16), np.float32)
    model = load(path, (library(), twice)).settled_by({"x": x[0]})
    (tmp_path / "work").mkdir()
    result = NncfQuantization(reduce_range=NARROW)(model, ArrayDataset({"x": x}), tmp_path / "work")
    assert result.format == "openvino"
