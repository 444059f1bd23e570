import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from hasten.engines.onnxruntime_cuda import OnnxRuntimeCuda
from hasten.errors import InputError
from hasten.frontends.onnx import load
from hasten.target import Target
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


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_a_runtime_without_cuda_says_what_to_install() -> None:
    with pytest.raises(InputError) as caught:
        OnnxRuntimeCuda.version()
    assert str(caught.value) == (
        f"this ONNX Runtime, {onnxruntime.__version__}, has no CUDA: "
        "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    )


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
