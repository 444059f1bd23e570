import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from hasten.core.cache_folder import CacheFolder
from hasten.core.records import to_record
from hasten.core.target import Target
from hasten.core.telemetry import OFF
from hasten.engines.base import Artifact
from hasten.engines.compile_cache import CompileCache
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import BeyondRange, CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, assert_same, request_for


class TestOnnxRuntime(EngineTests):
    engine = OnnxRuntime()


class TestOnnxRuntimeUnoptimized(EngineTests):
    engine = OnnxRuntime(threads=1, spinning=False, graph_optimization="disabled")

    def test_the_first_variant_is_the_default(self, target: Target) -> None:
        assert next(OnnxRuntime.variants(target)) == OnnxRuntime()


@pytest.fixture
def host() -> Target:
    return replace(Target.host(), cpus=(0, 1, 2, 3), threads=4)


def build(path: Path, target: Target, engine: OnnxRuntime | None = None) -> Artifact:
    folder = path.parent / "built"
    folder.mkdir()
    return (engine or OnnxRuntime()).build(load(path), target, folder)


def test_one_thread_is_tried_where_there_are_more(host: Target) -> None:
    assert list(OnnxRuntime.variants(host)) == [OnnxRuntime()]
    assert list(OnnxRuntime().tunings(host)) == [OnnxRuntime(threads=1)]
    assert list(OnnxRuntime().tunings(host.with_threads(1))) == []


def test_threads_that_sleep_are_tried_under_a_quota(host: Target) -> None:
    under_quota = host.with_threads(2)
    assert list(OnnxRuntime().tunings(under_quota)) == [
        OnnxRuntime(threads=1),
        OnnxRuntime(spinning=False),
    ]
    assert list(OnnxRuntime(threads=1).tunings(under_quota)) == []


def test_it_sends_no_telemetry_and_leaves_nothing_at_home(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.models.onnx import load
from hasten.core.target import Target
from hasten.testing import models
folder = Path(sys.argv[1])
(folder / "built").mkdir()
OnnxRuntime().build(load(models.linear_classifier(folder)), Target.host(), folder / "built")
print(sorted({"CI", "ORT_DISABLE_TELEMETRY"} & os.environ.keys()))
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in OFF}
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "[]\n"
    assert list(home.iterdir()) == []


def test_its_settings_take_effect(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with OnnxRuntime().open(artifact, host.with_threads(2)) as session:
        assert session.properties() == {
            "providers": "CPUExecutionProvider",
            "threads": "2",
            "spinning": "True",
            "lingering": "True",
            "graph_optimization": "ORT_ENABLE_ALL",
        }
    engine = OnnxRuntime(threads=1, spinning=False, graph_optimization="disabled")
    with engine.open(artifact, host) as session:
        assert session.properties() == {
            "providers": "CPUExecutionProvider",
            "threads": "1",
            "spinning": "False",
            "lingering": "True",
            "graph_optimization": "ORT_DISABLE_ALL",
        }


def test_beside_others_its_threads_sleep_between_requests(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    request = {"x": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    cache = CacheFolder(tmp_path / "cache")
    answers, found = [], []
    for engine in (OnnxRuntime(), OnnxRuntime().beside()):
        compiled = CompileCache(cache)
        with engine.open_cached(artifact, host.with_threads(2), compiled) as session:
            found.append((session.properties()["lingering"], compiled.found))
            answers.append(session.run(request))
    assert found == [("True", 0), ("False", 1)]  # both read the same optimized graph
    assert_same(*answers)


def test_its_record_holds_what_older_versions_read() -> None:
    settings = {"threads": None, "spinning": True, "graph_optimization": "all"}
    for engine in (OnnxRuntime(), OnnxRuntime().beside()):
        assert to_record(engine) == {"type": "onnxruntime", **settings}
        assert to_record(engine.settling()) == {"type": "onnxruntime_settled", **settings}


def test_the_users_files_keep_one_name(host: Target, tmp_path: Path) -> None:
    path = models.linear_classifier(tmp_path)
    built = build(path, host).path
    assert built.read_bytes() == path.read_bytes()
    assert path.stat().st_nlink == built.stat().st_nlink == 1  # external data must have no other


def test_a_symbolic_link_is_followed(host: Target, tmp_path: Path) -> None:
    path = models.linear_classifier(tmp_path)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    artifact = build(link, host)
    assert not artifact.path.is_symlink()
    assert artifact.path.read_bytes() == path.read_bytes()


def test_external_data_comes_along(host: Target, tmp_path: Path) -> None:
    model = onnx.load(models.small_cnn(tmp_path))
    external_data_helper.convert_model_to_external_data(
        model, location="weights/cnn.bin", size_threshold=0
    )
    path = tmp_path / "external.onnx"
    (tmp_path / "weights").mkdir()
    onnx.save(model, path)
    artifact = build(path, host)
    assert artifact.files == (tmp_path / "built" / "weights" / "cnn.bin",)
    assert (tmp_path / "weights" / "cnn.bin").stat().st_nlink == 1  # the passes read it afterwards
    with OnnxRuntime().open(artifact, host) as session:
        assert session.run(request_for(artifact.inputs))["logits"].shape == (1, 10)


def test_an_unknown_operator_is_told_in_one_line(host: Target, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        build(models.unknown_operator(tmp_path), host)
    assert str(caught.value) == (
        "ONNX Runtime can't load the model: This is an invalid model. In Node, "
        '("the_culprit", Frobnicate, "", -1) : ("r": tensor(float),) -> ("y": tensor(float),) , '
        "Error No Op registered for Frobnicate with domain_version of 17"
    )


def test_an_operator_of_an_unknown_library_is_told_with_its_node(
    host: Target, tmp_path: Path
) -> None:
    proto = onnx.load(models.unknown_operator(tmp_path))
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    proto.graph.node[1].domain = "mine"
    onnx.save(proto, tmp_path / "mine.onnx")
    with pytest.raises(CandidateError) as caught:
        build(tmp_path / "mine.onnx", host)
    assert str(caught.value) == (
        "ONNX Runtime can't load the model: Fatal error: mine:Frobnicate(-1) is not a registered "
        "function/op (node 'the_culprit')"
    )


def test_a_library_of_operators_that_cannot_be_loaded_is_named(
    host: Target, tmp_path: Path
) -> None:
    library = tmp_path / "operators.so"
    library.write_bytes(b"not a library, though it says RegisterCustomOps")
    artifact = build(models.linear_classifier(tmp_path), host)
    with pytest.raises(CandidateError) as caught:
        with OnnxRuntime().open(replace(artifact, custom_ops=(library,)), host):
            pass
    assert str(caught.value) == (
        "ONNX Runtime can't load operators.so: Failed to load library "
        f"{library} with error: {library}: file too short"
    )


def test_a_library_made_for_another_runtime_is_left_alone(host: Target, tmp_path: Path) -> None:
    library = tmp_path / "extension.so"
    library.write_bytes(b"an OpenVINO extension has create_extensions")
    artifact = build(models.linear_classifier(tmp_path), host)
    with OnnxRuntime().open(replace(artifact, custom_ops=(library,)), host) as session:
        assert session.run(request_for(artifact.inputs))


def test_a_library_that_is_missing_is_named(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    library = tmp_path / "gone.so"
    with pytest.raises(CandidateError) as caught:
        with OnnxRuntime().open(replace(artifact, custom_ops=(library,)), host):
            pass
    assert str(caught.value) == f"can't read {library}: No such file or directory"


def test_a_missing_model_file_is_named(host: Target, tmp_path: Path) -> None:
    model = load(models.linear_classifier(tmp_path))
    model.path.unlink()
    (tmp_path / "built").mkdir()
    with pytest.raises(CandidateError) as caught:
        OnnxRuntime().build(model, host, tmp_path / "built")
    assert str(caught.value) == f"can't copy {model.path}: No such file or directory"


def test_a_request_that_does_not_fit_is_one_line(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    request = {"x": request_for(artifact.inputs)["x"][:, :3].copy()}
    with OnnxRuntime().open(artifact, host) as session:
        with pytest.raises(CandidateError) as caught:
            session.run(request)
    assert str(caught.value) == (
        "ONNX Runtime failed: Got invalid dimensions for input: x for the following indices"
    )


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        (
            [0, 7, 2],
            "input 'ids' has the number 7, and the table that it looks up has 5 rows: give numbers from 0 to 4",
        ),
        (
            [-9, 0, 2],
            "the model looks up row -9 of a table that has 5 rows: a number in the request is out of range, or the "
            "request is too long",
        ),
    ],
)
def test_a_number_beyond_a_table_is_one_line_and_nothing_is_logged(
    host: Target,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    numbers: list[int],
    line: str,
) -> None:
    text = """<ir_version: 10, opset_import: ["": 17]>
        lookup (int64[batch, 3] ids) => (float[batch, 3, 1] y)
        <float[5, 1] table = {1, 2, 3, 4, 5}>
        { y = Gather(table, ids) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "lookup.onnx")
    artifact = build(tmp_path / "lookup.onnx", host)
    with OnnxRuntime().open(artifact, host) as session:
        with pytest.raises(CandidateError) as caught:
            session.run({"ids": np.array([numbers])})
    assert str(caught.value) == f"ONNX Runtime failed: {line}"
    assert capfd.readouterr() == ("", "")


def test_a_closed_session_says_so(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with OnnxRuntime().open(artifact, host) as session:
        pass
    with pytest.raises(CandidateError) as caught:
        session.run(request_for(artifact.inputs))
    assert str(caught.value) == "the session is closed: open the artifact again"


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError) as caught:
        OnnxRuntime.version()
    assert str(caught.value) == (
        "ONNX Runtime isn't installed (import of onnxruntime halted; None in sys.modules): "
        "pip install 'hasten[onnxruntime]'"
    )


def test_importing_the_engines_imports_no_runtime() -> None:
    program = (
        "import sys, hasten.engines.base, hasten.engines.onnxruntime.engine, hasten.engines.openvino.engine, "
        "hasten.engines.null, hasten.engines.reference\n"
        "print(sorted({'onnx', 'onnxruntime', 'openvino'} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def recurrent(op: str, gates: int) -> str:
    weights = ", ".join(["0.5"] * gates * 4)
    return f"""recurrent (float[T, N, 2] x) => (float[T, 1, N, 2] y)
        <float[1, {gates * 2}, 2] w = {{{weights}}}, float[1, {gates * 2}, 2] r = {{{weights}}}> {{
        y = {op} <hidden_size = 2> (x, w, r) }}"""


EINSUM = """products (float[T, N, 2] x) => (float[T, N, N] y) {
        y = Einsum <equation = "bij,bkj->bik"> (x, x) }"""


QUANTIZED = """quantized (float[T, N, 2] x) => (float[T, 1, N, 2] y)
        <uint8[1, 2, 8] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}, float[1] s = {0.1}, uint8[1] z = {0}> {
        y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 2> (x, w, w, , , , , , s, z, s, z) }"""


@pytest.mark.parametrize("shape", [(4, 0, 2), (0, 1, 2)])
@pytest.mark.parametrize("text", [recurrent("GRU", 3), recurrent("LSTM", 4), EINSUM, QUANTIZED])
def test_an_empty_batch_is_refused_where_it_would_end_the_process(
    host: Target, tmp_path: Path, text: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "fatal.onnx"
    onnx.save(
        onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]> {text}'
        ),
        path,
    )
    with OnnxRuntime().open(build(path, host), host) as session:
        with pytest.raises(BeyondRange) as error:
            session.run({"x": np.ones(shape, np.float32)})
        assert len(session.run({"x": np.ones((4, 1, 2), np.float32)})["y"]) == 4
    assert str(error.value) == (
        f"the input 'x' has the shape {list(shape)}, and an empty Einsum, GRU or LSTM may end ONNX Runtime's process: "
        "give at least one number along each axis"
    )


def test_letters_among_weights_are_no_operator(host: Target, tmp_path: Path) -> None:
    letters = ", ".join(map(str, b"GRU LSTM Einsum"))
    text = f"""named (uint8[N, 15] x) => (uint8[N, 15] LSTM) <uint8[15] GRU = {{{letters}}}> {{
        [Einsum] LSTM = BitShift <direction = "LEFT"> (x, GRU) }}"""
    path = tmp_path / "letters.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}'), path)
    assert path.read_bytes().count(b"GRU") > 1
    with OnnxRuntime().open(build(path, host), host) as session:
        assert session.run({"x": np.ones((0, 15), np.uint8)})["LSTM"].shape == (0, 15)


def test_an_empty_batch_is_answered_by_other_models(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with OnnxRuntime().open(artifact, host) as session:
        answers = session.run({"x": np.ones((0, 16), np.float32)})
    assert [len(answer) for answer in answers.values()] == [0] * len(answers)
