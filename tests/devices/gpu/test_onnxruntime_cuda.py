import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from hasten.core.target import Target
from hasten.engines.cuda import onnxruntime as onnxruntime_cuda
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
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
