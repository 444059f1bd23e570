"""Contract of an engine, which is a runtime with its settings, as a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.records import Value
from hasten.core.registry import Registry
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import CandidateError, InputError

if TYPE_CHECKING:
    from hasten.engines.compile_cache import CompileCache
    from hasten.engines.estimates import Estimate
    from hasten.engines.layers import LayerTime
    from hasten.engines.padding import Padder
    from hasten.engines.weights import Stretch


@dataclass(frozen=True)
class Artifact:
    """Files on disk that a bundle keeps of a model for one engine.

    Attributes:
        path: File that the engine opens.
        files: Further files beside it.
        inputs: Specs of a request's inputs; open dimensions have names.
        outputs: Specs of a request's outputs; open dimensions have names.
        request: Specs of one request's inputs as certified, with every size settled.
        custom_ops: Libraries with the user's own operators.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    request: tuple[TensorSpec, ...]
    files: tuple[Path, ...] = ()
    custom_ops: tuple[Path, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size on disk in bytes, of all files."""
        return sum(file.stat().st_size for file in (self.path, *self.files))


class Session(ABC):
    """Loaded model, ready to answer; used by one thread at a time, though not always the same one.

    Sessions share nothing that affects their answers, so several sessions of one artifact can run
    side by side; see `SessionPool`.

    Attributes:
        inputs: Specs of the inputs that `run` takes.
        outputs: Specs of the outputs that `run` returns.
        batch_sizes: Batch sizes that `run` takes; None for any.
        rows_apart: Whether a batch's rows are computed one after another in the calling thread, each
            bit for bit as it is alone.
        lends_calls: Whether a call that `bind` returned needs nothing of the session, so that any
            number of them may run beside it; and raises CandidateError by itself if two threads call it
            at once, or the session was closed.
        compiling_s: Seconds that a compiler took when it was opened; 0 where what it makes was kept, and for
            engines that start none.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...] | None
    rows_apart: bool = False
    lends_calls: bool = False
    compiling_s: float = 0.0

    @abstractmethod
    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request; block until the outputs are in host memory.

        Args:
            inputs: Arrays by input name, C-contiguous, of the specs' dtypes and shapes; `run` may
                read them until it returns, but not later.

        Returns:
            Arrays by output name, which the caller may keep.

        Raises:
            CandidateError: the runtime failed.
            InputError: an input has other numbers than those that `Engine.constant_inputs` gives.
        """

    def bind(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        """Return a call that answers from and to the same arrays each time.

        What the caller writes into an input between two calls is the next request. Only one thread may
        call at a time.

        Args:
            inputs: Arrays by input name, as `run` takes them.
            outputs: Arrays by output name, C-contiguous, of the dtypes and shapes of the answer.
        """

        def again() -> None:
            for name, array in self.run(inputs).items():
                bound = outputs[name]
                if array.shape != bound.shape:
                    raise CandidateError(
                        f"output {name!r} has the shape {list(array.shape)}, and the array that is bound to it has "
                        f"{list(bound.shape)}: its size doesn't follow from the inputs, so call the model instead"
                    )
                bound[...] = array

        return again

    def properties(self) -> Mapping[str, str]:
        """Facts that the runtime reports about itself: precision in use, threads, ..."""
        return {}

    def settle(self, again: Callable[[], object]) -> None:
        """Have a device warm up by repeating a request, until its clocks stand still.

        Does nothing on a processor, whose clocks settle within the warm-up of a block; see `Pace`.

        Args:
            again: Function that has the session answer one request.
        """
        return

    def device_times(self) -> Mapping[str, str]:
        """Times of a request on a device with a clock of its own, and the device's state meanwhile.

        They are taken now, which keeps the device busy for up to a few seconds; empty without such a
        device.
        """
        return {}

    def shares(self) -> Mapping[str, tuple[int, int]]:
        """Counts by a property's name, each as (part, whole).

        Any thread may ask for them, even while another one runs `run`.
        """
        return {}


def share(part: int, whole: int) -> str:
    """Return the text of a property that is a count out of a total."""
    return f"{part:,} of {whole:,}"


class Engine(Value, ABC):
    """Runtime with its settings: a frozen dataclass. Only its own file calls the runtime.

    Attributes:
        formats: Model formats that `build` takes.
        families: Families of devices on which it is tried unasked: "host" for the processor of this
            host, "cuda", "fpga", ... On such a device it gives the device's own answers.
        distributions: Packages that its answers depend on, by their names in the package index;
            those that aren't installed don't count.
        extra: Extra of hasten that installs the runtime; empty for an engine that needs none or
            isn't hasten's own.
        program: Program that it needs where a bundle is opened, which no package pins: "a C compiler";
            `extra` brings one. Empty for most.
        uneven: Whether the costs of requests differ so much that only their mean is meaningful.
        settles: Whether it settles open shapes to the certified request's when it opens a model, so
            that a pass that does so changes nothing.
        builds_settled: Whether `build` settles open shapes to the model's `request`, whatever its file says.
        reshapes: Whether `open_at` opens one artifact for the shapes of any request.
        float_only: Whether it takes only those ONNX models that nothing has quantized.
        sums_exactly: Whether it sums products of bytes exactly on every processor, so that 8-bit weights
            never need to be 7-bit ones.
        sums_words: Whether it sums products of 16-bit activations and 8-bit weights in integers.
        reads_late: Whether it reads an artifact's files only within `private`, so that they needn't be there
            when the cache has what it makes of them.
        hurry: Place among the engines that try a quantized model when a time limit may leave some untried; those
            that are usually fastest have the lowest.
        needs_program: Whether it runs the framework's program alone, which an ONNX file hasn't.
        faithful: Whether a session on this host answers bit for bit as the device does. Only then
            can it give a certificate for a device that isn't here.
        copied_into: Places into which `run` copies a request's inputs before the model reads them, for
            people and in order; empty if they are read where they are, None if it isn't known.
    """

    families: ClassVar[frozenset[str]] = frozenset()
    distributions: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    program: ClassVar[str] = ""
    uneven: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    builds_settled: ClassVar[bool] = False
    reshapes: ClassVar[bool] = False
    float_only: ClassVar[bool] = False
    sums_exactly: ClassVar[bool] = False
    sums_words: ClassVar[bool] = False
    reads_late: ClassVar[bool] = False
    hurry: ClassVar[int] = 2
    needs_program: ClassVar[bool] = False
    faithful: ClassVar[bool] = True
    copied_into: ClassVar[tuple[str, ...] | None] = None
    registry: ClassVar[Registry] = Registry(
        "engine",
        "hasten.engines",
        {
            "null": "hasten.engines.null:Null",
            "reference": "hasten.engines.reference:Reference",
            "onnxruntime": "hasten.engines.onnxruntime.engine:OnnxRuntime",
            "onnxruntime_settled": "hasten.engines.onnxruntime.engine:OnnxRuntimeSettled",
            "openvino": "hasten.engines.openvino.engine:OpenVino",
            "openvino_npu": "hasten.engines.openvino.npu:OpenVinoNpu",
            "openvino_igpu": "hasten.engines.openvino.igpu:OpenVinoIgpu",
            "litert": "hasten.engines.litert.engine:LiteRt",
            "compiled": "hasten.engines.compiled.engine:CompiledC",
            "integers": "hasten.engines.compiled.integers:Integers",
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
            "buckets": "hasten.engines.buckets:Buckets",
            "split": "hasten.engines.split.engine:Split",
        },
    )
    formats: ClassVar[frozenset[Format]]

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether these settings keep the model's own precision (no fast-math, no bf16)."""

    @property
    def keeps_compiled(self) -> bool:
        """Whether `open_cached` keeps something of a model in the cache that it is given."""
        return False

    @property
    def runtimes(self) -> tuple[Engine, ...]:
        """Engines that execute something: this one, or the engines that it is composed of."""
        return (self,)

    @classmethod
    @abstractmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the settings that differ in what they compute, the engine's exact default first."""

    @property
    def precision(self) -> str | None:
        """Precision of what no pass quantized: "f32", "bf16"; None if the settings don't tell."""
        return "f32" if self.exact else None

    @property
    def threads(self) -> int | None:
        """Number of threads that it is set to; None for all that the target has."""
        return None

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return the engine set to a number of threads; without such a setting, itself.

        Args:
            threads: Number of threads, at least 1.
            alone: Whether nothing else runs on the processors. If not, no thread may be bound to
                one.
        """
        return self

    def within(self, threads: int) -> Self:
        """Return the engine limited to a number of threads; unchanged if it is set to none."""
        if self.threads is None:
            return self
        return self.on_threads(max(1, min(self.threads, threads)))

    def beside(self) -> Self:
        """Return the engine for use next to another: its idle threads take no processor from it."""
        return self

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield settings that compute the same results differently: threads, waiting, binding."""
        yield from ()

    def settling(self) -> Engine | None:
        """Return the engine that settles shapes for one sample and takes batches all the same; or None."""
        return None

    @classmethod
    def prefers_narrow(cls, target: Target) -> bool:
        """Whether 7-bit weights make it faster on a target, though it sums those of 8 bits exactly."""
        return False

    def substitute(self, refused: str) -> Engine | None:
        """Return the engine to try in place of this one, which refused a model; or None.

        Args:
            refused: Message of the `NotCovered` with which it refused the model.
        """
        return None

    @classmethod
    def has_profiler(cls) -> bool:
        """Whether `profile` can tell how long each step took."""
        return cls.profile is not Engine.profile

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return the runtime's version; raise InputError if it isn't installed."""

    @classmethod
    def missing(cls, name: str, error: Exception) -> InputError:
        """Return the error for a runtime that isn't installed, naming the package to install.

        Args:
            name: Name of the runtime for people.
            error: Exception that importing it raised.
        """
        package = f"'hasten[{cls.extra}]'" if cls.extra else " ".join(cls.distributions[:1])
        remedy = f": pip install {package}" if package else ""
        return InputError(f"{name} isn't installed ({error}){remedy}")

    @classmethod
    def check_tools(cls, target: Target) -> None:
        """Check, before any work, that the programs that build models for a device are installed.

        Raises:
            InputError: a program is missing; the message says how to install it.
        """
        return

    @classmethod
    def unsuited(cls, target: Target) -> str:
        """Return why it has no variant for a target in its families, and what to do instead.

        Empty where it has one, and where there is nothing to do about it.
        """
        return ""

    @classmethod
    def tools(cls) -> Mapping[str, str]:
        """Return the versions of programs, other than its packages, that affect what it builds.

        Of an engine that is tried on this host, these are facts that two measurements must share.
        """
        return {}

    @classmethod
    def check_faithful(cls) -> None:
        """Check that a session on this host answers bit for bit as the device does.

        Raises:
            InputError: it doesn't, or a program that it needs isn't installed.
        """
        if not cls.faithful:
            raise InputError("a session on this host may give other answers than the device")

    @abstractmethod
    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write the files that this engine opens into `workdir`.

        Raises:
            NotCovered: the engine isn't made for this model, so that the search skips it; the message
                names the operator and node.
            CandidateError: anything else went wrong.
        """

    @abstractmethod
    def open(self, artifact: Artifact, target: Target) -> AbstractContextManager[Session]:
        """Load an artifact; leaving the context frees it.

        Raises:
            CandidateError: the runtime can't load the artifact.
        """

    def open_at(
        self, artifact: Artifact, target: Target, request: tuple[TensorSpec, ...]
    ) -> AbstractContextManager[Session]:
        """Load an artifact with open shapes for requests of one shape; only where it `reshapes`.

        Args:
            artifact: Artifact that `build` made.
            target: Target for the device.
            request: Inputs of each request, with every size settled.

        Raises:
            CandidateError: the runtime can't load the artifact.
        """
        return self.open(replace(artifact, inputs=request, request=request), target)

    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> AbstractContextManager[Session]:
        """Load an artifact as `open` does, through a cache of what opening it took time to make.

        The session answers bit for bit as one of `open`. What the cache holds is used only where it
        fits; without it, and where it can't be used, the artifact is opened as ever.

        Args:
            artifact: Artifact that `build` made.
            target: Target for the device.
            compiled: Cache of what engines made of the bundle's models.

        Raises:
            CandidateError: the runtime can't load the artifact.
        """
        return self.open(artifact, target)

    def stretches(self, artifact: Artifact) -> Iterator[Stretch]:
        """Yield where the tensors of an artifact lie in its files, so that they are packed as numbers.

        It is a hint: whatever isn't named is packed as bytes, and a packed bundle gives every byte back.

        Args:
            artifact: Artifact that `build` made.
        """
        from hasten.engines.weights import stretches_in

        yield from stretches_in((artifact.path, *artifact.files))

    def loaded_bytes(self, artifact: Artifact) -> int:
        """Return the size in bytes of the models that one session of an artifact loads at most."""
        return artifact.size_bytes

    def reference(self) -> Engine | None:
        """Return the engine that opens the same artifacts and defines their answers; None if there is none.

        It is slow, and needs no program.
        """
        return None

    def same_everywhere(self, artifact: Artifact) -> bool:
        """Whether answers are the same bits on every processor, on any number of threads, by any program.

        It is found in the artifact's own files, since nothing else that a bundle states can be believed.
        Versions of packages count all the same.

        Args:
            artifact: Artifact that `build` made, or that a bundle brought.
        """
        return False

    def constant_inputs(self, artifact: Artifact) -> Mapping[str, tuple[int, ...]]:
        """Return the inputs for whose only numbers an artifact was built, with these in C order, by name.

        Its sessions refuse other numbers with InputError. It is found in the artifact's own files.

        Args:
            artifact: Artifact that `build` made, or that a bundle brought.
        """
        return {}

    def shared_padder(self, artifact: Artifact) -> Padder | None:
        """Return the padding of an artifact's requests, by which unlike ones can share a batch; None for none.

        Args:
            artifact: Artifact that `build` made, or that a bundle brought.
        """
        return None

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Estimate an artifact's figures on a device that isn't here, by the device's own tools.

        Args:
            artifact: Artifact that `build` made.
            target: Target for the device, of kind "compile-only".
            workdir: Existing empty folder, in which the tools' files stay.

        Raises:
            CandidateError: the device can't hold or run the artifact (the message names the
                resource and the excess), or a tool failed.
            InputError: a tool isn't installed.
        """
        from hasten.engines.estimates import Estimate

        return Estimate("none")

    def further_figures(
        self, artifact: Artifact, target: Target, workdir: Path
    ) -> Mapping[str, float]:
        """Return figures of a shipped artifact that take too long to compute for every candidate.

        Args:
            artifact: Artifact that `build` made.
            target: Target for the device, of kind "compile-only".
            workdir: Existing folder, in which the tools' files stay.

        Returns:
            Figures by name, like those of an estimate.

        Raises:
            CandidateError: a tool failed or hung.
            InputError: a tool isn't installed.
        """
        return {}

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Answer requests, after some untimed ones, and return how long each executed step took.

        A request takes longer than all its steps together: no step covers what lies between them
        (the call itself, scheduling, memory, copies of inputs and outputs), and runtimes truncate
        each step to whole microseconds. The profiler itself takes time, too.

        Args:
            artifact: Artifact that `build` made.
            target: Target for the device.
            requests: Requests to answer, one after another; at least one.

        Returns:
            Steps in the order of execution, each with one latency per request.

        Raises:
            CandidateError: the runtime failed, or it has no profiler.
        """
        raise CandidateError(f"{self.words()} has no profiler")

    @abstractmethod
    def words(self) -> str:
        """Return the name for people, with the settings that set it apart: "bf16, OpenVINO".

        A precision below the model's comes first. No two variants of an engine have the same words.
        """

    def label(self, made: str) -> str:
        """Return the name for people of a model on this engine: "int8 (NNCF), OpenVINO".

        Args:
            made: Words for what passes made of the original; "" for the original itself.
        """
        if made:
            return f"{made}, {self.words()}"
        return f"original, {self.words()}" if self.exact else self.words()
