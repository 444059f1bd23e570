"""Engine for ONNX Runtime on an NVIDIA GPU, by CUDA's or TensorRT's kernels."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Tensors
from hasten.core.words import listed
from hasten.engines.artifacts import batch_sizes, place, zeros_for
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.cache_keys import cache_key
from hasten.engines.checked import operators
from hasten.engines.compile_cache import CompileCache
from hasten.engines.cuda.capability import check_gpu
from hasten.engines.cuda.facts import device_facts
from hasten.engines.cuda.kept_engines import KeptEngines, tensorrt_version
from hasten.engines.cuda.own_thread import in_own_thread
from hasten.engines.cuda.replays import RUNS
from hasten.engines.cuda.runtime import Cuda, Device, Host, capturing
from hasten.engines.cuda.session import COPIED_INTO, DeviceSession
from hasten.engines.failures import failed
from hasten.engines.onnxruntime.divisions import guard_divisions
from hasten.engines.onnxruntime.files import own_files
from hasten.engines.onnxruntime.installation import CUDA, load, without_cuda
from hasten.errors import CandidateError, DeviceLost, InputError

_LOG_ERRORS_ONLY = 3
_NAMES = {"cuda": CUDA, "tensorrt": "TensorrtExecutionProvider"}
_CPU = "CPUExecutionProvider"
_QUANTIZES_AT_LOAD = "WeightBiasQuantization"
_NO_GRAPH = -1
_LARGEST_BATCH = 32
"""Largest batch that TensorRT's provider builds for, as the engines of TensorRT do."""
_GRAPHS = 12
"""Largest number of graphs, each for one shape. ONNX Runtime keeps each graph's memory until the
session ends and replays it at the addresses of its capture, so its buffers stay; further shapes
run without a graph."""


@dataclass(frozen=True)
class OnnxRuntimeCuda(Engine):
    """ONNX Runtime's provider for CUDA or TensorRT; operators that neither has run on the host.

    Where the device isn't here, the session runs in the host's memory, by the host's kernels.

    Attributes:
        provider: Provider whose kernels are preferred.
        tf32: Whether products of float32 may round their operands to 10 bits; TensorRT's always
            may.
        cuda_graph: Whether the provider captures a graph, for which it must support every operator;
            only CUDA's can.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    families: ClassVar[frozenset[str]] = frozenset({"cuda"})
    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime-gpu",)
    faithful: ClassVar[bool] = False
    copied_into: ClassVar[tuple[str, ...] | None] = COPIED_INTO

    provider: Literal["cuda", "tensorrt"] = "cuda"
    tf32: bool = False
    cuda_graph: bool = False

    @property
    def exact(self) -> bool:
        """Whether CUDA's kernels compute without TF32."""
        return self.provider == "cuda" and not self.tf32

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the installed providers; nothing without the device, since nothing is compiled."""
        if target.kind == "attached":
            yield cls()
            yield cls(tf32=True)
            if _NAMES["tensorrt"] in _providers():
                yield cls("tensorrt")

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield the engine with a CUDA graph, which takes a single launch."""
        if target.kind == "attached" and self.provider == "cuda" and not self.cuda_graph:
            yield replace(self, cuda_graph=True)

    @classmethod
    def version(cls) -> str:
        """Return ONNX Runtime's version.

        Raises:
            InputError: it isn't installed, or was built without CUDA.
        """
        runtime = _runtime()
        if CUDA not in _providers():
            raise InputError(without_cuda())
        return str(runtime.__version__)

    @classmethod
    def check_tools(cls, target: Target) -> None:
        """Check that CUDA can use the GPU, where it is here.

        Raises:
            InputError: it can't.
        """
        check_gpu(target)

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the model, whose divisions are guarded, after checking that it can be loaded; see `guard_divisions`.

        Raises:
            CandidateError: it can't be loaded; the message names the operator and node.
        """
        artifact = place(model, workdir)
        guard_divisions(artifact.path, [spec.name for spec in artifact.inputs])
        with self.open(artifact, target):
            return artifact

    def open(self, artifact: Artifact, target: Target) -> AbstractContextManager[Session]:
        """Load the model, and run it in a thread of its own; leaving the context frees it.

        Raises:
            CandidateError: the model can't be loaded, the provider isn't used, or it can't capture
                a graph for each shape.
        """
        return self._session(artifact, target, None)

    @property
    def keeps_compiled(self) -> bool:
        """Whether the provider builds engines, which are kept."""
        return self.provider == "tensorrt"

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Load the model as `open` does, with the engines that an earlier start built for this GPU.

        Raises:
            CandidateError: as `open` raises it.
        """
        if not self.keeps_compiled or target.kind != "attached" or artifact.custom_ops:
            with self.open(artifact, target) as session:
                yield session
            return
        here = device_facts()
        built_by = f"TensorRT {tensorrt_version(_runtime())}"
        what = f"engines of {built_by} for {here.name}, {here.part} and CUDA {here.driver}"
        key = cache_key(compiled, self, artifact, target, what)
        with TemporaryDirectory(prefix="hasten-") as folder, ExitStack() as held:
            kept = KeptEngines(Path(folder), compiled, key)
            session = self._recalled(artifact, target, kept, held)
            try:
                yield session
            finally:
                kept.keep()  # those for other sizes, too

    def _recalled(
        self, artifact: Artifact, target: Target, kept: KeptEngines, held: ExitStack
    ) -> Session:
        """Return a session with what was kept, or without it where the provider can't use it.

        Raises:
            DeviceLost: the device answers nothing more, which says nothing about what was kept.
            CandidateError: the model can't be loaded without it either.
        """
        zeros = zeros_for(artifact)
        if kept.recall():
            try:
                with ExitStack() as trying:
                    session = trying.enter_context(self._session(artifact, target, kept.folder))
                    if kept.answers_zeros:
                        session.run(zeros)  # engines for open sizes are read by now
                    held.enter_context(trying.pop_all())
                    return session
            except DeviceLost:
                raise
            except CandidateError:
                kept.drop()
        session = held.enter_context(self._session(artifact, target, kept.folder))
        try:
            session.run(zeros)
        except DeviceLost:
            raise
        except CandidateError:  # zeros may take a branch that can't answer
            kept.mark_without_zeros()
        kept.keep()
        return session

    def _session(
        self, artifact: Artifact, target: Target, engines: Path | None
    ) -> AbstractContextManager[Session]:
        """Load the model, and run it in a thread of its own.

        Args:
            artifact: Artifact that `build` made.
            target: Target for the device.
            engines: Folder from which TensorRT's provider reads its engines, and to which it writes
                them; None for none.
        """
        if self.cuda_graph and self.provider == "tensorrt":
            # It keeps one for the whole session, and replays it whatever the run's `gpu_graph_id`:
            # https://github.com/microsoft/onnxruntime/issues/20050
            raise CandidateError(
                "ONNX Runtime's TensorRT provider has one CUDA graph, which it replays for "
                "requests of all shapes: leave cuda_graph out, or use the engine tensorrt, which "
                "has a graph for each shape"
            )
        return in_own_thread(self._opened(artifact, target, engines), "hasten: ONNX Runtime")

    @contextmanager
    def _opened(
        self, artifact: Artifact, target: Target, engines: Path | None
    ) -> Iterator[Session]:
        device: Device = Cuda() if target.kind == "attached" else Host()
        with device.apart():
            with ExitStack() as failing:
                failing.callback(device.close)
                session = self._load(artifact, target, device, engines)
                network = _Network(session, artifact, device, _GRAPHS if self.cuda_graph else 0)
                # The provider captures its own graph: its runs allocate and wait, which our capture
                # can't include.
                sizes = self._batches(artifact)
                opened = DeviceSession(artifact, device, network, sizes, capture=False)
                failing.pop_all()  # the session closes the device
            with closing(opened):
                yield opened

    def _load(
        self, artifact: Artifact, target: Target, device: Device, engines: Path | None = None
    ) -> Any:
        ort = _runtime()
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_ERRORS_ONLY
        options.intra_op_num_threads = target.threads
        for library in operators(artifact, "RegisterCustomOps"):
            try:
                options.register_custom_ops_library(str(library))
            except Exception as error:
                raise failed(f"ONNX Runtime can't load {library.name}", error) from error
        providers = self._providers(device, artifact, engines)
        if device.kind == "cuda":
            if CUDA not in _providers():
                raise CandidateError(without_cuda())
            with contextlib.redirect_stdout(io.StringIO()):
                ort.preload_dlls()  # CUDA's libraries, from their packages or from torch's
        with own_files(artifact, options) as path:
            try:
                session = ort.InferenceSession(
                    path,
                    options,
                    providers=providers,
                    disabled_optimizers=[_QUANTIZES_AT_LOAD],
                    enable_fallback=0,
                )
            except Exception as error:
                raise failed("ONNX Runtime can't load the model", error, artifact.path) from error
        wanted = providers[0][0]
        if (
            wanted not in session.get_providers()
        ):  # otherwise ONNX Runtime only logs that, and falls back on the host's kernels
            raise CandidateError(
                f"ONNX Runtime can't use {wanted} here: check that CUDA's libraries are "
                f"installed in the version that ONNX Runtime {ort.__version__} is built for"
            )
        return session

    def _batches(self, artifact: Artifact) -> tuple[int, ...] | None:
        """Return the batch sizes that a session takes without building another engine."""
        sizes = batch_sizes(artifact)
        if self.provider == "cuda" or sizes is not None:
            return sizes
        return tuple(range(1, _LARGEST_BATCH + 1)) if profile(artifact) else (1,)

    def _providers(
        self, device: Device, artifact: Artifact, engines: Path | None
    ) -> list[tuple[str, dict[str, str]]]:
        """Return the providers with their options, in order of preference."""
        host = (_CPU, dict[str, str]())
        if device.kind != "cuda":
            return [host]
        stream = {"device_id": "0", "user_compute_stream": str(device.stream)}
        cuda = stream | {
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.cuda_graph)),
        }
        asked = [(_NAMES["cuda"], cuda), host]
        if self.provider == "tensorrt":
            settings = stream | profile(artifact) | engine_cache(engines)
            return [(_NAMES["tensorrt"], settings), *asked]
        return asked

    def words(self) -> str:
        return listed(
            "TF32" if self.tf32 else "",
            f"ONNX Runtime on {'CUDA' if self.provider == 'cuda' else 'TensorRT'}",
            "CUDA graph" if self.cuda_graph else "",
        )


def profile(artifact: Artifact) -> dict[str, str]:
    """Return the settings by which TensorRT's provider builds one engine, for all batch sizes.

    Without them it builds another one, which takes seconds to minutes, whenever a request's sizes
    are outside of the range of those before. There are none where no size is open, where the request
    doesn't settle them, and for names that the provider's notation can't hold.

    Source: ONNX Runtime, TensorRT execution provider, "Explicit shape range for dynamic shape input".
    """
    settled = {spec.name: spec.sizes for spec in artifact.request}
    opened = [s for s in artifact.inputs if any(isinstance(size, str) for size in s.shape)]
    if not opened or any(s.name not in settled or {*":,"} & {*s.name} for s in opened):
        return {}
    found = {}
    for which, batch in (("min", 1), ("opt", 1), ("max", _LARGEST_BATCH)):
        shapes = []
        for spec in opened:
            first = batch if isinstance(spec.shape[0], str) else spec.shape[0]
            sizes = "x".join(map(str, (first, *settled[spec.name][1:])))
            shapes.append(f"{spec.name}:{sizes}")
        found[f"trt_profile_{which}_shapes"] = ",".join(shapes)
    return found


def engine_cache(folder: Path | None) -> dict[str, str]:
    """Return the settings by which TensorRT's provider reads its engines from a folder, or writes them to it.

    Without them it builds all engines at each start.

    Source: ONNX Runtime, TensorRT execution provider, "TensorRT EP Caches".
    """
    if folder is None:
        return {}
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}


class _Network:
    """Session of ONNX Runtime that runs through bindings to a device's memory."""

    def __init__(self, session: Any, artifact: Artifact, device: Device, graphs: int) -> None:
        self._session, self._device = session, device
        self._names = [spec.name for spec in artifact.outputs]
        self._numbers = itertools.chain(range(1, graphs + 1), itertools.repeat(_NO_GRAPH))

    def execution(self, inputs: Tensors) -> _Execution:
        """Answer once, to learn the sizes of the answers."""
        options = _runtime().RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(_NO_GRAPH))
        try:
            answers = self._session.run(self._names, dict(inputs), options)
        except Exception as error:
            raise failed("ONNX Runtime failed", error) from error
        outputs = {
            name: (answer.shape, str(answer.dtype))
            for name, answer in zip(self._names, answers, strict=True)
        }
        return _Execution(self._session, outputs, self._device, next(self._numbers))

    def properties(self) -> Mapping[str, str]:
        used = self._session.get_provider_options().get(_NAMES["cuda"], {})
        return {
            "providers": ", ".join(self._session.get_providers()),
            **{name: used[name] for name in ("use_tf32", "enable_cuda_graph") if name in used},
        }

    def close(self) -> None:
        self._session = None


class _Execution:
    """Binding of the session, and the graph captured for it."""

    def __init__(
        self,
        session: Any,
        outputs: Mapping[str, tuple[tuple[int, ...], str]],
        device: Device,
        number: int,
    ) -> None:
        self.outputs, self.lasting = outputs, number != _NO_GRAPH
        self._session, self._device = session, device
        self._binding = session.io_binding()
        self._options, self._plainly = _options(number), _options(_NO_GRAPH)
        self._before_graph = RUNS if self.lasting else 0

    def bind(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        to = self._binding.bind_output if name in self.outputs else self._binding.bind_input
        to(name, self._device.kind, 0, np.dtype(dtype).type, shape, address)

    def enqueue(self) -> None:
        # One of the first runs captures, which takes its turn with the captures of other sessions.
        with capturing() if self._before_graph else nullcontext():
            self._run(self._options)
        self._before_graph = max(0, self._before_graph - 1)

    def enqueue_without_graph(self) -> None:
        self._run(self._plainly)

    def _run(self, options: Any) -> None:
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise failed("ONNX Runtime failed", error) from error


def _options(number: int) -> Any:
    """Return the options of a run that captures or replays a graph of this number."""
    options = _runtime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    # The session waits once, for the whole request with its copies.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _runtime() -> Any:
    try:
        return load()
    except ImportError as error:
        raise InputError(
            f"ONNX Runtime isn't installed ({error}): pip install onnxruntime-gpu"
        ) from error


def _providers() -> list[str]:
    return list(_runtime().get_available_providers())
