from collections.abc import Sequence
from pathlib import Path

import openvino
import pytest
from tests.devices.edge.edge_models import FixedShapesTests, device
from tests.support.models import settled

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.installed import engine_kinds, tried_on
from hasten.engines.openvino.igpu import OpenVinoIgpu, integrated
from hasten.engines.openvino.npu import OpenVinoNpu
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load
from hasten.optimization.grid import grid
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for

THERE = openvino.Core().available_devices


class TestIgpuOnTheProcessor(EngineTests):
    """The iGPU engine's own path, with the processor in the GPU's place."""

    engine = OpenVinoIgpu(device="CPU")

    def test_the_first_variant_is_the_default(self, target: Target) -> None:
        assert list(OpenVinoIgpu.variants(target)) == [OpenVinoIgpu(), OpenVinoIgpu("f16")]

    def test_the_version_is_a_word(self) -> None:
        if any(name.startswith("GPU") for name in THERE):
            super().test_the_version_is_a_word()


class TestNpuOnTheProcessor(FixedShapesTests):
    """The NPU engine's own path, with the processor in the NPU's place."""

    engine = OpenVinoNpu(device="CPU")

    def test_the_version_is_a_word(self) -> None:
        if "NPU" in THERE:
            super().test_the_version_is_a_word()


class TestIgpu(EngineTests):
    engine = OpenVinoIgpu()

    @pytest.fixture(autouse=True)
    def _there(self) -> None:
        if not any(name.startswith("GPU") for name in THERE):
            pytest.skip(f"no Intel GPU here: OpenVINO has {', '.join(THERE)}")


class TestNpu(TestNpuOnTheProcessor):
    engine = OpenVinoNpu()

    @pytest.fixture(autouse=True)
    def _there(self) -> None:
        if "NPU" not in THERE:
            pytest.skip(f"no Intel NPU here: OpenVINO has {', '.join(THERE)}")


class Devices:
    """OpenVINO's core as it is where there are two GPUs."""

    available_devices: Sequence[str] = ("CPU", "GPU.0", "GPU.1")

    def __init__(self, **types: str) -> None:
        self.types = types

    def get_property(self, device: str, name: str) -> str:
        assert name == "DEVICE_TYPE"
        return f"Type.{self.types[device.replace('.', '')]}"


def test_of_two_gpus_the_integrated_one_is_taken() -> None:
    assert integrated(Devices(GPU0="DISCRETE", GPU1="INTEGRATED")) == "GPU.1"
    with pytest.raises(InputError) as caught:
        integrated(Devices(GPU0="DISCRETE", GPU1="DISCRETE"))
    assert str(caught.value) == (
        "OpenVINO finds no integrated GPU here (it has: CPU, GPU.0, GPU.1); if this host has one, "
        "install Intel's compute runtime"
    )


@pytest.mark.skipif(len(THERE) > 1, reason=f"there is a device here: {', '.join(THERE)}")
def test_a_device_that_is_not_here_is_told_with_what_is() -> None:
    for name, noun, driver in (
        ("npu", "NPU", "Intel's NPU driver"),
        ("igpu", "integrated GPU", "Intel's compute runtime"),
    ):
        with pytest.raises(InputError) as caught:
            engine_kinds(tried_on(name))
        assert str(caught.value) == (
            f"no engine to try: OpenVINO finds no {noun} here (it has: CPU); "
            f"if this host has one, install {driver}"
        )


def test_what_a_device_is_asked_for_and_where_it_runs_are_said(tmp_path: Path) -> None:
    model, target = settled(load(models.small_cnn(tmp_path))), device("igpu")
    engine = OpenVinoIgpu(device="CPU")
    (tmp_path / "built").mkdir()
    with engine.open(engine.build(model, target, tmp_path / "built"), target) as session:
        session.run(request_for(session.inputs))
        properties = session.properties()
    assert properties["precision_hint"] == "f32"
    assert properties["streams"] == "1"
    assert "CPU" in properties["devices"]
    assert OpenVinoNpu()._settings(target) == {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f16",
    }


def test_only_the_gpu_in_f32_keeps_the_models_precision() -> None:
    assert OpenVinoIgpu().exact
    assert not OpenVinoIgpu("f16").exact
    assert not OpenVinoNpu().exact


def test_an_open_shape_is_refused_for_the_npu(tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        OpenVinoNpu(device="CPU").build(
            load(models.linear_classifier(tmp_path)), device("npu"), tmp_path
        )
    assert str(caught.value) == (
        "the NPU takes only fixed shapes: got x: float32[batch, 16]; give a sample of data to "
        "fix it"
    )


def test_eight_bits_are_eight_on_devices_that_do_not_saturate(
    convnet: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoNpu, "version", classmethod(lambda cls: "1"))
    old = device("npu").__class__(**{**vars(device("npu")), "isa": ("avx2",)})
    steps = [s for c in grid(convnet, old, engine_names=("openvino_npu",)) for s in c.passes]
    assert {type(step).__name__ for step in steps} >= {"StaticQuantization", "NncfQuantization"}
    assert not any(getattr(step, "reduce_range", False) for step in steps)
    assert "DynamicQuantization" not in {type(step).__name__ for step in steps}


@pytest.mark.parametrize(
    ("name", "nodes", "device_class"),
    [
        ("npu", "dev/accel/accel0", "0x120000"),
        ("igpu", "dev/dri/renderD128", "0x030000"),
        ("qnn", "dev/fastrpc-cdsp", None),
    ],
)
def test_a_device_is_attached_where_its_node_is(
    name: str, nodes: str, device_class: str | None, tmp_path: Path
) -> None:
    assert find_target(name, root=tmp_path).kind == "compile-only"
    (tmp_path / nodes).parent.mkdir(parents=True)
    (tmp_path / nodes).touch()
    if device_class:
        pci = tmp_path / "sys/bus/pci/devices/0000:00:0b.0"
        pci.mkdir(parents=True)
        (pci / "vendor").write_text("0x8086\n")
        (pci / "class").write_text(f"{device_class}\n")
    assert find_target(name, root=tmp_path).kind == "attached"
