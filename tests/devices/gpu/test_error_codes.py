"""What is said of CUDA's errors, and which of them end a process's work with the GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.devices.gpu.test_cuda import ARTIFACT, Doubling, Runtime, opened, request

from hasten.core.target import Target
from hasten.engines.cuda import capability
from hasten.engines.cuda.capability import check_shared
from hasten.engines.cuda.error_codes import LOST, explained
from hasten.engines.cuda.runtime import Cuda
from hasten.engines.cuda.session import DeviceSession
from hasten.errors import CandidateError, DeviceLost, InputError

TEXTS = {
    2: b"out of memory",
    35: b"CUDA driver version is insufficient for CUDA runtime version",
    46: b"CUDA-capable device(s) is/are busy or unavailable",
    700: b"an illegal memory access was encountered",
}
AGAIN = "an illegal memory access was encountered: the GPU no longer works in this process: start the process again"


class Host(Runtime):
    """The stand-in, with a driver, a compute mode, and a code that a call fails with.

    Attributes:
        lost: Whether each further call fails, as after a crashed kernel.
    """

    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeMode="compute mode")  # noqa: N815

    def __init__(self, code: int = 0, *, driver: int = 12080, mode: int = 0) -> None:
        super().__init__()
        self.code, self.driver, self.mode, self.lost = code, driver, mode, False

    def _code(self, name: str) -> int:
        done = super()._code(name)
        return 700 if self.lost else done

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        (done,) = super().cudaStreamSynchronize(stream)
        return (700 if self.lost else done,)

    def cudaSetDevice(self, number: int) -> tuple[int]:  # noqa: N802
        return (self.code or super().cudaSetDevice(number)[0],)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, TEXTS[code]

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 13050

    def cudaDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.driver

    def cudaDeviceGetAttribute(self, attribute: str, number: int) -> tuple[int, int]:  # noqa: N802
        assert (attribute, number) == ("compute mode", 0)
        return 0, self.mode


def root_with(release: str, folder: Path) -> Path:
    """A host whose kernel has loaded NVIDIA's driver of this release; "" for none."""
    if release:
        (folder / "sys/module/nvidia").mkdir(parents=True)
        (folder / "sys/module/nvidia/version").write_text(f"{release}\n")
    return folder


@pytest.mark.parametrize(
    ("driver", "release", "said"),
    [
        (12080, "570.86.15", "and this host has 570.86.15, for CUDA up to 12.8: update it"),
        (12080, "", "and this host has one for CUDA up to 12.8: update it"),
        (0, "", "but none is loaded here"),
    ],
)
def test_a_driver_that_is_too_old_is_said_with_the_one_that_is_needed(
    driver: int, release: str, said: str, tmp_path: Path
) -> None:
    error = explained(Host(driver=driver), "find a device", 35, root_with(release, tmp_path))
    assert str(error) == (
        "CUDA can't find a device: CUDA driver version is insufficient for CUDA runtime version: "
        f"CUDA 13.5 needs NVIDIA's driver 580 or newer, {said}"
    )
    assert not isinstance(error, DeviceLost)


def test_a_gpu_that_lets_in_one_process_is_said_to_have_another() -> None:
    with pytest.raises(CandidateError) as caught:
        Cuda(Host(46, mode=3))
    assert str(caught.value) == (
        "CUDA can't find a device: CUDA-capable device(s) is/are busy or unavailable: its compute mode, "
        "EXCLUSIVE_PROCESS, allows only one process, and another process has the GPU: end that "
        "process, or allow several with nvidia-smi --compute-mode=DEFAULT"
    )
    with pytest.raises(CandidateError) as caught:
        Cuda(Host(46, mode=0))
    assert str(caught.value).endswith("busy or unavailable")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (2, "PROHIBITED, which allows no process"),
        (3, "EXCLUSIVE_PROCESS, which allows one process at a time"),
    ],
)
def test_a_run_is_refused_at_its_start_on_a_gpu_that_several_processes_cant_share(
    mode: int, said: str, sm80: Target
) -> None:
    attached = replace(sm80, kind="attached", device="cuda")
    with pytest.raises(InputError) as caught:
        check_shared(attached, Host(mode=mode))
    assert str(caught.value) == (
        f"this host's GPU is in compute mode {said}, and a run opens models in several: allow them "
        "with nvidia-smi --compute-mode=DEFAULT"
    )
    check_shared(attached, Host(mode=0))
    check_shared(sm80, Host(mode=mode))
    check_shared(Target.host(), Host(mode=mode))


def test_where_cuda_cant_tell_the_compute_mode_its_own_reason_is_left_to_be_said(
    sm80: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old(Host):
        def cudaDeviceGetAttribute(self, attribute: str, number: int) -> Any:  # noqa: N802
            return 35, None

    attached = replace(sm80, kind="attached", device="cuda")
    check_shared(attached, Old())

    def missing() -> None:
        raise InputError("CUDA's bindings aren't installed")

    monkeypatch.setattr(capability, "cuda_runtime", missing)
    check_shared(attached)


def test_a_lost_device_is_told_from_another_failure_and_stays_lost() -> None:
    runtime = Host()
    session = opened(runtime, capture=False)
    assert session.run(request(3))["y"].tolist() == [[6, 6, 6]]
    runtime.lost = True
    for _ in range(2):
        with pytest.raises(DeviceLost) as caught:
            session.run(request(3))
        assert str(caught.value) == f"CUDA can't copy: {AGAIN}"
    with pytest.raises(DeviceLost, match=r"^CUDA can't find a device: "):
        Cuda(Host(700))
    session.close()  # frees what it holds, whatever CUDA says
    assert not runtime.held


class Crashing(Doubling):
    """A network whose runtime says in words of its own that a kernel crashed."""

    crashes = False

    def execution(self, inputs: Any) -> Any:
        execution = super().execution(inputs)
        enqueue = execution.enqueue

        def crash() -> None:
            enqueue()
            if self.crashes:
                raise CandidateError("torch failed: CUDA error: an illegal memory access")

        execution.enqueue = crash
        return execution


@pytest.mark.parametrize("lost", [True, False])
def test_a_runtimes_own_failure_is_a_lost_device_where_cuda_says_so(lost: bool) -> None:
    runtime = Host()
    network = Crashing(runtime)
    session = DeviceSession(ARTIFACT, Cuda(runtime), network, None, capture=False)
    session.run(request(1))
    network.crashes = True

    def fail(*_: Any) -> None:
        runtime.lost = lost

    runtime.enqueue(fail)
    with pytest.raises(CandidateError) as caught:
        session.run(request(1))
    assert isinstance(caught.value, DeviceLost) == lost
    network.crashes = False
    if not lost:
        np.testing.assert_array_equal(session.run(request(2))["y"], [[4, 4, 4]])


def test_the_codes_of_a_lost_device_are_those_of_which_cuda_says_so() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    said = {
        int(code)
        for code in runtime.cudaError_t
        if "must be terminated and relaunched" in " ".join((code.__doc__ or "").split())
    }
    if runtime.cudaError_t.cudaSuccess.__doc__ == runtime.cudaError_t.__doc__:
        pytest.skip("these bindings don't document their codes")
    assert said == LOST
    assert int(runtime.cudaComputeMode.cudaComputeModeExclusiveProcess) == 3
    assert int(runtime.cudaComputeMode.cudaComputeModeProhibited) == 2
    assert int(runtime.cudaError_t.cudaErrorInsufficientDriver) == 35
    assert int(runtime.cudaError_t.cudaErrorDevicesUnavailable) == 46


def test_without_a_driver_what_is_needed_is_said_by_the_bindings_themselves() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    if int(runtime.cudaDriverGetVersion()[1]):
        pytest.skip("there is a driver here")
    with pytest.raises(
        CandidateError, match=r": CUDA 1[23]\.\d needs NVIDIA's driver 5\d\d or newer, but none is"
    ):
        Cuda()
