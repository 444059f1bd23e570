"""Models of which compiled C covers a part, and ONNX Runtime has the rest."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.quantized import ran
from tests.support.varying import detector, pictures

from hasten import bundle
from hasten.bundle import part
from hasten.bundle.requirements import requirements
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Artifact, Session
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.spelled_out import without_weights
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.pool import SessionPool
from hasten.engines.split.engine import Split
from hasten.engines.split.graph import inferred
from hasten.errors import CandidateError, InputError, IntegrityError, NotCovered
from hasten.inputs.models.onnx import load
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.engine_tests import EngineTests, _exact


def with_uncovered(model: Model, folder: Path, where: str) -> Model:
    """Put operators that compiled C doesn't cover, and that change nothing, at the outputs or the inputs."""
    try:
        proto = onnx.load(model.path)
    except Exception:
        return model
    graph = proto.graph
    if any(node.op_type == "Frobnicate" for node in graph.node):
        return model
    constants = {tensor.name for tensor in graph.initializer}
    at = graph.output if where == "rest" else [i for i in graph.input if i.name not in constants]
    names = {value.name: f"{value.name}_inside" for value in at}
    for node in graph.node:
        for tensors in (node.output, node.input):
            for place, name in enumerate(tensors):
                if name in names and (where == "rest" or tensors is node.input):
                    tensors[place] = names[name]
    added = []
    graph.initializer.append(onnx.helper.make_tensor("none", onnx.TensorProto.INT64, [], [0]))
    for name, inside in names.items():
        read, given = (inside, name) if where == "rest" else (name, inside)
        listed = onnx.helper.make_node(
            "SequenceConstruct", [read], [f"list of {name}"], f"list of {name}"
        )
        picked = onnx.helper.make_node(
            "SequenceAt", [f"list of {name}", "none"], [given], f"item of {name}"
        )
        added += [listed, picked]
    own = [*graph.node]
    del graph.node[:]
    graph.node.extend([*own, *added] if where == "rest" else [*added, *own])
    path = folder / f"uncovered-{where}.onnx"
    onnx.save(proto, path)
    return replace(model, path=path, files=())


class SplitTests(EngineTests):
    engine = Split()
    where = "rest"

    def built(self, model: Model, target: Target, workdir: Path) -> Artifact:
        return super().built(with_uncovered(model, workdir, self.where), target, workdir)

    def skip_without_bundles(self, target: Target) -> None:
        """Skip nothing: the search proposes it on this host, though no family of devices has it."""


class TestSplit(SplitTests):
    pass


class TestSplitHead(SplitTests):
    where = "head"


def saved(folder: Path, text: str, weights: Mapping[str, Array]) -> Path:
    """Write a model from its text; weights of 64 bits become float32."""
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        kept = array.astype(np.float32) if array.dtype == np.float64 else array
        model.graph.initializer.append(onnx.numpy_helper.from_array(kept, name))
    path = folder / f"{model.graph.name}.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def host() -> Target:
    return Target.host().with_threads(1)


@pytest.fixture
def found(tmp_path: Path) -> Model:
    return load(detector(tmp_path)).settled_by({"picture": pictures(1)["picture"][0]})


def built(model: Model, host: Target, folder: Path, engine: Split | None = None) -> Artifact:
    place = folder / "built"
    place.mkdir()
    return (engine or Split()).build(model, host, place)


def right(model: Model, request: dict[str, Array], host: Target, folder: Path) -> dict[str, Array]:
    place = folder / "whole"
    place.mkdir(parents=True)
    engine = OnnxRuntime()
    with engine.open(engine.build(model, host, place), host) as session:
        return session.run(request)


def rest(artifact: Artifact) -> list[str]:
    return [node.op_type for node in onnx.load(artifact.path.parent / "rest.onnx").graph.node]


def test_boxes_of_any_number_come_from_a_detector_of_two_parts(
    found: Model, host: Target, tmp_path: Path
) -> None:
    artifact = built(found, host, tmp_path)
    assert "NonMaxSuppression" in rest(artifact)
    assert "Conv" not in rest(artifact)
    counts = set()
    with Split().open(artifact, host) as session:
        assert session.properties()["parts"] == "compiled C, then ONNX Runtime"
        assert "doesn't take NonMaxSuppression" in session.properties()["why not all"]
        for seed in range(4):
            request = pictures(1, seed)
            wanted = right(found, request, host, tmp_path / f"{seed}")
            got = session.run(request)
            assert list(got) == list(wanted)
            for name, array in wanted.items():
                np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)
            counts.add(len(got["boxes"]))
    assert len(counts) > 1


def test_eight_threads_get_the_boxes_that_one_gets(
    found: Model, host: Target, tmp_path: Path
) -> None:
    artifact = built(found, host, tmp_path)
    requests = [pictures(1, seed) for seed in range(100)]
    with Split().open(artifact, host) as session:
        alone = [session.run(request) for request in requests]
    pool = SessionPool(Split(), artifact, host, 3)
    try:
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(pool.run, requests))
    finally:
        pool.close()
    for got, expected in zip(together, alone, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)


SCALED = """<ir_version: 9, opset_import: ["": 17]>
scaled (float[N, 3, 4, 4] x) => (float[N, 2] y, float[N, 3, 8, 8] large)
<float[4] scales = {1, 1, 2, 2}, int64[2] flat = {0, -1}> {
    large = Resize <mode = "cubic", coordinate_transformation_mode = "half_pixel"> (x, , scales)
    c = Conv <pads = [1, 1, 1, 1]> (large, w)
    a = Relu (c)
    rows = Reshape (a, flat)
    y = MatMul (rows, v)
}"""


def scaled(folder: Path) -> Model:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((2, 3, 3, 3)), "v": rng.standard_normal((128, 2))}
    return load(saved(folder, SCALED, weights)).settled_by({"x": np.zeros((3, 4, 4), np.float32)})


def test_what_is_not_covered_comes_first_where_that_leaves_more(
    host: Target, tmp_path: Path
) -> None:
    model = scaled(tmp_path)
    artifact = built(model, host, tmp_path)
    assert rest(artifact) == ["Resize"]
    with Split().open(artifact, host) as session:
        assert session.properties()["parts"] == "ONNX Runtime, then compiled C"
        assert session.batch_sizes is None
        for rows in (1, 3):
            x = np.random.default_rng(rows).standard_normal((rows, 3, 4, 4), np.float32)
            got = session.run({"x": x})
            wanted = right(model, {"x": x}, host, tmp_path / f"{rows}")
            for name, array in wanted.items():
                np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [scaled, lambda folder: fixed(folder)])
def test_a_bound_call_answers_into_the_same_arrays(
    make: Callable[[Path], Model], host: Target, tmp_path: Path
) -> None:
    model = make(tmp_path)
    artifact = built(model, host, tmp_path)
    with Split().open(artifact, host) as session:
        given = {s.name: np.ones(s.sizes, s.dtype) for s in artifact.request}
        outputs = {name: np.zeros_like(array) for name, array in session.run(given).items()}
        call = session.bind(given, outputs)
        for seed in range(3):
            for array in given.values():
                array[...] = np.random.default_rng(seed).standard_normal(array.shape)
            call()
            for name, array in session.run(given).items():
                np.testing.assert_array_equal(outputs[name], array)


FIXED = """<ir_version: 9, opset_import: ["": 17]>
fixed (float[N, 6] x, float[N, 3] further) => (float[N, 3] y, float[N, 3] plain) {
    plain = MatMul (x, w)
    both = SequenceConstruct (plain, further)
    y = ConcatFromSequence <axis = 0> (both)
}""".replace("float[N, 3] y,", "float[M, 3] y,")


def fixed(folder: Path) -> Model:
    """Write a model whose rest reads an input, and what compiled C gives to the caller too."""
    weights = {"w": np.random.default_rng(0).standard_normal((6, 3))}
    sample = {"x": np.zeros(6, np.float32), "further": np.zeros(3, np.float32)}
    return load(saved(folder, FIXED, weights)).settled_by(sample)


def test_a_wrong_declaration_of_an_output_that_the_rest_reads_is_passed_over(
    host: Target, tmp_path: Path
) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
    declared (float[N, 6] x) => (float[N, 5] y, int64[2, found] places) { y = MatMul (x, w)  places = NonZero (y) }"""
    model = load(saved(tmp_path, text, {"w": np.ones((6, 3))}))
    artifact = built(model.settled_by({"x": np.zeros(6, np.float32)}), host, tmp_path)
    x = np.ones((2, 6), np.float32)
    with Split().open(artifact, host) as session:
        got = session.run({"x": x})
    for name, array in right(model, {"x": x}, host, tmp_path).items():
        np.testing.assert_array_equal(got[name], array)


def test_shapes_are_inferred_without_copies_of_large_weights(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
    wide (float[N, 60] x) => (float[N, 30] y) <int64[2] flat = {-1, 10}, int64[2] back = {-1, 30}> {
        a = MatMul (x, w)  b = Reshape (a, flat)  y = Reshape (b, back) }"""
    proto = onnx.load(saved(tmp_path, text, {"w": np.ones((60, 30))}))
    assert without_weights(proto).ByteSize() < 1000
    known = inferred(proto, [TensorSpec("x", "float32", (2, 60))])
    assert {name: spec.shape for name, spec in known.items() if name in "ab"} == {
        "a": (2, 30),
        "b": (6, 10),
    }


def test_a_call_is_bound_where_the_first_input_is_one_number(host: Target, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
    offset (float t, float[1, 6] x) => (float[1, 3] y) { a = MatMul (x, w)  b = Add (a, t)  y = Hardmax (b) }"""
    model = load(saved(tmp_path, text, {"w": np.eye(6)[:, :3]}))
    given = {"t": np.array(1, np.float32), "x": np.arange(6, dtype=np.float32)[None]}
    outputs = {"y": np.zeros((1, 3), np.float32)}
    with Split().open(built(model, host, tmp_path), host) as session:
        session.bind(given, outputs)()
    np.testing.assert_array_equal(outputs["y"], [[0, 0, 1]])


def test_a_model_that_is_covered_or_has_too_few_products_is_left_whole(
    host: Target, tmp_path: Path
) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
        whole (float[N, 6] x) => (float[N, 3] y) { y = MatMul (x, w) }"""
    weights = {"w": np.ones((6, 3)), "v": np.ones((3, 3))}
    x = {"x": np.zeros(6, np.float32)}
    covered = load(saved(tmp_path, text, weights)).settled_by(x)
    with pytest.raises(NotCovered, match="covers all of the model"):
        built(covered, host, tmp_path)
    text = """<ir_version: 9, opset_import: ["": 17]>
        middle (float[N, 6] x) => (float[N, 3] y) <int64 none = {0}> {
            a = MatMul (x, w)  listed = SequenceConstruct (a)
            b = SequenceAt (listed, none)  y = MatMul (b, v) }"""
    few = load(saved(tmp_path, text, weights)).settled_by(x)
    (tmp_path / "few").mkdir()
    with pytest.raises(
        NotCovered, match=r"could have 1 of the model's 2 products, .* SequenceConstruct"
    ):
        built(few, host, tmp_path / "few")


def test_products_that_compiled_c_does_not_know_are_counted_before_anything_is_lowered(
    host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
        dynamic (float[N, 6] x) => (int32[N, 3] y) {
            q, step, zero = DynamicQuantizeLinear (x)
            y = MatMulInteger (q, w, zero) }"""
    model = load(saved(tmp_path, text, {"w": np.ones((6, 3), np.int8)}))
    model = model.settled_by({"x": np.zeros(6, np.float32)})
    monkeypatch.setattr("hasten.engines.split.engine.coverage", None)
    with pytest.raises(NotCovered, match="at most 0 of the model's 1 products"):
        built(model, host, tmp_path)


def test_too_much_work_in_floats_is_no_reason_to_split(
    found: Model, host: Target, tmp_path: Path
) -> None:
    with pytest.raises(NotCovered, match="more") as refused:
        built(found, host, tmp_path, Split(CompiledC(most_work=100)))
    assert CompiledC().substitute(str(refused.value)) is None


def test_another_engine_than_compiled_c_is_refused(
    found: Model, host: Target, tmp_path: Path
) -> None:
    with pytest.raises(
        CandidateError, match="split takes compiled C for one part, not ONNX Runtime"
    ):
        built(found, host, tmp_path, Split(OnnxRuntime()))


def test_weights_keep_7_bits_where_sums_of_bytes_may_saturate_in_the_rest() -> None:
    careful = StaticQuantization(reduce_range=True)
    assert careful.suited(Split()).reduce_range
    assert not careful.suited(CompiledC()).reduce_range


def test_it_is_proposed_where_an_operator_was_refused(
    found: Model, host: Target, tmp_path: Path
) -> None:
    for engine in CompiledC.variants(replace(host, cpus=(0, 1), threads=2)):
        with pytest.raises(NotCovered) as refused:
            CompiledC().build(found, host, tmp_path)
        assert engine.substitute(str(refused.value)) == Split(engine)
    assert OnnxRuntime().substitute(str(refused.value)) is None


def test_both_parts_keep_bytes_as_bytes(host: Target, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
    bytes (float[1, 16, 8, 8] x) => (float[1, 4, 8, 8] y, int64[4, found] places)
    <float step = {0.1}, uint8 zero = {128}, int8 none = {0}, float small = {0.01}> {
        q = QuantizeLinear (x, step, zero)  d = DequantizeLinear (q, step, zero)
        v = DequantizeLinear (w, small, none)
        c = Conv (d, v)
        r = QuantizeLinear (c, step, zero)  y = DequantizeLinear (r, step, zero)
        places = NonZero (y)
    }"""
    weights = np.random.default_rng(0).integers(-127, 128, (4, 16, 1, 1)).astype(np.int8)
    model = load(saved(tmp_path, text, {"w": weights}))
    artifact = built(model, host, tmp_path)
    plan = Plan.read(tmp_path / "built" / "plan.json")
    assert any(one.narrow and one.work for one in plan.operations)
    assert rest(artifact) == ["NonZero"]
    x = np.random.default_rng(1).standard_normal((1, 16, 8, 8), np.float32)
    with Split().open(artifact, host) as session:
        got = session.run({"x": x})
    wanted = ran(onnx.load(model.path), {"x": x})
    np.testing.assert_allclose(got["y"], wanted["y"], atol=0.11)
    np.testing.assert_array_equal(got["places"], np.array(np.nonzero(got["y"])))


def test_nan_that_bytes_cannot_hold_crosses_as_nan(host: Target, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
    gone (float[N, 16] x) => (float[N, 4] y) <float step = {0.1}, uint8 zero = {128}, int8 none = {0}> {
        q = QuantizeLinear (x, step, zero)  d = DequantizeLinear (q, step, zero)
        v = DequantizeLinear (w, step, none)  m = MatMul (d, v)
        r = QuantizeLinear (m, step, zero)  f = DequantizeLinear (r, step, zero)
        y = MeanVarianceNormalization <axes = [1]> (f) }"""
    weights = np.random.default_rng(0).integers(-127, 128, (16, 4)).astype(np.int8)
    model = load(saved(tmp_path, text, {"w": weights})).settled_by({"x": np.zeros(16, np.float32)})
    artifact = built(model, host, tmp_path)
    assert "QuantizeLinear" not in rest(artifact)
    x = np.random.default_rng(1).standard_normal((2, 16), np.float32)
    x[0, 3] = np.nan
    with Split().open(artifact, host) as session:
        got = session.run({"x": x})["y"]
    np.testing.assert_array_equal(np.isnan(got), [[True] * 4, [False] * 4])


def test_a_part_takes_inputs_for_constants_where_no_sample_changes_them(
    host: Target, tmp_path: Path
) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
    choosing (float[1, 4] x, bool[1] turned) => (int64[2, found] places) {
        y = If (turned) <
            then_branch = yes () => (float[1, 4] minus) { minus = Neg (x) },
            else_branch = no () => (float[1, 4] plus) { plus = Identity (x) }>
        z = MatMul (y, w)
        places = NonZero (z)
    }"""
    model = load(saved(tmp_path, text, {"w": np.eye(4)}))
    model = replace(model, constant_inputs=(("turned", (1,)),))
    artifact = built(model, host, tmp_path)
    assert Split().constant_inputs(artifact) == {"turned": (1,)}
    x = np.array([[0, 1, 0, 2]], np.float32)
    with Split().open(artifact, host) as session:
        got = session.run({"x": x, "turned": np.array([True])})
        np.testing.assert_array_equal(got["places"], [[0, 0], [1, 3]])
        with pytest.raises(InputError, match="input 'turned' must be 1"):
            session.run({"x": x, "turned": np.array([False])})


def damages() -> list[object]:
    files = ["rest.onnx"]
    half = {"files": files, "inputs": [], "outputs": [], "request": []}
    whole = {"compiled_first": True, "share": "", "why": "", "rest": half}
    return [
        [],
        {},
        {**whole, "compiled": {**half, "files": []}},
        {**whole, "compiled": {**half, "files": ["../../etc/passwd"]}},
        {**whole, "compiled": {**half, "files": [1]}},
        {**whole, "compiled": {**half, "inputs": [{"name": "x", "dtype": "f", "shape": [10**30]}]}},
    ]


@pytest.mark.parametrize("index", damages())
def test_a_damaged_list_of_parts_is_one_line(
    found: Model, host: Target, tmp_path: Path, index: object
) -> None:
    artifact = built(found, host, tmp_path)
    artifact.path.write_text(json.dumps(index))
    opening: AbstractContextManager[Session] = Split().open(artifact, host)
    with pytest.raises(CandidateError, match=r"^split\.json is damaged: ") as caught, opening:
        pass
    assert "\n" not in str(caught.value)
    assert Split().constant_inputs(artifact) == {}
    assert list(Split().stretches(artifact)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["compiled"]["inputs"].clear(),
        lambda index: index["rest"]["inputs"][0].update(name="another"),
        lambda index: index["compiled"]["outputs"].clear(),
        lambda index: index["rest"]["outputs"].clear(),
        lambda index: index.update(compiled_first=False),
    ],
)
def test_parts_that_do_not_fit_each_other_are_not_opened(
    found: Model, host: Target, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    artifact = built(found, host, tmp_path)
    index = json.loads(artifact.path.read_text())
    change(index)
    artifact.path.write_text(json.dumps(index))
    opening: AbstractContextManager[Session] = Split().open(artifact, host)
    message = r"^split\.json is damaged: its parts don't fit each other$"
    with pytest.raises(CandidateError, match=message), opening:
        pass


def test_a_reason_that_a_bundle_brings_is_one_line(
    found: Model, host: Target, tmp_path: Path
) -> None:
    artifact = built(found, host, tmp_path)
    index = json.loads(artifact.path.read_text())
    artifact.path.write_text(json.dumps({**index, "why": "a\n\x1b[31m"}))
    with Split().open(artifact, host) as session:
        assert session.properties()["why not all"] == r"a\n\x1b[31m"


def test_a_bundle_needs_the_packages_and_the_compiler_of_both_parts(
    found: Model, host: Target, tmp_path: Path
) -> None:
    artifact = built(found, host, tmp_path)
    assert {one.file.name for one in Split().stretches(artifact)} == {"plan.bin", "rest.onnx"}
    version = OnnxRuntime.version()
    manifest = _exact(part("boxes", (), Split(), artifact), host)
    manifest = replace(manifest, environment={**manifest.environment, "onnxruntime": version})
    lines = requirements(manifest)
    assert f"onnxruntime=={version}" in lines
    assert any("a C compiler" in line for line in lines)
    path = tmp_path / "boxes.hasten"
    bundle.write(path, manifest, {})
    request = pictures(1)
    with bundle.load(path, cache=False) as loaded:
        got = loaded(request)
    wanted = right(found, request, host, tmp_path)
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)
    changed = next(path.rglob("rest.onnx"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match=r"rest\.onnx"), bundle.load(path, cache=False):
        pass
