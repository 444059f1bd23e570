"""The contract of an engine: a runtime with its settings, as a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.records import Value
from hasten.core.registry import Registry
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.estimates import Estimate
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, InputError


@dataclass(frozen=True)
class Artifact:
    """What a bundle keeps of a model for one engine, on disk.

    Attributes:
        path: The file that the engine opens.
        files: Further files beside it.
        inputs: What one request brings; open dimensions have names.
        outputs: What it gets back.
        request: The inputs of one request as certified, every size settled.
        custom_ops: Libraries with operators of the user's own.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    request: tuple[TensorSpec, ...]
    files: tuple[Path, ...] = ()
    custom_ops: tuple[Path, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in (self.path, *self.files))


class Session(ABC):
    """A loaded model, ready to answer. Used by one thread at a time, not always the same.

    Sessions share nothing that their answers depend on: several of one artifact run side by side,
    see `SessionPool`.

    Attributes:
        inputs: What `run` takes.
        outputs: What it gives.
        batch_sizes: The batch sizes that it takes, or None where any will do.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...] | None

    @abstractmethod
    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request; block until the outputs are in host memory.

        Args:
            inputs: Arrays by input name, C-contiguous, of the specs' dtypes and shapes. They
                may be read until `run` returns, not after.

        Returns:
            Arrays by output name, the caller's to keep.

        Raises:
            CandidateError: the runtime failed.
        """

    def properties(self) -> Mapping[str, str]:
        """What the runtime says that it really does: executed precision, threads, ..."""
        return {}

    def shares(self) -> Mapping[str, tuple[int, int]]:
        """What it counted, by the property's name: how many of how many.

        Any thread may ask, while another runs.
        """
        return {}


def share(part: int, whole: int) -> str:
    """Return a property's text: how many of how many."""
    return f"{part:,} of {whole:,}"


class Engine(Value, ABC):
    """A runtime with its settings: a frozen dataclass. Only its file runs its runtime.

    Attributes:
        formats: The model formats that `build` takes.
        families: Families of the devices that it is tried on where nobody names engines: "host" for
            the processor of this host, "cuda", "fpga", ... On a device it then answers as the device.
        distributions: Packages that its answers stand on, as an index has them; those that aren't
            installed don't count.
        extra: hasten's extra that installs the runtime; empty for an engine that isn't hasten's own
            or needs none.
        uneven: Whether requests cost so unlike that only their mean tells what a model costs.
        settles: Whether open shapes are settled to the certified request's when it opens a model,
            so that doing it beforehand changes nothing.
        float_only: Whether of ONNX models it takes only those that nothing has quantized.
        faithful: Whether what a session answers on this host is what the device answers, bit for
            bit; only then is it a certificate for a device that isn't here.
    """

    families: ClassVar[frozenset[str]] = frozenset()
    distributions: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    uneven: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    float_only: ClassVar[bool] = False
    faithful: ClassVar[bool] = True
    registry: ClassVar[Registry] = Registry(
        "engine",
        "hasten.engines",
        {
            "null": "hasten.engines.null:Null",
            "reference": "hasten.engines.reference:Reference",
            "onnxruntime": "hasten.engines.onnxruntime.engine:OnnxRuntime",
            "openvino": "hasten.engines.openvino.engine:OpenVino",
            "openvino_npu": "hasten.engines.openvino.npu:OpenVinoNpu",
            "openvino_igpu": "hasten.engines.openvino.igpu:OpenVinoIgpu",
            "litert": "hasten.engines.litert.engine:LiteRt",
            "fixed_point": "hasten.engines.fpga.fixed_point:FixedPointProgram",
            "fpga": "hasten.engines.fpga.engine:Fpga",
            "litert_reference": "hasten.engines.litert.reference:LiteRtReference",
            "coreml": "hasten.engines.coreml.engine:CoreMl",
            "qnn": "hasten.engines.qnn:Qnn",
            "onnxruntime_cuda": "hasten.engines.cuda.onnxruntime:OnnxRuntimeCuda",
            "tensorrt": "hasten.engines.tensorrt.engine:Tensorrt",
            "tensorrt_rtx": "hasten.engines.tensorrt.rtx:TensorrtRtx",
            "torch_cuda": "hasten.engines.cuda.torch:TorchCuda",
            "tpu": "hasten.engines.tpu.engine:Tpu",
            "cascade": "hasten.engines.cascade:Cascade",
        },
    )
    formats: ClassVar[frozenset[Format]]

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether these settings keep the model's own precision (no fast-math, no bf16)."""

    @property
    def runtimes(self) -> tuple[Engine, ...]:
        """The engines that really run something: itself, or what it is made of."""
        return (self,)

    @classmethod
    @abstractmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the settings that differ in what they compute, the engine's exact default first."""

    @property
    def precision(self) -> str | None:
        """The precision of what no pass quantized: "f32", "bf16"; None where the settings don't tell."""
        return "f32" if self.exact else None

    @property
    def threads(self) -> int | None:
        """The threads that it is set to; None for all that the target has."""
        return None

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return it set to a number of threads; an engine without such a setting returns itself.

        Args:
            threads: How many, at least 1.
            alone: Whether nothing else runs on the processors. Else no thread may be bound to one.
        """
        return self

    def within(self, threads: int) -> Self:
        """Return it on at most so many threads; where it asks for no number, it stays as it is."""
        if self.threads is None:
            return self
        return self.on_threads(max(1, min(self.threads, threads)))

    def beside(self) -> Self:
        """Return the engine for use beside another: its idle threads take no processor from it."""
        return self

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield settings that compute the same in another way: threads, waiting, binding."""
        yield from ()

    @classmethod
    def has_profiler(cls) -> bool:
        """Whether `profile` can say how long each step took."""
        return cls.profile is not Engine.profile

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return the runtime's version. Raises InputError where it isn't installed."""

    @classmethod
    def missing(cls, name: str, error: Exception) -> InputError:
        """Return the error for a runtime that isn't installed, with the package that brings it.

        Args:
            name: What people call the runtime.
            error: What importing it raised.
        """
        package = f"'hasten[{cls.extra}]'" if cls.extra else " ".join(cls.distributions[:1])
        remedy = f": pip install {package}" if package else ""
        return InputError(f"{name} isn't installed ({error}){remedy}")

    @classmethod
    def check_tools(cls, target: Target) -> None:
        """Check that the programs are there that make models for a device, before any work.

        Raises:
            InputError: one isn't installed; how it can be.
        """
        return

    @classmethod
    def tools(cls) -> Mapping[str, str]:
        """Return the versions of the programs, besides its packages, that decide what it makes."""
        return {}

    @classmethod
    def check_faithful(cls) -> None:
        """Check that a session on this host answers bit for bit as the device does.

        Raises:
            InputError: it doesn't, or what it takes isn't installed.
        """
        if not cls.faithful:
            raise InputError("what answers in its place may answer otherwise")

    @abstractmethod
    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write into `workdir` what this engine opens.

        Raises:
            CandidateError: the runtime can't take this model: which operator, which node.
        """

    @abstractmethod
    def open(self, artifact: Artifact, target: Target) -> AbstractContextManager[Session]:
        """Load an artifact; leaving the context frees it.

        Raises:
            CandidateError: the runtime can't load it.
        """

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Say what can be known of an artifact on a device that isn't here, by the device's own tools.

        Args:
            artifact: What `build` made.
            target: The device, of kind "compile-only".
            workdir: Empty, exists; what the tools wrote stays there.

        Raises:
            CandidateError: the device can't hold or run it (which resource, by how much), or a tool
                failed.
            InputError: a tool isn't installed.
        """
        return Estimate("none")

    def further_figures(
        self, artifact: Artifact, target: Target, workdir: Path
    ) -> Mapping[str, float]:
        """Return what is worth knowing of an artifact that ships, and takes too long to ask of each.

        Args:
            artifact: What `build` made.
            target: The device, of kind "compile-only".
            workdir: Exists; what the tools write stays there.

        Returns:
            Figures by name, as an estimate has them.

        Raises:
            CandidateError: a tool failed or hung.
            InputError: a tool isn't installed.
        """
        return {}

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Answer requests, after some untimed ones, and say how long each executed step took.

        A request takes longer than its steps together: nothing counts what lies between them
        (the call itself, scheduling, memory, copies of inputs and outputs), and the runtimes cut
        what they count to whole microseconds. Their counting takes time of its own too.

        Args:
            artifact: What `build` made.
            target: The device.
            requests: What to answer, one after another; at least one.

        Returns:
            The steps in the order of execution, each with one latency per request.

        Raises:
            CandidateError: the runtime failed, or it has no profiler.
        """
        raise CandidateError(f"{self.words()} has no profiler")

    @abstractmethod
    def words(self) -> str:
        """Name the runtime for people, with the settings that set it apart: "bf16, OpenVINO, 1 thread".

        A precision that is lower than the model's comes first. Two variants never have the same words.
        """

    def label(self, made: str) -> str:
        """Name a model on this engine for people: "int8 (NNCF), OpenVINO".

        Args:
            made: What passes made of the original, in words; "" where none did.
        """
        if made:
            return f"{made}, {self.words()}"
        return f"original, {self.words()}" if self.exact else self.words()
