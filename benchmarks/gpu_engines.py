"""What the GPU benchmark races beside hasten's engines: runtimes as their users call them, and a whole bundle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import hasten
from hasten.bundle.covered import cut, joined, listed, split
from hasten.bundle.loaded import Loaded
from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.cuda.gauge import gauge_of
from hasten.engines.cuda.runtime import cuda_runtime
from hasten.engines.cuda.settling import Settling
from hasten.engines.only_timed import OnlyTimed
from hasten.errors import CandidateError

MODULE = "module.pt"
"""File beside a model's program, with the torch module that it was exported from."""
REQUESTS = "requests"
"""Property that says how a bundle answers a batch in parts: "8 of 1"."""


class _Bare(OnlyTimed):
    """Runtime as it comes, with no setting of hasten's and nothing of hasten around its call.

    It isn't exact: the defaults of these runtimes may round products of float32 to TF32.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        yield cls()


@dataclass(frozen=True)
class BareTorch(_Bare):
    """The torch module itself: copied to the GPU, called there, and its answers copied back.

    Attributes:
        compiled: Whether torch.compile compiles it, with CUDA graphs.
    """

    distributions: ClassVar[tuple[str, ...]] = ("torch",)

    compiled: bool = False

    @classmethod
    def version(cls) -> str:
        import torch

        return str(torch.__version__)

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        if model.program is None or not (file := model.program.with_name(MODULE)).exists():
            raise CandidateError("the module can't be pickled, so no other process has it")
        return Artifact(file, model.request, model.outputs, model.request)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        import torch

        on_gpu = target.kind == "attached"
        place = "cuda" if on_gpu else "cpu"
        # Pickle's own danger doesn't arise: the benchmark wrote the file.
        module = torch.load(artifact.path, map_location=place, weights_only=False).eval()
        if self.compiled and on_gpu:
            module = torch.compile(module, mode="reduce-overhead")
        inputs = [spec.name for spec in artifact.inputs]
        outputs = [spec.name for spec in artifact.outputs]

        def answer(request: Tensors) -> dict[str, Array]:
            with torch.inference_mode():
                given = module(*(torch.from_numpy(request[name]).to(place) for name in inputs))
                found = torch.utils._pytree.tree_leaves(given)
                return {name: one.cpu().numpy() for name, one in zip(outputs, found, strict=True)}

        yield _BareSession(artifact, answer, on_gpu=on_gpu)

    def words(self) -> str:
        return f"bare {'torch.compile' if self.compiled else 'torch eager'}"


@dataclass(frozen=True)
class BareOnnxRuntime(_Bare):
    """A session of ONNX Runtime on CUDA, asked by `run` with NumPy arrays."""

    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime-gpu",)

    @classmethod
    def version(cls) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        return Artifact(model.path, model.request, model.outputs, model.request, model.files)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        import onnxruntime

        on_gpu = target.kind == "attached"
        wanted = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
        if on_gpu:
            onnxruntime.preload_dlls()
        session = onnxruntime.InferenceSession(str(artifact.path), providers=[wanted])
        if wanted not in session.get_providers():
            raise CandidateError(f"ONNX Runtime can't use {wanted} here")
        outputs = [spec.name for spec in artifact.outputs]

        def answer(request: Tensors) -> dict[str, Array]:
            return dict(zip(outputs, session.run(outputs, dict(request)), strict=True))

        yield _BareSession(artifact, answer, on_gpu=on_gpu)

    def words(self) -> str:
        return "bare ONNX Runtime"


class _BareSession(Session):
    """Function that answers requests, warmed up before a turn as hasten's own sessions are."""

    batch_sizes = None

    def __init__(
        self, artifact: Artifact, answer: Callable[[Tensors], dict[str, Array]], *, on_gpu: bool
    ) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self._answer, self._on_gpu = answer, on_gpu

    def run(self, inputs: Tensors) -> dict[str, Array]:
        return self._answer(inputs)

    @cached_property
    def _settling(self) -> Settling:
        return Settling(gauge_of(cuda_runtime()))

    def settle(self, again: Callable[[], object]) -> None:
        if self._on_gpu:
            self._settling(again)


@dataclass(frozen=True)
class Bundled(OnlyTimed):
    """A bundle as `hasten.load` opens it, whatever engine its model is on.

    Requests of more rows than it takes, or than its certificate covers, are answered in parts.

    Attributes:
        folder: The bundle's folder.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})

    folder: str

    @classmethod
    def version(cls) -> str:
        return hasten.__version__

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        manifest = Path(self.folder) / "manifest.json"
        return Artifact(manifest, model.request, model.outputs, model.request)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the table has the bundle's status
            loaded = hasten.load(self.folder, threads=target.threads, sessions=1)
        with loaded:
            yield _BundledSession(artifact, loaded)

    def words(self) -> str:
        return "hasten"


class _BundledSession(Session):
    """Open bundle that is asked for one size of batch.

    Raises:
        CandidateError: its batch sizes don't add up to that one.
    """

    batch_sizes = None

    def __init__(self, artifact: Artifact, loaded: Loaded) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self._loaded = loaded
        self._names = [spec.name for spec in loaded.inputs]
        rows = int(artifact.request[0].sizes[0])
        self._sizes = loaded.keeps_to or loaded.batch_sizes or (rows,)
        self._parts = split(rows, self._sizes)
        self._rows = rows
        if sum(self._parts) != rows:
            raise CandidateError(
                f"the bundle takes batches of {listed(sorted(self._sizes))}, not {rows}"
            )
        with loaded._pool.session() as session:
            self._session = session  # the only one

    def run(self, inputs: Tensors) -> dict[str, Array]:
        if len(self._parts) == 1:
            return self._answer(inputs)
        return joined([self._answer(one) for one in cut(inputs, self._rows, self._sizes)])

    def _answer(self, inputs: Tensors) -> dict[str, Array]:
        return self._loaded(*(inputs[name] for name in self._names))

    def properties(self) -> Mapping[str, str]:
        parts = {REQUESTS: _counted(self._parts)} if len(self._parts) > 1 else {}
        return {**self._loaded.properties(), **parts}

    def settle(self, again: Callable[[], object]) -> None:
        self._session.settle(again)

    def device_times(self) -> Mapping[str, str]:
        """Times of all parts together; none where they differ in size, since only one was timed."""
        told = dict(self._session.device_times())
        if len({*self._parts}) > 1:
            return {}
        for name in told.keys() & {"stream_ns", "host_ns"}:
            told[name] = f"{float(told[name]) * len(self._parts):.0f}"
        return told


def _counted(parts: Sequence[int]) -> str:
    """Return the sizes of parts in words, the largest first: "2 of 8 and 1 of 4"."""
    sizes = sorted({*parts}, reverse=True)
    *others, last = [f"{parts.count(size)} of {size}" for size in sizes]
    return f"{', '.join(others)} and {last}" if others else last
