"""Common parts of TensorRT and TensorRT for RTX: building a plan from ONNX, and running it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import re
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Tensors, TensorSpec
from hasten.core.words import listed
from hasten.engines.artifacts import place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import content
from hasten.engines.cuda.capability import check_gpu
from hasten.engines.cuda.pins import Pins, check_pins, pin
from hasten.engines.cuda.runtime import Cuda, Device
from hasten.engines.cuda.session import COPIED_INTO, DeviceSession
from hasten.engines.estimates import Estimate
from hasten.engines.failures import LONGEST_REASON
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.tensorrt.kernels import KeptKernels
from hasten.engines.tensorrt.profile import Violation, alterations
from hasten.errors import CandidateError, InputError, NotCovered, first_words

_MOST_LINES = 10_000
"""Lines of the library's log that are kept, since it writes while it serves, too."""
_FIGURES = {
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "scratch_bytes": re.compile(r"Max Scratch Memory: (\d+) bytes"),
}
_NOISE = re.compile(
    r"^(?:I\w+::\w+: |\[[\w.:]+\] )?Error Code \d+: (?:Myelin \(\[[^\]]*\] )?|^\[[\w.:]+\] "
)
_WHERE = re.compile(r"\s+In \w+ at /?[\w./]+:\d+\)?\.?$")


def bindings(names: Sequence[str], noun: str, remedy: str) -> Any:
    """Return the bindings of a TensorRT, by the first of their names that can be imported.

    Raises:
        InputError: none is installed; the message says what to do.
    """
    failures = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            failures.append(first_words(str(error)) or type(error).__name__)
    raise InputError(f"{noun} isn't installed ({failures[-1]}): {remedy}")


@dataclass(frozen=True)
class PlanEngine(Engine):
    """TensorRT, strongly typed: the graph states what is in int8, in half precision and in float32.

    Attributes:
        tf32: Whether products of float32 may round their operands to 10 bits.
        largest_batch: Largest batch size, for a model whose first axis is open.
        cuda_graph: Whether a request's copies and kernels are launched as one CUDA graph.
        library: Name of the TensorRT, for people.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    families: ClassVar[frozenset[str]] = frozenset({"cuda"})
    settles: ClassVar[bool] = True
    faithful: ClassVar[bool] = False
    copied_into: ClassVar[tuple[str, ...] | None] = COPIED_INTO
    library: ClassVar[str]

    tf32: bool = False
    largest_batch: int = 32
    cuda_graph: bool = True

    @property
    def exact(self) -> bool:
        """Whether products are computed without TF32."""
        return not self.tf32

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield the engine for one request at a time."""
        if target.kind == "attached" and self.largest_batch > 1:
            yield replace(self, largest_batch=1)

    @classmethod
    @abstractmethod
    def toolkit(cls) -> Any:
        """Return the library's bindings.

        Raises:
            InputError: it isn't installed.
        """

    @classmethod
    def version(cls) -> str:
        """Return the library's version.

        Raises:
            InputError: it isn't installed.
        """
        return str(cls.toolkit().__version__)

    @classmethod
    def check_tools(cls, target: Target) -> None:
        """Check that CUDA can use the GPU, where it is here.

        Raises:
            InputError: it can't.
        """
        check_gpu(target)

    def open(self, artifact: Artifact, target: Target) -> AbstractContextManager[Session]:
        """Load the plan where the device is; elsewhere answer from the model on this host.

        Raises:
            CandidateError: the plan was made for another GPU, driver or version of the library, or it
                or the model can't be loaded.
        """
        trt = None
        if target.kind == "attached":
            trt = self.toolkit()
            check_pins(artifact, self.library, self.version())
        return answering(artifact, target, self.largest_batch, trt=trt, graph=self.cuda_graph)

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Return the plan's sizes; the library doesn't estimate time without the device."""
        return estimated(artifact)

    def words(self) -> str:
        default = type(self).largest_batch
        return listed(
            "TF32" if self.tf32 else "",
            self.library,
            "" if self.largest_batch == default else f"batch {self.largest_batch}",
            "" if self.cuda_graph else "no CUDA graph",
        )


class _Log:
    """Log of the library, which keeps the first logger that it is given in a process."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=_MOST_LINES)
        self.lines: deque[str] = deque(maxlen=_MOST_LINES)
        self.logger: Any = None

    def clear(self) -> None:
        self.errors.clear()
        self.lines.clear()


@functools.cache
def _log(trt: Any) -> _Log:
    log = _Log()

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Record a message, and errors separately as well."""
            log.lines.append(message)
            if severity <= trt.ILogger.Severity.ERROR:
                log.errors.append(message)

    log.logger = Logger()
    trt.init_libnvinfer_plugins(log.logger, "")
    return log


def built(
    trt: Any,
    model: Model,
    workdir: Path,
    *,
    refused: Callable[[Path], Sequence[Violation]],
    tf32: bool,
    largest_batch: int,
    configure: Callable[[Any], None],
    pins: Pins,
) -> Artifact:
    """Keep the model, to answer from where the device isn't, and write its plan beside it.

    Args:
        trt: Bindings of the library.
        model: Model in ONNX.
        workdir: Folder to write to.
        refused: Function that returns the parts of an ONNX file that the library is known not to
            take.
        tf32: Whether products of float32 may be in TF32.
        largest_batch: Largest batch size, for a model whose first axis is open.
        configure: Function that sets what to build for, in the builder's configuration.
        pins: GPU, driver and version of the library that the plan is built for.

    Raises:
        CandidateError: the library doesn't take an operator or a type; the message names it and the
            node.
    """
    artifact = place(model, workdir)
    if found := (*refused(artifact.path), *alterations(artifact.path)):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise NotCovered(f"TensorRT can't take the model: {found[0]}{more}")
    inputs = tuple(_settled(spec, model) for spec in model.inputs)
    if largest_batch == 1:
        inputs = tuple(replace(s, shape=(1, *s.shape[1:])) if _open(s) else s for s in inputs)
    log = _log(trt)
    log.clear()
    builder = trt.Builder(log.logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # always, since 11
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    _parse(trt, network, artifact.path, log)
    config = builder.create_builder_config()
    if tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    configure(config)
    config.add_optimization_profile(_profile(builder, network, inputs, largest_batch))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = _said(log.errors[-1] if log.errors else "it gave no reason", artifact.path)
        raise CandidateError(f"TensorRT can't build the model: {said}")
    path = workdir / f"{artifact.path.stem}.plan"
    path.write_bytes(memoryview(plan))
    figures = {"plan_bytes": path.stat().st_size, "layers": network.num_layers, **_figures(log)}
    told = path.with_suffix(".plan.json")
    told.write_text(json.dumps(figures))
    return replace(artifact, inputs=inputs, files=(*artifact.files, path, pin(path, pins), told))


def batches(artifact: Artifact, largest_batch: int) -> tuple[int, ...]:
    """Return the batch sizes that a plan takes."""
    if any(_open(spec) for spec in artifact.inputs):
        return tuple(range(1, largest_batch + 1))
    sizes = {int(spec.shape[0]) for spec in artifact.inputs if spec.shape}
    return (sizes.pop() if len(sizes) == 1 else 1,)


def estimated(artifact: Artifact) -> Estimate:
    """Return the sizes that the builder reported; it doesn't estimate time."""
    figures = json.loads(_file(artifact, ".plan.json").read_text())
    return Estimate("none", figures={name: float(value) for name, value in figures.items()})


@contextmanager
def answering(
    artifact: Artifact,
    target: Target,
    largest_batch: int,
    *,
    trt: Any,
    graph: bool,
    kept: KeptKernels | None = None,
) -> Iterator[Session]:
    """Open the plan where its device is; elsewhere open its unchanged graph on this host.

    Args:
        artifact: Artifact with the plan.
        target: Target for the device.
        largest_batch: Largest batch size, for a model whose first axis is open.
        trt: Bindings of the library; None where the device isn't here.
        graph: Whether a request is captured as one CUDA graph.
        kept: Kernels that an earlier start compiled; None to compile all.

    Raises:
        CandidateError: the plan or the graph can't be loaded.
    """
    sizes = batches(artifact, largest_batch)
    if target.kind != "attached":
        with OnnxRuntime(graph_optimization="disabled").open(artifact, target) as session:
            session.batch_sizes = sizes
            yield session
        return
    device = Cuda()
    try:
        with device.apart():
            network = _Plan(trt, _file(artifact, ".plan"), artifact, device, kept)
    except BaseException:
        device.close()
        raise
    on_device = DeviceSession(artifact, device, network, sizes, capture=graph)
    try:
        yield on_device
    finally:
        on_device.close()


def _file(artifact: Artifact, suffix: str) -> Path:
    for file in artifact.files:
        if file.name.endswith(suffix):
            return file
    raise CandidateError(f"the artifact has no {suffix} file: build it again")


def _open(spec: TensorSpec) -> bool:
    return bool(spec.shape) and isinstance(spec.shape[0], str)


def _settled(spec: TensorSpec, model: Model) -> TensorSpec:
    """Return an input with all its axes but the first settled by the request."""
    known = {one.name: one.shape for one in model.request}.get(spec.name)
    sizes = list(spec.shape)
    for axis, size in enumerate(sizes):
        if axis and isinstance(size, str):
            if known is None:
                raise CandidateError(f"{spec} has open axes, and no data fixed their sizes")
            sizes[axis] = known[axis]
    return replace(spec, shape=tuple(sizes))


def _parse(trt: Any, network: Any, path: Path, log: _Log) -> None:
    """Parse an ONNX file into a network."""
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse_from_file(str(path)):
        return
    if not parser.num_errors:
        raise CandidateError(f"TensorRT can't read {path.name}")
    error = parser.get_error(0)
    node, operator = error.node_name(), error.node_operator()
    said = _said(error.desc(), path)
    where = f"{operator} (node {node!r}): " if node else ""
    raise CandidateError(f"TensorRT can't take the model: {where}{said}")


def _profile(builder: Any, network: Any, inputs: Sequence[TensorSpec], largest_batch: int) -> Any:
    """Return the sizes to optimize for: single requests above all, and all allowed batches."""
    profile = builder.create_optimization_profile()
    specs = {spec.name: spec for spec in inputs}
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        if -1 not in tuple(tensor.shape):
            continue
        rest = specs[tensor.name].shape[1:]
        first = specs[tensor.name].shape[0]
        one, most = (1, largest_batch) if isinstance(first, str) else (first, first)
        profile.set_shape(tensor.name, (one, *rest), (one, *rest), (most, *rest))
    return profile


def _figures(log: _Log) -> dict[str, int]:
    """Return the memory sizes that the builder logged."""
    found = {}
    for name, pattern in _FIGURES.items():
        for line in log.lines:
            if match := pattern.search(line):
                found[name] = int(match[1])
    return found


def _said(message: str, path: Path) -> str:
    """Return a message in one line, without the library's file names, with the node it names."""
    line = first_words(message) or "no reason given"
    line = _WHERE.sub("", _NOISE.sub("", line)).strip()
    if line.count("(") < line.count(")"):
        line = line.removesuffix(")")
    if len(line) > LONGEST_REASON:
        line = line[: LONGEST_REASON - 3] + "..."
    return line + _node(line, path)


def _node(said: str, path: Path) -> str:
    """Return a note with the node and operator that a message names; "" if it names none."""
    words = {word.removeprefix("node_of_") for word in re.findall(r"[\w./:]+", said)}
    words |= {re.sub(r"_(U?\d+)$", "", word) for word in words}
    operators = set(re.findall(r"(\w+) operation", said))
    with contextlib.suppress(Exception):  # the note only adds to a message
        import onnx

        nodes = onnx.load(path, load_external_data=False).graph.node
        named = [one for one in nodes if words.intersection({one.name, *one.output} - {""})]
        for node in named or [one for one in nodes if one.op_type in operators]:
            return f" ({node.op_type}, node {node.name or node.output[0]!r})"
    return ""


class _Plan:
    """Plan on a device."""

    def __init__(
        self,
        trt: Any,
        path: Path,
        artifact: Artifact,
        device: Device,
        kept: KeptKernels | None = None,
    ) -> None:
        self._trt, self._device, self._kept = trt, device, kept
        self._specs = {spec.name: spec for spec in artifact.outputs}
        self._memory, self._shared = contextlib.ExitStack(), 0
        log = _log(trt)
        log.clear()
        self._runtime = trt.Runtime(log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(content(artifact, path))
        if self._engine is None:
            said = _said(log.errors[-1] if log.errors else "it gave no reason", artifact.path)
            raise CandidateError(f"TensorRT can't load the plan: {said}")

    def execution(self, inputs: Tensors) -> _PlanExecution:
        context = self._context()
        if context is None:
            raise CandidateError("this device has too little memory for TensorRT's plan")
        context.set_optimization_profile_async(0, self._device.stream)
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise CandidateError(f"the plan doesn't take {name!r} of sizes {array.shape}")
        if missing := context.infer_shapes():
            raise CandidateError(f"TensorRT can't determine the sizes of {missing[0]!r} beforehand")
        outputs = {}
        for name, spec in self._specs.items():
            sizes = tuple(context.get_tensor_shape(name))
            if -1 in sizes:
                raise CandidateError(f"TensorRT can't determine the sizes of {name!r} beforehand")
            outputs[name] = (sizes, spec.dtype)
        context.set_device_memory(self._shared_memory(), self._engine.device_memory_size_v2)
        return _PlanExecution(context, outputs, self._device.stream)

    def _context(self) -> Any:
        """Return a new context without memory, with kernels for the request's sizes from the start.

        By default, TensorRT for RTX compiles such kernels in the background during the first runs.
        A graph captured meanwhile would keep the slower kernels, if it could be captured at all.
        """
        without_memory = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return self._engine.create_execution_context(without_memory)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(without_memory)
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if self._kept is not None:
            self._kept.attach(config)
        return self._engine.create_execution_context(config)

    def _shared_memory(self) -> int:
        """Return the address of the memory that all contexts compute in, one after another.

        They run on one stream, so no two use it at the same time. It holds what the largest batch
        takes, and stays where it is until the plan is closed, since captured graphs refer to it.
        The library wants it aligned to 256 bytes, as all memory of CUDA's runtime is.

        Raises:
            CandidateError: the device has too little memory for the largest batch.
        """
        size_bytes = self._engine.device_memory_size_v2
        if size_bytes and not self._shared:
            self._shared = self._device.allocate(size_bytes, self._memory)
        return self._shared

    def properties(self) -> Mapping[str, str]:
        engine = self._engine
        return {
            "engine_layers": str(engine.num_layers),
            "device_memory_bytes": str(engine.device_memory_size_v2),
        }

    def close(self) -> None:
        self._engine = self._runtime = None
        self._memory.close()  # after the contexts, which the session freed, and the engine


class _PlanExecution:
    """Execution context of a plan."""

    lasting = False

    def __init__(
        self, context: Any, outputs: Mapping[str, tuple[tuple[int, ...], str]], stream: int
    ) -> None:
        self._context, self._stream = context, stream
        self.outputs = outputs

    def bind(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        if not self._context.set_tensor_address(name, address):
            raise CandidateError(f"the plan has no tensor {name!r}")

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise CandidateError("TensorRT failed to enqueue the plan")
