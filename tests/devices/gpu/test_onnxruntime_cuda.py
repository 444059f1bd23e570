import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.cuda import onnxruntime as onnxruntime_cuda
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.replays import RUNS
from hasten.engines.cuda.runtime import CAPTURING
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


class TestOnnxRuntimeCudaOverThisHost(EngineTests):
    """The session of the GPU's, bindings and copies and all, over the host's memory and kernels."""

    engine = OnnxRuntimeCuda()

    def test_the_first_variant_is_the_default(self, target: Target) -> None:
        super().test_the_first_variant_is_the_default(replace(target, kind="attached"))

    def test_the_version_is_a_word(self) -> None:
        if not HAS_CUDA:
            pytest.skip("this ONNX Runtime has no CUDA")
        super().test_the_version_is_a_word()


def test_copies_are_counted(tmp_path: Path) -> None:
    model = load(models.two_inputs(tmp_path))
    engine, target = OnnxRuntimeCuda(), Target.host().with_threads(1)
    (tmp_path / "built").mkdir()
    with engine.open(engine.build(model, target, tmp_path / "built"), target) as session:
        session.run(request_for(model.inputs, batch=2))
        said = session.properties()
    assert said["copies_to_device"] == said["copies_to_host"] == "2"
    assert said["bytes_to_device"] == said["bytes_to_host"] == str(2 * (8 * 4 + 3 * 8))


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_graphs_are_as_many_as_are_kept_and_each_is_of_one_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_graph: bool
) -> None:
    made: list[tuple[int, bool]] = []
    real = onnxruntime_cuda._Execution

    def execution(session: Any, outputs: Any, device: Any, number: int) -> Any:
        one = real(session, outputs, device, number)
        assert one._options.get_run_config_entry("gpu_graph_id") == str(number)
        made.append((number, one.lasting))
        return one

    monkeypatch.setattr(onnxruntime_cuda, "_Execution", execution)
    model = load(models.two_inputs(tmp_path))
    engine, target = OnnxRuntimeCuda(cuda_graph=cuda_graph), Target.host().with_threads(1)
    (tmp_path / "built").mkdir()
    with engine.open(engine.build(model, target, tmp_path / "built"), target) as session:
        for batch in (*range(1, 41), *range(1, 41)):
            session.run(request_for(model.inputs, batch=batch))
        numbers = [number for number, lasting in made if lasting]
        assert numbers == (list(range(1, 13)) if cuda_graph else [])
        assert {number for number, lasting in made if not lasting} == {-1}
        made.clear()
        session.run(request_for(model.inputs, batch=1))
        assert made == ([] if cuda_graph else [(-1, False)])


def test_one_thread_opens_runs_and_closes_whoever_asks(one_thread: Any, tmp_path: Path) -> None:
    model = load(models.small_cnn(tmp_path))
    engine, target = OnnxRuntimeCuda(), Target.host().with_threads(1)
    (tmp_path / "built").mkdir()
    artifact = engine.build(model, target, tmp_path / "built")
    kinds = (onnxruntime_cuda._Network, onnxruntime_cuda._Execution)
    one_thread(engine.open(artifact, target), kinds, request_for(model.inputs))


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_a_runtime_without_cuda_says_what_to_install() -> None:
    with pytest.raises(InputError) as caught:
        OnnxRuntimeCuda.version()
    assert str(caught.value) == (
        f"this ONNX Runtime, {onnxruntime.__version__}, has no CUDA: "
        "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    )


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_a_bundle_for_a_gpu_says_the_same_where_it_is_opened(tmp_path: Path) -> None:
    model, host = load(models.small_cnn(tmp_path)), Target.host()
    (tmp_path / "built").mkdir()
    artifact = OnnxRuntimeCuda().build(model, host, tmp_path / "built")
    device: Any = SimpleNamespace(kind="cuda", stream=0)
    with pytest.raises(CandidateError, match=r"^this ONNX Runtime, [\d.]+, has no CUDA: pip "):
        OnnxRuntimeCuda()._load(artifact, host, device)


def test_a_runtime_that_isnt_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        InputError, match=r"^ONNX Runtime isn't installed \(.+\): pip install onnxruntime-gpu$"
    ):
        OnnxRuntimeCuda.version()


def test_only_cudas_kernels_without_tf32_are_exact(sm80: Target) -> None:
    assert OnnxRuntimeCuda().exact
    assert not OnnxRuntimeCuda(tf32=True).exact
    assert not OnnxRuntimeCuda("tensorrt").exact
    assert list(OnnxRuntimeCuda.variants(sm80)) == []
    assert list(OnnxRuntimeCuda.variants(Target.host())) == []
    attached = replace(sm80, kind="attached")
    assert [one.exact for one in OnnxRuntimeCuda.variants(attached)][:2] == [True, False]
    assert list(OnnxRuntimeCuda().tunings(attached)) == [OnnxRuntimeCuda(cuda_graph=True)]


def test_tensorrts_provider_has_no_graph_for_each_shape_and_is_given_none(
    sm80: Target, tmp_path: Path
) -> None:
    attached, engine = replace(sm80, kind="attached"), OnnxRuntimeCuda("tensorrt", cuda_graph=True)
    assert list(OnnxRuntimeCuda("tensorrt").tunings(attached)) == []
    model = load(models.two_inputs(tmp_path))
    (tmp_path / "built").mkdir()
    with pytest.raises(
        CandidateError,
        match=r"^ONNX Runtime's TensorRT provider has one CUDA graph, which it replays for requests of "
        r"all shapes: leave cuda_graph out, or use the engine tensorrt, which has a graph for each shape$",
    ):
        engine.build(model, Target.host(), tmp_path / "built")


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_capture_of_the_runtimes_own_takes_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_graph: bool
) -> None:
    model = load(models.two_inputs(tmp_path))
    engine, target = OnnxRuntimeCuda(cuda_graph=cuda_graph), Target.host().with_threads(1)
    (tmp_path / "built").mkdir()
    artifact = engine.build(model, target, tmp_path / "built")
    run, locked = onnxruntime_cuda._Execution._run, []

    def watched(execution: Any, options: Any) -> None:
        if options is execution._options:
            locked.append(CAPTURING.locked())
        run(execution, options)

    monkeypatch.setattr(onnxruntime_cuda._Execution, "_run", watched)
    with engine.open(artifact, target) as session:
        for _ in range(5):
            session.run(request_for(model.inputs))
    assert locked[:RUNS] == [cuda_graph] * RUNS
    assert not any(locked[RUNS:])


def test_a_graph_of_the_runtimes_own_that_answers_another_request_isnt_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(models.two_inputs(tmp_path))
    engine, target = OnnxRuntimeCuda(cuda_graph=True), Target.host().with_threads(1)
    (tmp_path / "built").mkdir()
    artifact = engine.build(model, target, tmp_path / "built")
    requests = [request_for(model.inputs, seed=seed) for seed in range(3)]
    with engine.open(artifact, target) as session:
        expected = [session.run(request) for request in requests]
        assert session.properties()["graph"] == "off"
    enqueue, runs = onnxruntime_cuda._Execution.enqueue, []

    def stale(execution: Any) -> None:
        runs.append(1)
        if len(runs) <= 3:  # then the outputs stay what they were
            enqueue(execution)

    monkeypatch.setattr(onnxruntime_cuda._Execution, "enqueue", stale)
    with engine.open(artifact, target) as session:
        for request, right in zip(requests, expected, strict=True):
            answer = session.run(request)
            for name, array in right.items():
                np.testing.assert_array_equal(answer[name], array)
        assert session.properties()["graph"] == (
            "none: the graph returns the answer to another request"
        )


def of(*inputs: TensorSpec, request: tuple[TensorSpec, ...] = ()) -> Artifact:
    return Artifact(Path("none"), inputs, (), request)


def test_tensorrts_provider_builds_once_for_all_batches() -> None:
    image = TensorSpec("x", "float32", ("batch", 3, "height", 8))
    ids, fixed = TensorSpec("ids", "int64", ("batch", 5)), TensorSpec("k", "float32", (2,))
    one = (
        TensorSpec("x", "float32", (1, 3, 6, 8)),
        TensorSpec("ids", "int64", (1, 5)),
        TensorSpec("k", "float32", (2,)),
    )
    artifact = of(image, ids, fixed, request=one)
    assert onnxruntime_cuda.profile(artifact) == {
        "trt_profile_min_shapes": "x:1x3x6x8,ids:1x5",
        "trt_profile_opt_shapes": "x:1x3x6x8,ids:1x5",
        "trt_profile_max_shapes": "x:32x3x6x8,ids:32x5",
    }
    batched = of(image, ids, request=one[:2])
    assert OnnxRuntimeCuda("tensorrt")._batches(batched) == tuple(range(1, 33))
    assert OnnxRuntimeCuda()._batches(batched) is None
    assert onnxruntime_cuda.profile(of(fixed, request=one[2:])) == {}
    for unnamed in (
        of(image),
        of(replace(image, name="x:0"), request=(replace(one[0], name="x:0"),)),
    ):
        assert onnxruntime_cuda.profile(unnamed) == {}
        assert OnnxRuntimeCuda("tensorrt")._batches(unnamed) == (1,)
