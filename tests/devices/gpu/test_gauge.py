"""What NVML says of a GPU: its own errors where there is none, and the rest from a stand-in."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hasten.core.target import Target
from hasten.engines.cuda import gauge as gauge_file
from hasten.engines.cuda.gauge import Gauge, Reading, gauge_of
from hasten.engines.cuda.settling import Settling
from hasten.errors import InputError
from hasten.measure import probe as probe_file
from hasten.measure.probe import DeviceProbe, disturbance, probe_of, scales

NEEDS = "needs the extra gpu: pip install 'hasten[gpu]'"


class Found:
    """CUDA's runtime, as far as the gauge asks it."""

    def cudaDeviceGetPCIBusId(self, length: int, device: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"0000:01:00.0\0\0"


class Nvml:
    """A stand-in for `cuda.bindings.nvml`, of one GPU whose state can be set.

    Attributes:
        clock_mhz: Its clock.
        reasons: Bits of what holds the clock back.
        samples: What processes did on it, and when: number, utilization, time.
        unsupported: Names of functions that it doesn't support.
        unknown: Names of functions that the driver's library lacks.
    """

    class NvmlError(Exception): ...

    class FunctionNotFoundError(RuntimeError): ...

    class ClocksEventReasons(enum.IntEnum):
        EVENT_REASON_NONE = 0
        EVENT_REASON_SW_POWER_CAP = 4
        EVENT_REASON_SW_THERMAL_SLOWDOWN = 32
        THROTTLE_REASON_HW_THERMAL_SLOWDOWN = 64

    def __init__(self, clock_mhz: int = 345) -> None:
        self.clock_mhz, self.reasons = clock_mhz, 0
        self.samples: list[tuple[int, int, int]] = []
        self.unsupported: set[str] = set()
        self.unknown: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("device_get"):
            raise AttributeError(name)
        answers: dict[str, Callable[[], int]] = {
            "device_get_clock_info": lambda: self.clock_mhz,
            "device_get_max_clock_info": lambda: 1980,
            "device_get_power_usage": lambda: 123_456,
            "device_get_temperature_v": lambda: 41,
            "device_get_current_clocks_event_reasons": lambda: self.reasons,
        }

        def ask(handle: int, *arguments: Any) -> Any:
            assert handle == 7
            if name in self.unsupported:
                raise self.NvmlError("Not Supported")
            if name in self.unknown:
                raise self.FunctionNotFoundError(f"function {name} is not found")
            return answers[name]()

        return ask

    def device_get_process_utilization(self, handle: int, since_us: int) -> Any:
        new = [one for one in self.samples if one[2] > since_us]
        if not new:
            raise self.NvmlError("Not Found")
        return [SimpleNamespace(pid=p, sm_util=u, time_stamp=t) for p, u, t in new]


def test_a_host_without_nvml_is_said_in_one_line_by_the_library_itself() -> None:
    nvml = pytest.importorskip("cuda.bindings.nvml", reason=NEEDS)
    try:
        nvml.init_v2()
    except Exception:
        gauge = gauge_of(Found())
    else:
        pytest.skip("there is a GPU here")
    assert gauge.why.startswith("the GPU's clocks can't be read: ")
    assert "\n" not in gauge.why
    assert gauge.reading() is None
    assert gauge.busy() == set()


def test_bindings_too_old_for_nvml_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = ModuleType("cuda.bindings")
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.delitem(sys.modules, "cuda.bindings.nvml", raising=False)
    gauge = gauge_of(Found())
    assert gauge.why.startswith("the GPU's clocks can't be read (cannot import name 'nvml'")
    assert gauge.why.endswith("): pip install --upgrade 'cuda-bindings>=12.9.6'")
    assert gauge.reading() is None


def test_a_device_that_cuda_doesnt_find_is_said_by_cuda() -> None:
    pytest.importorskip("cuda.bindings.nvml", reason=NEEDS)
    runtime = pytest.importorskip("cuda.bindings.runtime", reason=NEEDS)
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU here")
    assert gauge_of(runtime).why.startswith("the GPU's clocks can't be read: ")


def test_the_names_that_are_asked_for_are_nvmls_own() -> None:
    nvml = pytest.importorskip("cuda.bindings.nvml", reason=NEEDS)
    assert [one.name[-2:] for one in nvml.ClockType if int(one) == gauge_file._CLOCK_SM] == ["SM"]
    (sensor,) = (o for o in nvml.TemperatureSensors if int(o) == gauge_file._TEMPERATURE_GPU)
    assert sensor.name.endswith("GPU")
    assert issubclass(nvml.NotSupportedError, nvml.NvmlError)
    known = {one.name: int(one) for one in nvml.ClocksEventReasons}
    for own in Nvml.ClocksEventReasons:
        assert known[own.name] == own
    slowed = [name for name, bit in known.items() if bit & gauge_file._SLOWED]
    assert len(slowed) == 4
    assert all("SLOWDOWN" in name for name in slowed)
    sample = nvml.ProcessUtilizationSample(2)[0]
    assert all(isinstance(n, int) for n in (sample.pid, sample.sm_util, sample.time_stamp))
    for name in ("clock_info", "max_clock_info", "power_usage", "temperature_v"):
        assert callable(getattr(nvml, f"device_get_{name}"))
    for name in ("current_clocks_event_reasons", "process_utilization"):
        assert callable(getattr(nvml, f"device_get_{name}"))


def test_a_reading_is_text_with_units() -> None:
    nvml = Nvml()
    nvml.reasons = 4 | 32
    reading = Gauge(nvml, "", 7).reading()
    assert reading == Reading(
        345,
        1980,
        123.456,
        41,
        ("sw power cap", "sw thermal slowdown"),
        ("sw thermal slowdown",),
    )
    assert reading.text() == {
        "gpu_clock_mhz": "345",
        "gpu_highest_mhz": "1980",
        "gpu_power_w": "123.456",
        "gpu_temperature_c": "41",
        "gpu_held_back": "sw power cap, sw thermal slowdown",
    }


def test_what_a_gpu_doesnt_support_is_left_out() -> None:
    nvml = Nvml()
    nvml.unsupported = {"device_get_power_usage", "device_get_current_clocks_event_reasons"}
    reading = Gauge(nvml, "", 7).reading()
    assert reading is not None
    assert reading.text() == {
        "gpu_clock_mhz": "345",
        "gpu_highest_mhz": "1980",
        "gpu_temperature_c": "41",
    }


def test_what_an_older_drivers_library_lacks_is_left_out() -> None:
    nvml = Nvml(1980)
    nvml.unknown = {"device_get_temperature_v", "device_get_current_clocks_event_reasons"}
    gauge, clock = Gauge(nvml, "", 7), Clock()
    reading = gauge.reading()
    assert reading is not None
    assert reading.text() == {
        "gpu_clock_mhz": "1980",
        "gpu_highest_mhz": "1980",
        "gpu_power_w": "123.456",
    }
    assert Settling(gauge, clock)(clock.request)
    assert DeviceProbe(gauge, host=lambda threads: True)(1)


OLD_LIBRARY = """
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *place, void **device) { *device = (void *)7; return 0; }
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *mhz) { *mhz = 345; return 0; }
int nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned *mhz) { *mhz = 1980; return 0; }
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) { *mw = 123456; return 0; }
"""
ASKING = """
from types import SimpleNamespace
from hasten.engines.cuda.gauge import gauge_of
found = SimpleNamespace(cudaDeviceGetPCIBusId=lambda length, device: (0, b"0000:01:00.0"))
gauge = gauge_of(found)
print(gauge.why, gauge.reading().text(), gauge.busy())
"""


def test_the_real_bindings_over_an_older_drivers_library_leave_out_what_it_lacks(
    tmp_path: Path,
) -> None:
    pytest.importorskip("cuda.bindings.nvml", reason=NEEDS)
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "nvml.c").write_text(OLD_LIBRARY)
    library = ["-shared", "-fPIC", "-o", f"{tmp_path}/libnvidia-ml.so.1", f"{tmp_path}/nvml.c"]
    subprocess.run([compiler, *library], check=True)
    said = subprocess.run(
        [sys.executable, "-c", ASKING],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout == (
        " {'gpu_clock_mhz': '345', 'gpu_highest_mhz': '1980', 'gpu_power_w': '123.456'} set()\n"
    )


def test_whoever_computed_since_the_last_look_is_found(tmp_path: Path) -> None:
    nvml = Nvml()
    gauge = Gauge(nvml, "", 7)
    for pid in (11, 12, 13):
        (tmp_path / str(pid)).mkdir()
    assert gauge.busy(tmp_path) == set()
    nvml.samples = [(11, 50, 1000)]
    assert gauge.busy(tmp_path) == set()  # it may have been before this run
    assert gauge.busy(tmp_path) == set()
    nvml.samples += [(12, 50, 2000), (13, 0, 2000), (99, 50, 2000)]  # 99 is outside this container
    assert gauge.busy(tmp_path) == {12}
    assert gauge.busy(tmp_path) == set()


class Clock:
    """A clock that a request moves on."""

    def __init__(self) -> None:
        self.now_ns = self.requests = 0

    def __call__(self) -> int:
        return self.now_ns

    def request(self) -> None:
        self.now_ns += 5_000_000
        self.requests += 1


def test_a_warm_up_goes_on_until_the_clock_that_rises_in_steps_stands_still() -> None:
    clock, nvml = Clock(), Nvml()
    settling = Settling(Gauge(nvml, "", 7), clock)

    def request() -> None:
        clock.request()
        nvml.clock_mhz = 345 if clock.now_ns < 3e8 else min(1980, int(clock.now_ns / 4e5))

    assert settling(request)
    assert nvml.clock_mhz == 1980
    assert 7.9e8 < clock.now_ns < 1.1e9
    begin_ns = clock.now_ns
    assert settling(clock.request)  # it is warm
    assert clock.now_ns - begin_ns == 5 * 25_000_000


def test_a_clock_that_fell_is_waited_for_and_one_that_never_rests_is_left() -> None:
    clock, nvml = Clock(), Nvml(1980)
    settling = Settling(Gauge(nvml, "", 7), clock)
    assert settling(clock.request)
    nvml.clock_mhz, begin_ns = 345, clock.now_ns
    assert not settling(clock.request)
    assert clock.now_ns - begin_ns == 2_000_000_000

    def restless() -> None:
        clock.request()
        nvml.clock_mhz = 1980 if nvml.clock_mhz == 1500 else 1500

    assert not settling(restless)


def test_without_a_gauge_the_times_of_requests_tell() -> None:
    clock = Clock()

    def request() -> None:
        clock.now_ns += 1_000_000 + max(0, 800_000_000 - clock.now_ns) // 100

    assert Settling(Gauge(None, "there is none"), clock)(request)
    assert 7.9e8 < clock.now_ns < 1.5e9


def test_a_round_counts_unless_the_gpu_is_slowed_down_or_shared() -> None:
    nvml = Nvml(1980)
    probe = DeviceProbe(Gauge(nvml, "", 7), host=lambda threads: True)
    assert probe(1)
    assert disturbance(probe) == ""
    nvml.reasons = 4  # at its power limit, where it stays
    assert probe(1)
    nvml.reasons = 64
    assert not probe(1)
    assert disturbance(probe) == (
        "the GPU was disturbed during the rounds: it was slowed down (hw thermal slowdown)"
    )
    nvml.reasons = 0
    nvml.samples = [(1, 10, 1000)]
    assert probe(1)
    nvml.samples = [(os.getpid(), 90, 2000), (1, 10, 2000)]
    assert not probe(1)
    assert disturbance(probe).endswith("process 1 also computed on it")
    assert probe(1)


def test_a_gpu_that_stays_slow_refuses_only_as_many_rounds_as_a_race_repeats() -> None:
    nvml = Nvml(600)
    nvml.reasons = 32
    probe = DeviceProbe(Gauge(nvml, "", 7), host=lambda threads: True)
    assert [probe(1) for _ in range(8)] == [False] * 6 + [True] * 2
    assert not DeviceProbe(Gauge(None, ""), host=lambda threads: False)(1)
    assert DeviceProbe(Gauge(None, ""), host=lambda threads: True)(1)


def test_other_devices_are_left_to_the_probe_of_the_host() -> None:
    assert probe_of(Target.host()) is scales
    assert probe_of(Target.host().with_device("cuda:sm80", present=False)) is scales
    assert disturbance(scales) == ""


def test_rounds_on_this_hosts_gpu_are_looked_at_by_its_gauge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml, runtime = Nvml(1980), Found()
    monkeypatch.setattr(probe_file, "cuda_runtime", lambda: runtime)
    gauges = {runtime: Gauge(nvml, "", 7)}
    monkeypatch.setattr(probe_file, "gauge_of", gauges.__getitem__)
    attached = Target.host().with_device("cuda", present=True)
    probe = probe_of(attached)
    assert isinstance(probe, DeviceProbe)
    assert probe(1)
    nvml.reasons = 64
    assert not probe(1)

    def missing() -> None:
        raise InputError("CUDA's bindings aren't installed")

    monkeypatch.setattr(probe_file, "cuda_runtime", missing)
    assert probe_of(attached) is scales
