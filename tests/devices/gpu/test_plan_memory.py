"""Memory of a plan's contexts: one block for all; the library is a stand-in over this host's memory.

The stand-in has only names that the installed TensorRT for RTX has too, which the last test holds it to.
Nothing here shows that a GPU does the same: test_on_a_gpu.py is for that.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.cuda.runtime import Host, array_at
from hasten.engines.cuda.session import DeviceSession
from hasten.engines.tensorrt import plans
from hasten.errors import CandidateError

LARGEST_BYTES = 1000
ARTIFACT = Artifact(
    Path("none"),
    (TensorSpec("x", "float32", ("batch", 3)),),
    (TensorSpec("y", "float32", ("batch", 3)),),
    (TensorSpec("x", "float32", (1, 3)),),
)


class IExecutionContext:
    """A context that doubles its input by way of the memory that it was given."""

    def __init__(self, engine: ICudaEngine, strategy: str) -> None:
        engine.contexts += 1
        self.engine, self.strategy = engine, strategy
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.memory is not None, "the context has no memory"
        address, size_bytes = self.memory
        x, y = (array_at(self.addresses[name], self.shape, "float32") for name in ("x", "y"))
        assert x.nbytes <= size_bytes or not size_bytes
        within = array_at(address, self.shape, "float32") if size_bytes else np.empty_like(y)
        np.multiply(x, 2, out=within)
        y[...] = within
        return True


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = "lazy"
    strategy = "static"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class ICudaEngine:
    num_layers = 1

    def __init__(self, device_memory_size_v2: int) -> None:
        self.device_memory_size_v2 = device_memory_size_v2
        self.contexts = 0

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: Any) -> IExecutionContext:
        if isinstance(how, IRuntimeConfig):
            assert how.dynamic_shapes_kernel_specialization_strategy == "eager"
            how = how.strategy
        assert how == "user managed", "each context would take memory for the largest batch"
        return IExecutionContext(self, how)


class ExecutionContextAllocationStrategy:
    USER_MANAGED = "user managed"


class DynamicShapesKernelSpecializationStrategy:
    EAGER = "eager"


class Library:
    """TensorRT for RTX, as far as a plan needs it to run."""

    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def __init__(self, memory_bytes: int) -> None:
        self.engine = ICudaEngine(memory_bytes)

    def Runtime(self, logger: Any) -> Library:  # noqa: N802
        return self

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine:
        return self.engine


class Tensorrt(Library):
    """TensorRT itself, which makes no kernels while it runs."""

    DynamicShapesKernelSpecializationStrategy = None  # type: ignore[assignment]


class Counting(Host):
    """A host that records what is taken and what is freed of its memory."""

    def __init__(self, *, room_bytes: int = 10**9) -> None:
        self.taken: list[int] = []
        self.held: list[int] = []
        self.room_bytes = room_bytes

    def allocate(self, size_bytes: int, closing: ExitStack) -> int:
        if sum(self.held) + size_bytes > self.room_bytes:
            raise CandidateError(f"CUDA can't allocate {size_bytes} bytes: out of memory")
        self.taken.append(size_bytes)
        self.held.append(size_bytes)
        closing.callback(self.held.remove, size_bytes)
        return super().allocate(size_bytes, closing)


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's log, which needs the library."""
    monkeypatch.setattr(plans, "_log", lambda trt: plans._Log())


def opened(trt: Library, device: Host, folder: Path) -> DeviceSession:
    (folder / "model.plan").write_bytes(b"a plan")
    network = plans._Plan(trt, folder / "model.plan", ARTIFACT, device)
    return DeviceSession(ARTIFACT, device, network, None)


def ask(session: DeviceSession, batch: int, value: float) -> None:
    answer = session.run({"x": np.full((batch, 3), value, np.float32)})["y"]
    np.testing.assert_array_equal(answer, np.full((batch, 3), 2 * value, np.float32))


@pytest.mark.parametrize("library", [Library, Tensorrt])
def test_the_contexts_of_all_sizes_compute_in_one_block(library: Any, tmp_path: Path) -> None:
    trt, device = library(LARGEST_BYTES), Counting()
    session = opened(trt, device, tmp_path)
    assert device.held == []  # nothing is taken before a first request
    for batch in (*range(1, 17), *range(1, 17)):
        ask(session, batch, batch)
    assert trt.engine.contexts == 16
    assert device.taken.count(LARGEST_BYTES) == 1
    assert session.properties()["device_memory_bytes"] == str(LARGEST_BYTES)
    for batch in range(17, 33):  # the first sizes are forgotten, and the block stays
        ask(session, batch, batch)
    assert device.held.count(LARGEST_BYTES) == device.taken.count(LARGEST_BYTES) == 1
    session.close()
    assert device.held == []


def test_a_plan_that_needs_no_memory_takes_none(tmp_path: Path) -> None:
    trt, device = Library(0), Counting()
    session = opened(trt, device, tmp_path)
    ask(session, 1, 3)
    assert device.taken == [12, 12]  # the input and the output
    session.close()


def test_too_little_memory_for_the_largest_batch_is_one_line(tmp_path: Path) -> None:
    trt, device = Library(LARGEST_BYTES), Counting(room_bytes=100)
    session = opened(trt, device, tmp_path)
    with pytest.raises(
        CandidateError, match=rf"^CUDA can't allocate {LARGEST_BYTES} bytes: out of memory$"
    ):
        session.run({"x": np.ones((1, 3), np.float32)})
    session.close()
    assert device.held == []


def test_the_stand_in_has_no_name_that_the_library_lacks() -> None:
    trt = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    for kind in (
        IExecutionContext,
        IRuntimeConfig,
        ICudaEngine,
        ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy,
    ):
        names = {name for name in vars(kind) if not name.startswith("_") and name != "strategy"}
        assert names <= set(dir(getattr(trt, kind.__name__))), kind
    assert "device_memory_size_v2" in dir(trt.ICudaEngine)
    said = trt.IExecutionContext.set_device_memory.__doc__
    assert "(self" in said
    assert "memory: typing.SupportsInt, size: typing.SupportsInt" in said
    config = trt.IRuntimeConfig.set_execution_context_allocation_strategy.__doc__
    assert "strategy: " in config
