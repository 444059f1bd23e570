"""The engines on a GPU of this host; without one these are skipped, and what they'd show isn't shown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.engines.base import Engine, Session
from hasten.engines.cuda.capability import part_of
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.runtime import Cuda
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError, InputError
from hasten.evaluation.deep.runtimes import check_wanted
from hasten.inputs.models.onnx import load
from hasten.inputs.models.source import load_model
from hasten.passes.half_precision import HalfPrecision
from hasten.passes.tensorrt_quantization import TensorrtQuantization
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for
from hasten.testing.pass_tests import samples_of

pytestmark = pytest.mark.device
GPU = find_target("cuda")
if GPU.kind != "attached":
    pytest.skip("no NVIDIA GPU here: what runs on one isn't run", allow_module_level=True)


@pytest.fixture
def gpu() -> Target:
    """This host's GPU."""
    return GPU


def test_the_gpu_is_a_part_that_torch_sees_too(gpu: Target) -> None:
    torch = pytest.importorskip("torch")
    assert part_of(gpu) == "sm{}{}".format(*torch.cuda.get_device_capability(0))


class OnAGpu(EngineTests):
    """The claims of every engine, with the device."""

    @pytest.fixture
    def target(self, gpu: Target) -> Target:
        if why := type(self.engine).unsuited(gpu):
            pytest.skip(why)
        try:
            self.engine.version()
        except InputError as error:
            pytest.skip(str(error))
        return gpu.with_threads(1)

    def test_the_version_is_a_word(self, target: Target) -> None:  # type: ignore[override]
        super().test_the_version_is_a_word()

    def test_device_and_host_time_and_copies_are_told(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            request = request_for(model.inputs)
            answer = session.run(request)["logits"]
            said, times = session.properties(), session.device_times()
        assert 0 < float(times["stream_ns"]) < float(times["host_ns"])
        assert int(times["gpu_clock_mhz"]) > 0
        assert (said["copies_to_device"], said["copies_to_host"]) == ("1", "1")
        assert said["bytes_to_device"] == str(request["x"].nbytes)
        assert said["bytes_to_host"] == str(answer.nbytes)
        assert said["synchronizations"] == "1"


class Plans(OnAGpu):
    """Those of TensorRT, whose plans take so many requests at once."""

    def test_an_open_batch_takes_any_size(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            assert session.batch_sizes == tuple(range(1, 33))
            assert session.run(request_for(model.inputs, batch=3))["logits"].shape == (3, 10)

    def test_a_request_is_one_graph(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            session.run(request_for(model.inputs))
            assert session.properties()["graph"] == "captured"

    @pytest.mark.parametrize(
        ("step", "bound"), [(TensorrtQuantization(), 0.05), (HalfPrecision(), 5e-3)]
    )
    def test_answers_of_int8_and_half_precision_are_those_of_this_host(
        self, step: Any, bound: float, target: Target, tmp_path: Path
    ) -> None:
        exact = load(models.small_cnn(tmp_path))
        exact = exact.settled_by({"x": np.zeros((3, 32, 32), np.float32)})
        (tmp_path / "step").mkdir()
        model = step(exact, samples_of(exact), tmp_path / "step")
        request = request_for(model.inputs, batch=4)
        artifact = self.built(model, target, tmp_path)
        answers = []
        for where in (target, replace(target, kind="compile-only")):
            with self.engine.open(artifact, where) as session:
                answers.append(session.run(request)["logits"])
        error = np.sqrt(np.mean((answers[0] - answers[1]) ** 2) / np.mean(answers[1] ** 2))
        assert error < bound


class TestTensorrtRtxOnAGpu(Plans):
    engine = TensorrtRtx()


class TestTensorrtOnAGpu(Plans):
    engine = Tensorrt()


class TestOnnxRuntimeCudaOnAGpu(OnAGpu):
    engine = OnnxRuntimeCuda()

    def test_tensorrts_provider_answers_too(self, target: Target, tmp_path: Path) -> None:
        engine = OnnxRuntimeCuda("tensorrt")
        try:
            check_wanted(engine, target)
        except InputError as error:
            pytest.skip(str(error))
        model = load(models.small_cnn(tmp_path))
        artifact = self.built(model, target, tmp_path)
        with engine.open(artifact, target) as session:
            assert session.run(request_for(model.inputs))["logits"].shape == (1, 10)

    def test_each_size_has_a_graph_and_each_request_its_own_answer(
        self, target: Target, tmp_path: Path
    ) -> None:
        model = load(models.small_cnn(tmp_path))
        artifact = self.built(model, target, tmp_path)
        graphs = OnnxRuntimeCuda(cuda_graph=True)
        with self.engine.open(artifact, target) as plain, graphs.open(artifact, target) as session:
            for seed, batch in enumerate((1, 4, 1, 4, 1)):
                request = request_for(model.inputs, batch=batch, seed=seed)
                right = plain.run(request)["logits"]
                np.testing.assert_allclose(session.run(request)["logits"], right, atol=1e-4)
            assert not session.properties()["graph"].startswith("none")

    def test_tensorrts_provider_builds_once_for_all_batches(
        self, target: Target, tmp_path: Path
    ) -> None:
        engine = OnnxRuntimeCuda("tensorrt")
        try:
            check_wanted(engine, target)
        except InputError as error:
            pytest.skip(str(error))
        model = load(models.small_cnn(tmp_path))
        model = model.settled_by({"x": np.zeros((3, 32, 32), np.float32)})
        with engine.open(self.built(model, target, tmp_path), target) as session:
            for batch in (1, 32, 7):
                assert (
                    session.run(request_for(model.inputs, batch=batch))["logits"].shape[0] == batch
                )
            with pytest.raises(CandidateError):  # no engine is built for it
                session.run(request_for(model.inputs, batch=33))


WIDE = """
    wide (float[batch, 3, 256, 256] x) => (float[batch, 32, 1, 1] y) {
        a = Conv(x, first)
        b = Softplus(a)
        c = Conv(b, second)
        d = Softplus(c)
        y = GlobalAveragePool(d)
    }"""


def free_bytes() -> int:
    from cuda.bindings import runtime

    return int(runtime.cudaMemGetInfo()[1])


@pytest.mark.parametrize("engine", [TensorrtRtx(), Tensorrt()])
def test_the_contexts_of_many_sizes_compute_in_one_block(
    engine: Engine, gpu: Target, tmp_path: Path
) -> None:
    weights = {"first": (32, 3, 3, 3), "second": (32, 32, 3, 3)}
    path = models.write(tmp_path / "wide.onnx", WIDE, weights)
    (tmp_path / "built").mkdir()
    try:
        artifact = engine.build(load(path), gpu, tmp_path / "built")
    except (InputError, CandidateError) as error:
        pytest.skip(str(error))
    with engine.open(artifact, gpu) as session:
        request = np.ones((32, 3, 256, 256), np.float32)
        whole = session.run({"x": request})["y"]
        block_bytes, before = int(session.properties()["device_memory_bytes"]), free_bytes()
        for batch in range(1, 16):
            answer = session.run({"x": request[:batch]})["y"]
            np.testing.assert_allclose(answer, whole[:batch], rtol=1e-3, atol=1e-3)
        buffers_bytes = sum(request[:batch].nbytes for batch in range(1, 16))
        assert before - free_bytes() - buffers_bytes < 2 * block_bytes  # 15 would be of their own


LOSS = """
import sys
from pathlib import Path
import numpy as np, torch
from hasten.core.target import Target
from hasten.engines.cuda.runtime import Cuda
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import DeviceLost
from hasten.inputs.models.onnx import load

host, engine, device = Target.host(), OnnxRuntime(), Cuda()
device.check()
artifact = engine.build(load(Path(sys.argv[1])), host, Path(sys.argv[2]))
with engine.open(artifact, host) as standby:
    try:
        torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].cpu()
    except Exception as error:
        print(type(error).__name__)
    for _ in range(2):
        try:
            device.check()
        except DeviceLost as error:
            print(error)
    print(standby.run({"x": np.zeros((1, 3, 32, 32), np.float32)})["logits"].shape)
"""


def test_a_crashed_kernel_loses_the_gpu_and_the_host_still_answers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = models.small_cnn(tmp_path)
    (tmp_path / "built").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LOSS, path, tmp_path / "built"], capture_output=True, text=True
    )
    told = done.stdout.splitlines()
    assert len(told) == 4, done.stderr
    for line in told[1:3]:
        assert line.endswith(": the GPU no longer works in this process: start the process again")
    assert told[3] == "(1, 10)"


def test_a_gpu_that_lets_in_one_process_says_so_to_a_second(gpu: Target) -> None:
    from cuda.bindings import runtime

    attribute = runtime.cudaDeviceAttr.cudaDevAttrComputeMode
    if int(runtime.cudaDeviceGetAttribute(attribute, 0)[1]) != 3:
        pytest.skip("the GPU's compute mode isn't EXCLUSIVE_PROCESS")
    Cuda()
    code = "from hasten.engines.cuda.runtime import Cuda; Cuda()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "EXCLUSIVE_PROCESS, allows only one process, and another process has the GPU" in done.stderr
    )


@contextmanager
def program(target: Target, engine: Engine, folder: Path) -> Iterator[tuple[Session, Any]]:
    """Open a small network's program, and give it with the network."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1568, 4)
    ).eval()
    sample = np.zeros((3, 16, 16), np.float32)
    model = load_model(network, lambda _: {"x": sample}, folder)
    name = model.inputs[0].name
    example = (torch.zeros(1, 3, 16, 16),)
    torch.export.save(torch.export.export(network, example), folder / "network.pt2")
    model = replace(model.settled_by({name: sample}), program=folder / "network.pt2")
    (folder / "built").mkdir()
    artifact = engine.build(model, target, folder / "built")
    with engine.open(artifact, target) as session:
        yield session, network


@pytest.mark.parametrize("mode", ["eager", "graph", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_weights_are_cast_once_and_the_answers_are_autocasts(
    precision: Any, mode: Any, gpu: Target, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    half = {"f16": torch.float16, "bf16": torch.bfloat16}[precision]
    with program(gpu, TorchCuda(mode, precision), tmp_path) as (session, network):
        request = request_for(session.inputs)
        x = torch.from_numpy(request[session.inputs[0].name]).cuda()
        with torch.inference_mode(), torch.autocast("cuda", half):
            right = network.cuda()(x).float().cpu().numpy()
        answer = next(iter(session.run(request).values()))
        said = session.properties()
    np.testing.assert_allclose(answer, right, rtol=0, atol=0.02 * np.abs(right).max())
    if mode == "eager":
        np.testing.assert_array_equal(answer, right)
    assert (said["weights_cast_once"], said["weights_cast_each_request"]) == ("4", "0")


@pytest.mark.parametrize("mode", ["eager", "graph", "reduce-overhead", "max-autotune"])
def test_a_program_answers_in_every_mode(mode: Any, gpu: Target, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with program(gpu, TorchCuda(mode), tmp_path) as (session, network):
        name = session.inputs[0].name
        for seed in range(3):
            request = request_for(session.inputs, seed=seed)
            with torch.no_grad():
                right = network(torch.from_numpy(request[name])).numpy()
            answer = next(iter(session.run(request).values()))
            np.testing.assert_allclose(answer, right, rtol=1e-4, atol=1e-4)
        times = session.device_times()
    assert 0 < float(times["stream_ns"]) < float(times["host_ns"])


@pytest.mark.parametrize("mode", ["graph", "reduce-overhead"])
def test_a_captured_program_answers_whoever_asks(mode: Any, gpu: Target, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with program(gpu, TorchCuda(mode), tmp_path) as (session, _), ThreadPoolExecutor(4) as pool:
        requests = [request_for(session.inputs, seed=seed) for seed in range(4)]
        alone = [next(iter(session.run(one).values())) for one in requests]
        for _ in range(20):
            for right, answer in zip(alone, pool.map(session.run, requests), strict=True):
                np.testing.assert_array_equal(next(iter(answer.values())), right)


def test_sessions_capture_beside_each_others_allocations(gpu: Target, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    target, engine = gpu.with_threads(1), OnnxRuntimeCuda(cuda_graph=True)
    try:
        engine.version()
    except InputError as error:
        pytest.skip(str(error))
    model = load(models.small_cnn(tmp_path))
    (tmp_path / "onnxruntime").mkdir()
    artifact = engine.build(model, target, tmp_path / "onnxruntime")
    (tmp_path / "torch").mkdir()
    with (
        engine.open(artifact, target) as first,
        program(gpu, TorchCuda("graph"), tmp_path / "torch") as (second, _),
        ThreadPoolExecutor(2) as pool,
    ):

        def batches() -> None:
            for batch in range(1, 30):  # each is bound, and captured or not
                assert first.run(request_for(model.inputs, batch=batch))["logits"].shape[0] == batch

        coming = pool.submit(batches)
        request = request_for(second.inputs)
        answers = [next(iter(second.run(request).values())) for _ in range(200)]
        coming.result()
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])


def test_the_clocks_of_a_warm_gpu_are_read(gpu: Target) -> None:
    gauge = Cuda().gauge()
    reading = gauge.reading()
    assert reading is not None, gauge.why
    assert 0 < (reading.clock_mhz or 0) <= (reading.highest_mhz or 0)
    assert os.getpid() not in gauge.busy()
