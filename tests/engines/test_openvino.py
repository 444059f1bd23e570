import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import openvino
import pytest
from tests.support.bundles import built, stated

from hasten.bundle import write
from hasten.core.cache_folder import CacheFolder
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.telemetry import OFF
from hasten.engines.base import Artifact
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.openvino.igpu import OpenVinoIgpu
from hasten.errors import BeyondRange, CandidateError, InputError, NotCovered
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for


class TestOpenVino(EngineTests):
    engine = OpenVino()


class TestOpenVinoBf16(EngineTests):
    engine = OpenVino(precision="bf16", threads=1)

    def test_the_first_variant_is_the_default(self, target: Target) -> None:
        assert next(OpenVino.variants(target)) == OpenVino()


def test_weights_beside_a_model_are_found_in_a_folder_with_a_comma(
    tmp_path: Path, host: Target
) -> None:
    folder = tmp_path / "a,(b)"
    folder.mkdir()
    path = models.small_cnn(folder)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="b,c", size_threshold=0)
    artifact = build(path, host)
    cache = CacheFolder(folder / "cache", 1 << 20)
    for _ in range(2):
        with OpenVino().open_cached(artifact, host, CompileCache(cache)) as session:
            assert [*session.run(request_for(artifact.inputs))] == ["logits"]


def test_an_input_keeps_its_name_behind_an_operator_that_does_nothing(
    tmp_path: Path, host: Target
) -> None:
    path = tmp_path / "dropped.onnx"
    onnx.save(
        onnx.parser.parse_model("""<ir_version: 6, opset_import: ["": 11]> dropped (float[N, 3] x, float[N, 3] z) =>
            (float[N, 3] y) { d, mask = Dropout (x)  r = Relu (d)  y = Sub (r, z) }"""),
        path,
    )
    artifact = build(path, host)
    given = request_for(artifact.inputs, batch=2)
    with OpenVino().open(artifact, host) as session:
        answer = session.run(given)["y"]
    assert np.array_equal(answer, np.maximum(given["x"], 0) - given["z"])


def test_an_output_that_is_an_input_is_refused_since_it_would_be_empty(
    tmp_path: Path, host: Target
) -> None:
    path = tmp_path / "passed.onnx"
    onnx.save(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> passed (float[N, 3] x) =>
            (float[N, 3] y, float[N, 3] x) { y = Relu (x) }"""),
        path,
    )
    message = "^OpenVINO's converter adds the input '.*', as where an output is also an input$"
    with pytest.raises(CandidateError, match=message):
        build(path, host)


def test_an_attribute_that_the_converter_passes_over_is_refused(
    tmp_path: Path, host: Target
) -> None:
    if onnx.defs.onnx_opset_version() < 28:
        pytest.skip("this onnx doesn't know operator set 28")
    path = tmp_path / "depth.onnx"
    onnx.save(
        onnx.parser.parse_model("""<ir_version: 13, opset_import: ["": 28]> depth (float[N, 2, 4, 6] x) =>
            (float[N, 8, 2, 3] y) { [deep] y = SpaceToDepth <blocksize = 2, mode = "CRD"> (x) }"""),
        path,
    )
    message = (
        r"^OpenVINO's converter passes over the attribute 'mode' of SpaceToDepth \(node 'deep'\), which came after "
        r"operator set 24$"
    )
    with pytest.raises(CandidateError, match=message):
        build(path, host)


def test_an_attribute_that_the_converter_passes_over_is_found_inside_a_branch(
    tmp_path: Path, host: Target
) -> None:
    if onnx.defs.onnx_opset_version() < 28:
        pytest.skip("this onnx doesn't know operator set 28")
    path = tmp_path / "branch.onnx"
    text = """<ir_version: 13, opset_import: ["": 28]> branch (float[1, 2, 4, 6] x, bool c) => (float[1, 8, 2, 3] y) {
        y = If (c) <
            then_branch = yes () => (float[1, 8, 2, 3] a) { [deep] a = SpaceToDepth <blocksize = 2, mode = "CRD"> (x) },
            else_branch = no () => (float[1, 8, 2, 3] b) { b = SpaceToDepth <blocksize = 2> (x) }> }"""
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(CandidateError, match=r"attribute 'mode' of SpaceToDepth \(node 'deep'\)"):
        build(path, host)


def test_a_later_attribute_that_states_its_default_is_no_reason_to_refuse(
    tmp_path: Path, host: Target
) -> None:
    if onnx.defs.onnx_opset_version() < 28:
        pytest.skip("this onnx doesn't know operator set 28")
    x = np.arange(96, dtype=np.float32).reshape(2, 2, 4, 6)
    wanted = x.reshape(2, 2, 2, 2, 3, 2).transpose(0, 3, 5, 1, 2, 4).reshape(2, 8, 2, 3)
    path = tmp_path / "depth.onnx"
    text = """<ir_version: 13, opset_import: ["": 28]> depth (float[N, 2, 4, 6] x) => (float[N, 8, 2, 3] y) {
        y = SpaceToDepth <blocksize = 2, mode = "DCR"> (x) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    with OpenVino().open(build(path, host), host) as session:
        assert np.array_equal(session.run({"x": x})["y"], wanted)


@pytest.fixture
def host() -> Target:
    return replace(Target.host(), cpus=(0, 1), threads=2, isa=("avx2",))


def build(path: Path, target: Target) -> Artifact:
    folder = path.parent / "built"
    folder.mkdir()
    return OpenVino().build(load(path), target, folder)


def test_bf16_is_a_variant_only_where_the_processor_has_it(host: Target) -> None:
    assert list(OpenVino.variants(host)) == [OpenVino()]
    for name in ("avx512_bf16", "amx_bf16"):
        assert list(OpenVino.variants(replace(host, isa=("avx2", name)))) == [
            OpenVino(),
            OpenVino("bf16"),
        ]


def test_f16_is_a_variant_only_where_it_has_arithmetic_of_its_own(host: Target) -> None:
    slower = replace(host, isa=("avx512_fp16", "amx_bf16"))
    assert list(OpenVino.variants(slower)) == [OpenVino(), OpenVino("bf16")]
    faster = replace(host, isa=("avx512_fp16", "amx_bf16", "amx_fp16"))
    assert list(OpenVino.variants(faster)) == [OpenVino(), OpenVino("f16"), OpenVino("bf16")]


def test_threads_are_bound_only_where_the_process_has_all_processors(host: Target) -> None:
    bf16 = OpenVino("bf16")
    assert list(bf16.tunings(host)) == [
        OpenVino("bf16", threads=1),
        OpenVino("bf16", pinning=True),
    ]
    assert list(bf16.tunings(replace(host, cpus=(0, 1, 2)))) == [OpenVino("bf16", threads=1)]
    assert list(bf16.tunings(host.with_threads(1))) == []
    assert list(OpenVino(threads=1).tunings(host)) == []


def test_only_f32_is_exact() -> None:
    assert OpenVino().exact
    assert not OpenVino("bf16").exact


def of_text(folder: Path, text: str) -> Model:
    path = folder / "of_text.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> {text}'), path)
    model = load(path)
    (given,) = model.inputs
    return model.settled_by({"x": np.zeros(int(given.shape[1]), given.dtype)})


DOUBLES = """doubles (float[N, 3] x) => (float[N, 3] y) {
    d = Cast <to = 11> (x)  e = Exp (d)  y = Cast <to = 1> (e) }"""


def test_a_model_of_float64_is_offered_only_as_one_that_is_rounded(
    host: Target, tmp_path: Path
) -> None:
    model = of_text(tmp_path, DOUBLES)
    with pytest.raises(NotCovered) as refused:
        OpenVino().build(model, host, tmp_path)
    assert str(refused.value).startswith("OpenVINO computes float64 in float32, as in Exp (node ")
    other = OpenVino(threads=1).substitute(str(refused.value))
    assert other == OpenVino(threads=1, narrows=True)
    assert not other.exact
    on_gpu = OpenVinoIgpu(device="GPU.0").substitute(str(refused.value))
    assert on_gpu is not None
    assert on_gpu.words() == "float64 rounded to float32, OpenVINO on GPU.0"
    assert other.words() == "float64 rounded to float32, OpenVINO, 1 thread"
    with other.open(other.build(model, host, tmp_path), host) as session:
        (answer,) = session.run({"x": np.ones((1, 3), np.float32)}).values()
    np.testing.assert_allclose(answer, np.e, rtol=1e-6)
    assert OpenVino().substitute("OpenVINO can't convert the model") is None
    OpenVino("bf16").build(model, host, tmp_path)  # it rounds everything, as its words say


def test_long_whole_numbers_as_float64_are_refused_since_float32_rounds_them(
    host: Target, tmp_path: Path
) -> None:
    text = "long (int32[N, 2] x) => (double[N, 2] y) { y = Cast <to = 11> (x) }"
    with pytest.raises(NotCovered, match="float64 in float32, as in Convert"):
        OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    other = OpenVino(narrows=True)
    with other.open(other.build(of_text(tmp_path, text), host, tmp_path), host) as session:
        (answer,) = session.run({"x": np.array([[3, 2**24 + 1]], np.int32)}).values()
    assert answer.tolist() == [[3, 2**24]]


@pytest.mark.parametrize("inside", ["If", "Loop"])
def test_float64_inside_a_branch_or_a_loop_is_refused_too(
    host: Target, tmp_path: Path, inside: str
) -> None:
    double = "d = Cast <to = 11> (h)  e = Exp (d)  r = Cast <to = 1> (e)"
    text = {
        "If": f"""<ir_version: 10, opset_import: ["": 18]>
        branch (float[2, 4] h, bool c) => (float[2, 4] y) {{
            y = If (c) <then_branch = t () => (float[2, 4] r) {{ {double} }},
                else_branch = s () => (float[2, 4] b) {{ b = Identity (h) }}> }}""",
        "Loop": f"""<ir_version: 10, opset_import: ["": 18]>
        loop (float[2, 4] x, int64 n) => (float[2, 4] y) {{
            on = Constant <value = bool {{1}}> ()
            y = Loop (n, on, x) <body = t (int64 i, bool k, float[2, 4] h) => (bool l, float[2, 4] r) {{
                l = Identity (k)  {double} }}> }}""",
    }[inside]
    onnx.save(onnx.parser.parse_model(text), tmp_path / "inside.onnx")
    with pytest.raises(NotCovered, match="float64 in float32, as in Exp"):
        OpenVino().build(load(tmp_path / "inside.onnx"), host, tmp_path)


def test_float64_that_follows_from_sizes_alone_is_no_reason_to_refuse(
    host: Target, tmp_path: Path
) -> None:
    text = """scaled (float[N, 4] x) => (float[N, 4] y) { s = Shape (x)  d = Cast <to = 11> (s)  r = Sqrt (d)
        one = Constant <value_ints = [1]> ()  k = Gather (r, one)  f = Cast <to = 1> (k)  y = Div (x, f) }"""
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    with OpenVino().open(artifact, host) as session:
        (answer,) = session.run({"x": np.ones((1, 4), np.float32)}).values()
    assert answer.tolist() == [[0.5] * 4]


def test_f32_runs_in_f32_on_any_processor(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    with OpenVino().open(artifact, host) as session:
        session.run(request_for(artifact.inputs))
        properties = session.properties()
    assert "bf16" not in properties["executed_precisions"]
    assert "f32" in properties["executed_precisions"]
    assert properties["precision_hint"] == "f32"
    assert properties["streams"] == "1"
    assert properties["pinning"] == "False"
    assert properties["dynamic_quantization_group_size"] == "0"


def test_it_has_as_many_threads_as_it_is_told(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    with OpenVino(threads=1).open(artifact, host) as session:
        assert session.properties()["threads"] == "1"


def test_threads_are_bound_only_where_there_is_one_for_each_processor(
    host: Target, tmp_path: Path
) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    for cpus, bound in (((0,), "True"), ((0, 1), "False")):
        target = replace(host, cpus=cpus, threads=1)
        with OpenVino(pinning=True).open(artifact, target) as session:
            assert session.properties()["threads"] == "1"
            assert session.properties()["pinning"] == bound


@pytest.mark.parametrize(
    ("precision", "needs"),
    [("bf16", {"avx512_bf16", "amx_bf16"}), ("f16", {"avx512_fp16", "amx_fp16"})],
)
def test_a_lower_precision_is_what_runs_where_the_processor_has_it(
    tmp_path: Path, precision: Literal["f16", "bf16"], needs: set[str]
) -> None:
    host = Target.host()
    if not needs & set(host.isa):
        pytest.skip(f"this processor has no {precision}")
    artifact = build(models.small_cnn(tmp_path), host)
    with OpenVino(precision).open(artifact, host) as session:
        assert precision in session.properties()["executed_precisions"]


def test_the_artifact_is_ir_with_the_models_own_precision(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    assert artifact.path == tmp_path / "built" / "small_cnn.xml"
    assert artifact.files == (tmp_path / "built" / "small_cnn.bin",)
    assert "FP16" not in artifact.path.read_text()


def test_ir_is_taken_as_it_is(host: Target, tmp_path: Path) -> None:
    first = build(models.small_cnn(tmp_path), host)
    model = Model(first.path, "openvino", first.inputs, first.outputs, files=first.files)
    (tmp_path / "again").mkdir()
    again = OpenVino().build(model, host, tmp_path / "again")
    assert again.path.read_bytes() == first.path.read_bytes()
    with OpenVino().open(again, host) as session:
        assert session.run(request_for(again.inputs))["logits"].shape == (1, 10)


def test_ir_that_cannot_be_compiled_is_not_built(host: Target, tmp_path: Path) -> None:
    first = build(models.small_cnn(tmp_path), host)
    first.path.write_text("<net")
    model = Model(first.path, "openvino", first.inputs, first.outputs, files=first.files)
    (tmp_path / "again").mkdir()
    with pytest.raises(CandidateError) as caught:
        OpenVino().build(model, host, tmp_path / "again")
    assert str(caught.value).startswith("OpenVINO can't compile the model: ")


def test_inputs_are_found_by_name_whatever_their_order(host: Target, tmp_path: Path) -> None:
    artifact = build(models.two_inputs(tmp_path), host)
    turned = replace(artifact, inputs=artifact.inputs[::-1])
    request = request_for(artifact.inputs)
    with OpenVino().open(turned, host) as session:
        outputs = session.run(request)
    np.testing.assert_array_equal(outputs["same_ids"], request["ids"])


def test_shapes_may_change_and_change_back(host: Target, tmp_path: Path) -> None:
    artifact = build(models.two_inputs(tmp_path), host)
    with OpenVino().open(artifact, host) as session:
        for batch in (1, 4, 1, 2):
            request = request_for(artifact.inputs, batch=batch, seed=batch)
            np.testing.assert_array_equal(session.run(request)["same_ids"], request["ids"])


def test_a_session_is_compiled_for_the_request_and_once_more_for_any_other(
    host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, compile_ = [], OpenVino._compile

    def watched(self: OpenVino, *args: Any, **settings: Any) -> Any:
        compiled.append(compile_(self, *args, **settings))
        return compiled[-1]

    model = load(models.small_cnn(tmp_path))
    artifact = build(model.path, host)
    one, four = request_for(artifact.inputs), request_for(artifact.inputs, batch=4)
    artifact = replace(artifact, request=model.settled_by({"x": one["x"][0]}).request)
    monkeypatch.setattr(OpenVino, "_compile", watched)
    with OpenVino().open(artifact, host) as session:
        answers = [session.run(request)["logits"] for request in (one, four, one, four)]
        assert [str(c.inputs[0].partial_shape) for c in compiled] == ["[1,3,32,32]", "[?,3,32,32]"]
    np.testing.assert_array_equal(answers[0], answers[2])
    np.testing.assert_array_equal(answers[1], answers[3])
    np.testing.assert_allclose(answers[1][:1], answers[0], atol=1e-5)


def test_what_a_request_does_not_settle_is_compiled_open(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    wrong = replace(artifact.inputs[0], shape=(1, 15))
    with OpenVino().open(replace(artifact, request=(wrong,)), host) as session:
        assert session.run(request_for(artifact.inputs, batch=3))["logits"].shape == (3, 4)


def test_a_model_that_is_refused_settled_runs_open(
    host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(models.linear_classifier(tmp_path))
    artifact = build(model.path, host)
    one = request_for(artifact.inputs)
    artifact = replace(artifact, request=model.settled_by({"x": one["x"][0]}).request)
    real = openvino.Core.compile_model
    shapes = []

    def refusing(core: Any, graph: Any, *args: Any) -> Any:
        shapes.append(str(graph.inputs[0].partial_shape))
        if graph.inputs[0].partial_shape.is_static:
            raise RuntimeError("not in these shapes")
        return real(core, graph, *args)

    monkeypatch.setattr(openvino.Core, "compile_model", refusing)
    with OpenVino().open(artifact, host) as session:
        assert session.run(one)["logits"].shape == (1, 4)
        assert session.run(request_for(artifact.inputs, batch=3))["logits"].shape == (3, 4)
    assert shapes == ["[1,16]", "[?,16]"]


def test_an_unknown_operator_is_told_in_one_line(host: Target, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        build(models.unknown_operator(tmp_path), host)
    assert str(caught.value) == (
        "OpenVINO can't convert the model: No conversion rule found for operations: "
        "Frobnicate (node 'the_culprit')"
    )


def test_a_damaged_artifact_is_one_line(host: Target, tmp_path: Path) -> None:
    artifact = build(models.small_cnn(tmp_path), host)
    artifact.path.write_text("<net")
    with pytest.raises(CandidateError) as caught:
        with OpenVino().open(artifact, host):
            pass
    assert str(caught.value).startswith("OpenVINO can't compile the model: ")
    assert "\n" not in str(caught.value)


def test_a_request_that_does_not_fit_is_one_line(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    request = {"x": request_for(artifact.inputs)["x"][:, :3].copy()}
    with OpenVino().open(artifact, host) as session:
        with pytest.raises(CandidateError) as caught:
            session.run(request)
        assert session.run(request_for(artifact.inputs))["logits"].shape == (1, 4)
    assert str(caught.value) == (
        "OpenVINO failed: Can't set the input tensor with index: 0, because the model input "
        "(shape=[?,16]) and the tensor (shape=(1.3)) are incompatible"
    )


def test_an_input_that_is_missing_is_named(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with OpenVino().open(artifact, host) as session:
        with pytest.raises(CandidateError) as caught:
            session.run({})
    assert str(caught.value) == "OpenVINO didn't get the input 'x'"


def test_a_library_of_operators_that_cannot_be_loaded_is_named(
    host: Target, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = tmp_path_factory.mktemp("ops") / "extension.so"  # a message has its path twice
    library.write_bytes(b"not a library, though it says create_extensions")
    artifact = build(models.linear_classifier(tmp_path), host)
    with pytest.raises(CandidateError) as caught:
        with OpenVino().open(replace(artifact, custom_ops=(library,)), host):
            pass
    assert str(caught.value) == (
        "OpenVINO can't load extension.so: Cannot add extension. Cannot find entry point to the "
        f'extension library. This error happened: Cannot load library "{library}": '
        f"{library}: file too short"
    )


def test_a_closed_session_says_so(host: Target, tmp_path: Path) -> None:
    artifact = build(models.linear_classifier(tmp_path), host)
    with OpenVino().open(artifact, host) as session:
        pass
    with pytest.raises(CandidateError) as caught:
        session.run(request_for(artifact.inputs))
    assert str(caught.value) == "the session is closed: open the artifact again"


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError) as caught:
        OpenVino.version()
    assert str(caught.value) == (
        "OpenVINO isn't installed (import of openvino halted; None in sys.modules): "
        "pip install 'hasten[openvino]'"
    )


def test_converting_sends_no_telemetry_and_leaves_nothing_at_home(tmp_path: Path) -> None:
    program = """
import json, os, sys
from pathlib import Path
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.models.onnx import load
from hasten.core.target import Target
from hasten.testing import models
folder = Path(sys.argv[1])
(folder / "built").mkdir()
OpenVino().build(load(models.linear_classifier(folder)), Target.host(), folder / "built")
print(json.dumps(os.environ.get("CI")))
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in OFF}
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) is None
    assert list(home.iterdir()) == []


def imported(program: str) -> list[str]:
    """Run a program that has a list `said`, and return what is in it."""
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\nsaid = []\n{program}\nprint(*said, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


def test_the_converter_is_imported_only_once_somebody_asks_for_it() -> None:
    """It is almost half of OpenVINO's import, and what opens a bundle never converts."""
    program = """
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino
OpenVino.version()
said.append('openvino.tools.ovc' in sys.modules)
import openvino
said.append(hasattr(openvino, 'nothing'))
said.append(callable(openvino.convert_model))
said.append('openvino.tools.ovc' in sys.modules)
from openvino import convert_model
from openvino.tools.ovc import convert_model as own
said.append(convert_model is own)
"""
    assert imported(program) == ["False", "False", "True", "True", "True"]
    theirs_first = """
import openvino
before = openvino.convert_model
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino
OpenVino.version()
said.append(openvino.convert_model is before)
"""
    assert imported(theirs_first) == ["True"]


def test_sets_of_operators_are_imported_only_once_somebody_asks_for_them() -> None:
    """Seventeen modules of functions that make graphs are a good part of OpenVINO's import."""
    program = """
from hasten.engines.compile_cache import CompileCache
from hasten.engines.openvino.engine import OpenVino
OpenVino.version()
said.append(any('opset' in name for name in sys.modules))
import openvino, openvino.opset1 as first
said.append(first is openvino.opset1 is sys.modules['openvino.opset1'])
from openvino import opset13
x = openvino.opset8.parameter([1, 2])
graph = openvino.Model([opset13.relu(x + x)], [x])
said.append(len(graph.get_ops()))
said.append(hasattr(openvino, 'opset99'))
"""
    assert imported(program) == ["False", "True", "4", "False"]


def test_opening_a_folder_imports_neither_web_nor_xml_nor_compression(tmp_path: Path) -> None:
    part = built(tmp_path, models.linear_classifier(tmp_path), OpenVino(threads=1))
    write(tmp_path / "m.hasten", stated(part, part, status="exact"), {})
    program = f"""
import hasten, numpy
with hasten.load({str(tmp_path / "m.hasten")!r}, cache=False) as loaded:
    loaded(numpy.zeros((1, 16), 'float32'))
said += sorted({{'hasten.inputs.chains', 'hasten.engines.buckets', 'http.client', 'ssl', 'xml.etree.ElementTree', 'backports.zstd',
    'openvino.tools.ovc', 'openvino.opset1', 'importlib.metadata', 'email.message'}} & sys.modules.keys())
from hasten.bundle import unpacked
said.append(unpacked.__name__)
"""
    assert imported(program) == ["unpacked"]


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("int64", 2**33), ("int64", -(2**31) - 1), ("uint64", 2**31), ("uint32", 2**31 + 5)],
)
def test_a_whole_number_beyond_32_bits_is_refused_instead_of_answered_wrongly(
    host: Target, tmp_path: Path, dtype: str, number: int
) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    turned ({dtype}[n, 2] ids) => ({dtype}[2, n] y) {{ y = Transpose (ids) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "turned.onnx")
    fine, ids = np.array([[5, 9]], dtype), np.array([[5, number]], dtype)
    model = load(tmp_path / "turned.onnx").settled_by({"ids": ids[0]})
    artifact = OpenVino().build(model, host, tmp_path)
    with OpenVino().open(artifact, host) as session:
        assert session.run({"ids": fine})["y"].tolist() == [[5], [9]]
        with pytest.raises(CandidateError) as error:
            session.run({"ids": ids})
    assert str(error.value) == (
        f"OpenVINO computes whole numbers with 32 bits, and the input 'ids' has {number}: give numbers "
        "from -2147483648 to 2147483647, or use another engine"
    )


@pytest.mark.parametrize(
    ("dtype", "operator"),
    [("uint8", "Add"), ("uint8", "Div"), ("int8", "Mul"), ("uint8", "Sub"), ("uint32", "Sub")],
)
def test_whole_numbers_that_should_wrap_or_be_cut_are_refused(
    host: Target, tmp_path: Path, dtype: str, operator: str
) -> None:
    text = f"wrap ({dtype}[N, 3] x) => ({dtype}[N, 3] y) <{dtype} c = {{100}}> {{ y = {operator} (x, c) }}"
    with pytest.raises(NotCovered, match=f"whole numbers of {dtype} in another type, as in"):
        OpenVino().build(of_text(tmp_path, text), host, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "x8 (uint8[N, 3] x) => (float[N, 3] y) { y = Cast <to = 1> (x) }",
        "sum (int32[N, 3] x) => (int32[N, 3] y) { y = Add (x, x) }",
        """end (float[N, 3] x) => (float[N, 2] y)
            <int64[1] s = {1}, int64[1] e = {9223372036854775807}, int64[1] a = {1}> { y = Slice (x, s, e, a) }""",
    ],
    ids=["cast", "int32", "slice"],
)
def test_whole_numbers_that_openvino_has_right_are_taken(
    host: Target, tmp_path: Path, text: str
) -> None:
    OpenVino().build(of_text(tmp_path, text), host, tmp_path)


def test_a_constant_beyond_32_bits_is_refused_if_a_request_reads_it(
    host: Target, tmp_path: Path
) -> None:
    text = """ids (float[N, 3] x) => (int64[N] y) <int64[3] ids = {5, 1099511627776, 7}> {
        best = ArgMax <axis = 1, keepdims = 0> (x)  y = Gather (ids, best) }"""
    with pytest.raises(NotCovered, match=r"Gather \(node 'y'\) reads the constant 1099511627776"):
        OpenVino().build(of_text(tmp_path, text), host, tmp_path)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("where", ["plain", "inside"])
def test_the_first_of_equal_numbers_comes_first_in_every_batch(
    host: Target, tmp_path: Path, batch: int, where: str
) -> None:
    count, kinds = "count = Constant <value_ints = [16]> ()", "(float[N, 16] v, int64[N, 16] i)"
    text = f"ties (float[N, 16] x) => {kinds} {{ {count}  v, i = TopK (x, count) }}"
    if where == "inside":
        text = f"""ties (float[N, 16] x) => {kinds} {{ s = Size (x)  one = Constant <value_int = 1> ()
            c = Greater (s, one)  v, i = If (c) <then_branch = t () => (float[N, 16] a, int64[N, 16] b) {{
                {count}  a, b = TopK (x, count) }}, else_branch = e () => (float[N, 16] d, int64[N, 16] f) {{
                {count}  n = Neg (x)  d, f = TopK (n, count) }}> }}"""
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    x = np.random.default_rng(0).integers(0, 3, (batch, 16)).astype(np.float32)
    with OpenVino().open(artifact, host) as session:
        places = session.run({"x": x})["i"]
    assert places.tolist() == np.argsort(-x, axis=1, kind="stable").tolist()


def test_a_large_topk_stays_fast(host: Target, tmp_path: Path) -> None:
    text = """boxes (float[N, 8400] x) => (float[N, 300] v, int64[N, 300] i) {
        count = Constant <value_ints = [300]> ()  v, i = TopK (x, count) }"""
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    assert 'stable="true"' not in artifact.path.read_text()


def test_the_largest_of_each_of_many_rows_stays_fast(host: Target, tmp_path: Path) -> None:
    text = """scores (float[N, 672000] x) => (float[N, 8400, 1] v, int64[N, 8400, 1] i) <int64[3] s = {0, 8400, 80}> {
        count = Constant <value_ints = [1]> ()  r = Reshape (x, s)  v, i = TopK (r, count) }"""
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    assert 'stable="true"' not in artifact.path.read_text()


def test_a_topk_of_an_open_number_of_axes_is_refused_with_the_plugins_reason(
    host: Target, tmp_path: Path
) -> None:
    text = """opened (float[N, 3] x) => (float[N, 1] v, int64[N, 1] i)
        <int64[1] one = {1}, float zero = {0}, int64[2] back = {-1, 1}> {
        f = ReduceMax <keepdims = 0> (x)  c = Greater (f, zero)  z = If (c) <
            then_branch = t () => (float[m, 3] r) { r = Identity (x) },
            else_branch = e () => (float[m, 3, 1] q) { two = Constant <value_ints = [2]> ()  q = Unsqueeze (x, two) }>
        a, b = TopK <axis = 1> (z, one)  v = Reshape (a, back)  i = Reshape (b, back) }"""
    with pytest.raises(CandidateError, match="dynamic rank"):
        OpenVino().build(of_text(tmp_path, text), host, tmp_path)


def test_nan_of_16_bits_is_refused_and_infinity_is_not(host: Target, tmp_path: Path) -> None:
    text = "rectified (float16[N, 3] x) => (float16[N, 3] y) { y = Relu (x) }"
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    x = np.array([[-np.inf, np.inf, -0.0]], np.float16)
    with OpenVino().open(artifact, host) as session:
        assert session.run({"x": x})["y"].tolist() == [[0, np.inf, 0]]
        for bits in (0x7C01, 0x7FFF, 0xFC01, 0xFFFF):
            x[0, 2] = np.array(bits, np.uint16).view(np.float16)
            with pytest.raises(BeyondRange, match="makes ordinary numbers of NaN"):
                session.run({"x": x})


def test_nan_is_refused_instead_of_answered_with_an_ordinary_number(
    host: Target, tmp_path: Path
) -> None:
    text = "rectified (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    fine = np.array([[1, -np.inf, np.inf]], np.float32)
    with OpenVino().open(artifact, host) as session:
        for x in (fine, np.concatenate([fine, fine])):
            spoiled = np.array(x)
            spoiled[-1, 0] = np.nan
            with pytest.raises(BeyondRange) as error:
                session.run({"x": spoiled})
            assert session.run({"x": x})["y"].tolist() == np.maximum(x, 0).tolist()
    assert str(error.value) == (
        "OpenVINO makes ordinary numbers of NaN, and the input 'x' has one: replace it before the call, or use another "
        "engine"
    )


def test_a_model_that_replaces_nan_itself_gets_it(host: Target, tmp_path: Path) -> None:
    text = """filled (float[N, 3] x) => (float[N, 3] y) <float zero = {0}> {
        lost = IsNaN (x)  y = Where (lost, zero, x) }"""
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    cache = CompileCache(CacheFolder(tmp_path / "cache", 1 << 20))
    opened = OpenVino().open(artifact, host), OpenVino().open_cached(artifact, host, cache)
    for one in opened:
        with one as session:
            (answer,) = session.run({"x": np.array([[1, np.nan, 3]], np.float32)}).values()
        assert answer.tolist() == [[1, 0, 3]]
    assert OpenVino().profile(artifact, host, [{"x": np.array([[1, np.nan, 3]], np.float32)}])


def test_places_that_a_request_names_are_refused_where_nothing_checks_them(
    host: Target, tmp_path: Path
) -> None:
    path = tmp_path / "pooled.onnx"
    text = """<ir_version: 9, opset_import: ["": 17]>
    pooled (float[N, 6, 4] x, int64[N, 6] mask) => (float[N, 4] y) <int64[1] axis = {1}, int64 one = {1}> {
        length = ReduceSum (mask, axis)  last = Sub (length, one)  y = GatherND <batch_dims = 1> (x, last) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    sample: dict[str, np.ndarray] = {
        "x": np.zeros((6, 4), np.float32),
        "mask": np.ones(6, np.int64),
    }
    with pytest.raises(
        NotCovered, match="doesn't check the places that a request names, as GatherND"
    ):
        OpenVino().build(load(path).settled_by(sample), host, tmp_path)


def test_places_to_which_a_request_writes_are_refused(host: Target, tmp_path: Path) -> None:
    path = tmp_path / "summed.onnx"
    text = """<ir_version: 9, opset_import: ["": 18]>
    summed (float[6, 1] x, int64[N] at) => (float[6, 1] y) <int64[1] last = {-1}, float[1] one = {1}> {
        index = Unsqueeze (at, last)  size = Shape (index)  ones = Expand (one, size)
        y = ScatterElements <axis = 0, reduction = "add"> (x, index, ones) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    sample: dict[str, np.ndarray] = {
        "x": np.zeros((6, 1), np.float32),
        "at": np.zeros(3, np.int64),
    }
    with pytest.raises(
        NotCovered, match=r"as ScatterElementsUpdate .* would write beyond the tensor"
    ):
        OpenVino().build(load(path).settled_by(sample), host, tmp_path)


def test_places_that_the_model_finds_itself_are_taken(host: Target, tmp_path: Path) -> None:
    text = """best (float[N, 6] x) => (float[N] y) {
        i = ArgMax <axis = 1> (x)  y = GatherND <batch_dims = 1> (x, i) }"""
    artifact = OpenVino().build(of_text(tmp_path, text), host, tmp_path)
    with OpenVino().open(artifact, host) as session:
        assert session.run({"x": np.array([[1, 5, 2, 5, 0, 3]], np.float32)})["y"].tolist() == [5]
