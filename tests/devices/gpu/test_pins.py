"""What an artifact for a GPU was made for is kept beside it, and another GPU refuses it in one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.cuda.facts import DeviceFacts, cuda_version, device_facts
from hasten.engines.cuda.pins import SUFFIX, Pins, check_pins, pin, pins_for
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError

HERE = DeviceFacts("sm90", "13.0")
MADE = Pins("TensorRT", "11.1", "sm90", "13.0")


class Runtime(ModuleType):
    """CUDA's bindings, as far as they tell what a device is."""

    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
    )

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:  # noqa: N802
        return 0, {75: 9, 76: 0}[attribute]

    def cudaDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 13000

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:  # noqa: N802
        return 0, SimpleNamespace(name=b"NVIDIA H100\0\0")

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"no device"


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Bindings that know a device, in the place of the real ones."""
    runtime, parent = Runtime("cuda.bindings.runtime"), ModuleType("cuda.bindings")
    parent.runtime = runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", parent)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    return runtime


@pytest.fixture
def attached(sm80: Target) -> Target:
    return replace(sm80, kind="attached", device="cuda")


def made(folder: Path, pins: Pins | None = MADE) -> Artifact:
    path = folder / "net.onnx"
    path.touch()
    spec = TensorSpec("x", "float32", (1, 3))
    files = () if pins is None else (pin(folder / "net.plan", pins),)
    return Artifact(path, (spec,), (spec,), (spec,), files)


def test_what_was_made_here_is_taken(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    assert artifact.files[0].name == f"net.plan{SUFFIX}"
    assert check_pins(artifact, "TensorRT", "11.1", lambda: HERE) == HERE


def test_a_plan_that_was_made_without_a_driver_runs_with_any(tmp_path: Path) -> None:
    artifact = made(tmp_path, replace(MADE, driver=None))
    assert check_pins(artifact, "TensorRT", "11.1", lambda: HERE) == HERE


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (replace(MADE, part="sm80"), "sm80, but this host has sm90"),
        (
            replace(MADE, driver="12.8"),
            "a driver for CUDA 12.8, but this host has one for CUDA 13.0",
        ),
        (replace(MADE, version="10.9"), "TensorRT 10.9, but this host has TensorRT 11.1"),
        (
            replace(MADE, runtime="TensorRT for RTX", part="sm120"),
            "TensorRT for RTX 11.1 and sm120, but this host has TensorRT 11.1 and sm90",
        ),
        (replace(MADE, part="sm80\nnothing"), "sm80\\nnothing, but this host has sm90"),
    ],
)
def test_what_was_made_for_another_gpu_driver_or_version_is_refused_in_one_line(
    pins: Pins, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CandidateError) as why:
        check_pins(made(tmp_path, pins), "TensorRT", "11.1", lambda: HERE)
    assert str(why.value) == f"net.onnx was made for {said}: make the bundle again here"


def test_what_does_not_say_what_it_was_made_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as why:
        check_pins(made(tmp_path, None), "TensorRT", "11.1", lambda: HERE)
    assert str(why.value) == (
        "net.onnx doesn't state which GPU it was made for: make the bundle again"
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"runtime": 1}', "[" * 10_000, '{"runtime": "' + "x" * 5000 + '"}'],
)
def test_damaged_pins_are_refused(text: str, tmp_path: Path) -> None:
    artifact = made(tmp_path)
    artifact.files[0].write_text(text)
    with pytest.raises(CandidateError, match=r"can't be read: make the bundle again$"):
        check_pins(artifact, "TensorRT", "11.1", lambda: HERE)


def test_pins_are_of_the_device_that_is_here_or_of_the_part_that_is_named(
    sm80: Target, attached: Target
) -> None:
    assert pins_for(sm80, "TensorRT for RTX", "1.7") == Pins(
        "TensorRT for RTX", "1.7", "sm80", None
    )
    host = replace(sm80, device="host")
    assert pins_for(host, "PyTorch", "2.13") == Pins("PyTorch", "2.13", None, None)
    assert pins_for(attached, "TensorRT", "11.1", lambda: HERE) == MADE


def test_a_device_tells_its_name_its_capability_and_its_drivers_cuda(
    bindings: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_facts() == replace(HERE, name="NVIDIA H100")
    assert [cuda_version(number) for number in (0, 12090, 13000)] == ["none", "12.9", "13.0"]
    monkeypatch.setattr(bindings, "cudaDriverGetVersion", lambda: (100, 0))
    with pytest.raises(CandidateError, match=r"^CUDA can't look at the device: no device$"):
        device_facts()


def test_the_real_bindings_have_what_is_asked_of_them() -> None:
    rt = pytest.importorskip("cuda.bindings.runtime", reason="needs the extra gpu")
    driver = pytest.importorskip("cuda.bindings.driver")
    asked = ("cudaDeviceGetAttribute", "cudaDriverGetVersion", "cudaGetDeviceProperties")
    assert all(hasattr(rt, name) for name in asked)
    for name in vars(Runtime.cudaDeviceAttr):
        assert int(getattr(rt.cudaDeviceAttr, name)) == getattr(Runtime.cudaDeviceAttr, name)
    for name in ("ModuleLoadData", "ModuleGetFunction", "ModuleUnload", "LaunchKernel"):
        assert hasattr(driver, f"cu{name}")


def test_an_engine_refuses_a_plan_for_another_gpu_before_it_opens_the_device(
    bindings: Runtime, attached: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit: Any = classmethod(lambda cls: SimpleNamespace(__version__="1.7"))
    monkeypatch.setattr(TensorrtRtx, "toolkit", toolkit)
    artifact = made(tmp_path, Pins("TensorRT for RTX", "1.7", "sm80", None))
    wanted = r"^net.onnx was made for sm80, but this host has sm90: make the bundle again here$"
    with pytest.raises(CandidateError, match=wanted), TensorrtRtx().open(artifact, attached):
        pass
    program = made(tmp_path, Pins("PyTorch", TorchCuda.version(), "sm80", "13.0"))
    with pytest.raises(CandidateError, match=wanted), TorchCuda().open(program, attached):
        pass
