"""What is compiled on a GPU is kept in the user's own folder, and read at the next start."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.devices.gpu.test_plan_memory import ARTIFACT as PLANNED
from tests.devices.gpu.test_plan_memory import (
    ICudaEngine,
    IExecutionContext,
    IRuntimeConfig,
    Library,
)

from hasten.core import torch_programs
from hasten.core.cache_folder import CacheFolder
from hasten.core.scratch import torch_folder
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.compile_cache import CompileCache
from hasten.engines.cuda import torch as torch_cuda
from hasten.engines.cuda.facts import DeviceFacts
from hasten.engines.cuda.kept import check_own_folder
from hasten.engines.cuda.pins import Pins, check_pins, pin
from hasten.engines.cuda.runtime import Host
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.tensorrt import plans, rtx
from hasten.engines.tensorrt.kernels import KeptKernels
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError
from hasten.evaluation.deep import network, runtimes

KEY = "0" * 64
HERE = DeviceFacts("sm90", "13.0")
ATTACHED = Target.host().with_device("cuda", present=True)


class Kernels:
    """Cache of kernels as TensorRT for RTX has one; it takes only what such a cache wrote."""

    def __init__(self) -> None:
        self.content = b"kernels:"

    def serialize(self) -> bytearray:
        return bytearray(self.content)

    def deserialize(self, blob: bytes) -> bool:
        fits = blob.startswith(b"kernels:")
        self.content = blob if fits else self.content
        return fits


class Config:
    """Configuration of contexts."""

    def __init__(self) -> None:
        self.taken: Kernels | None = None

    def create_runtime_cache(self) -> Kernels:
        return Kernels()

    def set_runtime_cache(self, kernels: Kernels) -> None:
        self.taken = kernels


def start(folder: Path, compiles: bytes) -> tuple[CompileCache, bytes]:
    """Open two contexts, compile, keep; return the cache and what was there before compiling."""
    compiled = CompileCache(CacheFolder(folder))
    kept, first, second = KeptKernels(compiled, KEY), Config(), Config()
    kept.attach(first)
    kept.attach(second)
    assert first.taken is not None
    assert first.taken is second.taken
    before = first.taken.content
    if compiles not in before:
        first.taken.content += compiles
    kept.keep()
    kept.keep()
    return compiled, before


def test_a_second_start_finds_the_kernels_and_keeps_only_what_is_new(tmp_path: Path) -> None:
    compiled, before = start(tmp_path / "cache", b"a")
    assert (compiled.found, compiled.kept, before) == (0, 1, b"kernels:")
    compiled, before = start(tmp_path / "cache", b"a")
    assert (compiled.found, compiled.kept, before) == (1, 0, b"kernels:a")
    compiled, before = start(tmp_path / "cache", b"b")
    assert (compiled.found, compiled.kept, before) == (1, 1, b"kernels:a")


def test_kernels_that_the_library_refuses_are_compiled_anew(tmp_path: Path) -> None:
    CacheFolder(tmp_path / "cache").put(KEY, b"of another driver, and rather long")
    compiled, before = start(tmp_path / "cache", b"a")
    assert (compiled.found, compiled.kept, before) == (0, 1, b"kernels:")
    assert start(tmp_path / "cache", b"a")[1] == b"kernels:a"


def test_without_a_context_nothing_is_kept(tmp_path: Path) -> None:
    compiled = CompileCache(CacheFolder(tmp_path / "cache"))
    KeptKernels(compiled, KEY).keep()
    assert compiled.kept == 0


def test_the_real_library_has_such_a_cache() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra gpu")
    assert hasattr(trt.IRuntimeConfig, "create_runtime_cache")
    assert hasattr(trt.IRuntimeConfig, "set_runtime_cache")
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache))


class CachingConfig(IRuntimeConfig, Config):
    """Configuration of contexts whose kernels can come from a cache."""

    def __init__(self) -> None:
        Config.__init__(self)


class CompilingEngine(ICudaEngine):
    """An engine whose contexts need a kernel, which is compiled where the cache lacks it.

    Attributes:
        compilations: Number of kernels that were compiled.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.compilations = 0

    def create_runtime_config(self) -> IRuntimeConfig:
        return CachingConfig()

    def create_execution_context(self, how: Any) -> IExecutionContext:
        assert how.taken is not None, "the context was given no cache"
        if b"kernel" not in how.taken.content.removeprefix(b"kernels:"):
            self.compilations += 1
            how.taken.content += b"kernel"
        return super().create_execution_context(how)


class Caching(Library):
    """TensorRT for RTX with the cache of kernels that its contexts can have."""

    __version__ = "1.7"

    def __init__(self) -> None:
        self.engine: CompilingEngine = CompilingEngine()


def test_tensorrt_for_rtx_compiles_at_the_first_start_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's session from opening to end, with this host in the GPU's place."""
    monkeypatch.setattr(plans, "_log", lambda trt: plans._Log())
    monkeypatch.setattr(plans, "Cuda", Host)
    monkeypatch.setattr(rtx, "check_pins", partial(check_pins, read=lambda: HERE))
    for name in ("model.onnx", "model.plan"):
        (tmp_path / name).write_text(name)
    files = (tmp_path / "model.plan",)
    artifact = replace(PLANNED, path=tmp_path / "model.onnx", files=files)
    artifact = pinned(artifact, "TensorRT for RTX", Caching.__version__)
    found = []
    for _ in range(2):
        library, compiled = Caching(), CompileCache(CacheFolder(tmp_path / "cache"))
        toolkit: Any = staticmethod(lambda trt=library: trt)
        monkeypatch.setattr(TensorrtRtx, "toolkit", toolkit)
        with TensorrtRtx().open_cached(artifact, ATTACHED, compiled) as session:
            answer = session.run({"x": np.full((2, 3), 4, np.float32)})["y"]
        assert np.array_equal(answer, np.full((2, 3), 8))
        found.append((compiled.found, compiled.kept, library.engine.compilations))
    assert found == [(0, 1, 1), (1, 0, 0)]


@pytest.fixture
def program(tmp_path: Path) -> Artifact:
    """The small network's program."""
    pytest.importorskip("torch")
    model = network.as_model(tmp_path, program=True)
    assert model.program is not None
    torch_programs.keep(model.program, tmp_path / "kept.pt2")
    x, y = TensorSpec("input", "float32", (1, 3, 32, 32)), TensorSpec("y", "float32", (1, 10))
    return Artifact(tmp_path / "kept.pt2", (x,), (y,), (x,))


def scaling(folder: Path) -> Artifact:
    """Return a program of one kernel, which is quickly compiled: x * 2 + 1."""
    import torch

    class Scaling(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 + 1

    example = (torch.zeros(1, 3, 32, 32),)
    torch.export.save(torch.export.export(Scaling(), example), folder / "scaling.pt2")
    torch_programs.keep(folder / "scaling.pt2", folder / "kept.pt2")
    x, y = (TensorSpec(name, "float32", (1, 3, 32, 32)) for name in ("x", "y"))
    return Artifact(folder / "kept.pt2", (x,), (y,), (x,))


def pinned(artifact: Artifact, runtime: str, version: str) -> Artifact:
    """Return an artifact that states the GPU here."""
    beside = pin(artifact.path, Pins(runtime, version, HERE.part, HERE.driver))
    return replace(artifact, files=(*artifact.files, beside))


@contextmanager
def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """As a new process finds torch: nothing compiled, and nothing in its own folder."""
    import torch
    from torch._dynamo.utils import counters
    from torch.compiler._cache import CacheArtifactManager

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    torch.compiler.reset()
    counters.clear()
    with CacheArtifactManager.with_fresh_cache():
        yield counters
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_torch_compiles_at_the_first_start_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's session from opening to end, with this host in the GPU's place."""
    pytest.importorskip("torch")
    monkeypatch.setattr(torch_cuda, "Cuda", Host)
    monkeypatch.setattr(torch_cuda, "device_facts", lambda: HERE)
    monkeypatch.setattr(torch_cuda, "check_pins", partial(check_pins, read=lambda: HERE))
    request = network.requests(1)[0]
    artifact = pinned(scaling(tmp_path), "PyTorch", TorchCuda.version())
    found = []
    for start in range(2):
        compiled = CompileCache(CacheFolder(tmp_path / "cache"))
        with fresh(tmp_path / f"torch{start}", monkeypatch) as counted:
            with TorchCuda().open_cached(artifact, ATTACHED, compiled) as session:
                answer = session.run(request)["y"]
            misses = counted["inductor"]["fxgraph_cache_miss"]
        found.append((compiled.found, compiled.kept, misses > 0))
        assert np.array_equal(answer, request["x"] * 2 + 1)
    assert found == [(0, 1, True), (1, 0, False)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_torch_loads_nothing_through_a_link_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leads to a folder of this user, until it leads to another one."""
    (tmp_path / "own").mkdir(0o700)
    link = tmp_path / "torch"
    link.symlink_to("own")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(link))
    check_own_folder()
    os.lchown(link, 12345, -1)
    with pytest.raises(CandidateError, match=f"^torch's cache {link} belongs to another user, "):
        check_own_folder()


def test_torch_loads_nothing_that_somebody_else_could_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "torch"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    check_own_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    end = (
        "and torch would run code from there: set TORCHINDUCTOR_CACHE_DIR to a folder of your own$"
    )
    with pytest.raises(
        CandidateError, match=f"^torch's cache {folder} is writable by every user, {end}"
    ):
        check_own_folder()
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(
        CandidateError, match=f"^torch's cache {folder} belongs to another user, {end}"
    ):
        check_own_folder()
    folder.rmdir()
    folder.touch()
    with pytest.raises(
        CandidateError, match=f"^torch's cache {folder} can't be used \\(File exists\\)"
    ):
        check_own_folder()


def test_where_the_environment_names_no_folder_it_is_torchs_default() -> None:
    pytest.importorskip("torch")
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    assert torch_folder() == default_cache_dir()


def test_one_program_is_loaded_at_a_time(
    program: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's reader keeps state of the process, and the guard over its pickles does, too."""
    torch = pytest.importorskip("torch")
    load, locked = torch.export.load, []

    def watched(path: str) -> Any:
        locked.append(torch_programs._LOADING.locked())
        return load(path)

    monkeypatch.setattr(torch.export, "load", watched)
    threads = [threading.Thread(target=torch_programs.load, args=(program.path,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert locked == [True, True]


def test_torch_and_onnx_have_the_same_small_network(program: Artifact) -> None:
    torch = pytest.importorskip("torch")
    request = network.requests(1)[0]
    module = torch_programs.load(program.path).module()
    with torch.no_grad():
        found = np.asarray(module(torch.from_numpy(request["x"])))
    assert runtimes._off(found, network.answer(request)) < runtimes._EXACT
