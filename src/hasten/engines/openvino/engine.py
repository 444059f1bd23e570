"""Engine for OpenVINO on the CPU."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from hasten.core.model import Format, Model, libraries
from hasten.core.records import from_record, source_digest, to_record
from hasten.core.target import Target
from hasten.core.telemetry import import_quietly, telemetry_off
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import counted, listed
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.cache_keys import cache_key
from hasten.engines.checked import operators, private
from hasten.engines.compile_cache import CompileCache
from hasten.engines.failures import failed
from hasten.engines.newer import every_node, newer_attribute
from hasten.engines.openvino.ranges import Ranges
from hasten.engines.openvino.risks import Risks, risks_of
from hasten.engines.openvino.runtime import new_core
from hasten.engines.openvino.unknown import inputs_with_nan
from hasten.engines.openvino.watched import MARK, rules, seen, watch
from hasten.errors import BeyondRange, CandidateError, IntegrityError

if TYPE_CHECKING:
    from hasten.engines.layers import LayerTime
    from hasten.engines.openvino.wholes import Wholes

_PROPERTIES = {
    "precision_hint": "INFERENCE_PRECISION_HINT",
    "threads": "INFERENCE_NUM_THREADS",
    "streams": "NUM_STREAMS",
    "pinning": "ENABLE_CPU_PINNING",
    "dynamic_quantization_group_size": "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "devices": "EXECUTION_DEVICES",
}
"""Names of properties in sessions and in OpenVINO; a plugin may know only some."""
_NEWEST = 24
"""Newest operator set whose attributes the converter reads; it passes over later ones without a word."""
_MOST_SHAPES = 1 << 14
"""Shapes of requests that a request remembers as answered."""
_TAKING = """Broadcast Concatenation MatMul Output Pad Reshape ScatterElementsUpdate ScatterNDUpdate ScatterUpdate
    ShapeOf"""
_TAKING_EMPTY = frozenset(_TAKING.split())
"""Executed operations that make what they should of an empty tensor."""
_PASSED_OVER = "OpenVINO may answer with the last request's numbers where"
"""Begin of the messages on operations that the plugin passes over."""
_Shapes = tuple[tuple[int, ...], ...]
_WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}
"""Setting with which an exported graph refers to the weights of the artifact instead of copying them."""
_REFUSED = b"OpenVINO refuses what it exports of this model"
"""Content of an entry that is kept so that nothing is exported and imported in vain."""
_FAST_WITH = {"f16": {"amx_fp16"}, "bf16": {"avx512_bf16", "amx_bf16"}}
"""Instruction sets with which a precision is faster than f32. avx512_fp16 alone isn't among them,
since oneDNN computes in f32 there."""


@dataclass(frozen=True)
class OpenVino(Engine):
    """OpenVINO's CPU plugin with one stream, set for latency.

    Attributes:
        precision: Precision of everything that isn't quantized. It is pinned, since the runtime's
            default is bf16 on every processor that has it.
        threads: Number of threads that share an operator; None for all that the target has.
        pinning: Whether threads are bound to processors while they work, as is the runtime's
            default. The runtime binds to the first processors that it saw when it was loaded: two
            one-thread sessions in two processes share one processor and halve their speed, and a
            mask set later is overruled. So pinning is off here, and on only where the process has
            all processors.
        narrows: Whether it takes models that compute in float64, which the plugin computes in `precision`.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino"})
    families: ClassVar[frozenset[str]] = frozenset({"host"})
    distributions: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "openvino"
    hurry: ClassVar[int] = 1
    settles: ClassVar[bool] = True
    reshapes: ClassVar[bool] = True
    copied_into: ClassVar[tuple[str, ...] | None] = ("OpenVINO's input buffers",)

    precision: Literal["f32", "f16", "bf16"] = "f32"
    threads: int | None = None
    pinning: bool = False
    narrows: bool = False

    @property
    def plugin(self) -> str:
        """Name of the device in OpenVINO."""
        return "CPU"

    @property
    def exact(self) -> bool:
        """Whether the precision is f32, and no model of float64 is computed in it."""
        return self.precision == "f32" and not self.narrows

    @property
    def keeps_compiled(self) -> bool:
        """True: the graph as the plugin transformed it."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield f32, and f16 and bf16 where the processor is faster in them."""
        yield cls()
        if _FAST_WITH["f16"] & set(target.isa):
            yield cls("f16")
        if _FAST_WITH["bf16"] & set(target.isa):
            yield cls("bf16")

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return the engine set to a number of threads, bound only if nothing else runs."""
        return replace(self, threads=threads, pinning=self.pinning and alone)

    def substitute(self, refused: str) -> Engine | None:
        """Return the engine that rounds float64 to float32, if this one refused to."""
        from hasten.engines.openvino.numbers import REFUSES

        return replace(self, narrows=True) if REFUSES in refused else None

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield a single thread, which is faster for small models; and bound threads, where
        there are as many as processors."""
        if target.threads > 1 and self.threads is None:
            yield replace(self, threads=1)
            if target.threads == len(target.cpus) and not self.pinning:
                yield replace(self, pinning=True)

    @classmethod
    def version(cls) -> str:
        """Return OpenVINO's version.

        Raises:
            InputError: it isn't installed.
        """
        try:
            return str(import_quietly("openvino").__version__)
        except ImportError as error:
            raise cls.missing("OpenVINO", error) from error

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Convert the model to IR, keeping its weights, and check that it can be compiled.

        Open shapes stay open on disk.

        Raises:
            CandidateError: the model can't be converted or compiled; the message names the operator
                and node.
            NotCovered: these settings are exact, and the model computes in float64; or its whole numbers may come
                out otherwise, or a request could name places beyond a tensor.
        """
        if model.format == "openvino":
            artifact = place(model, workdir)
            _check_values(self._read(artifact)[1])
        else:
            artifact = converted(model, workdir, keeps_doubles=self.exact)
        self._compile(artifact, target)
        return artifact

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Compile the IR for the shapes of the certified request; leaving the context frees it.

        The first request of another shape makes it compile once more.

        Raises:
            CandidateError: the IR can't be compiled.
        """
        compile_ = partial(self._compile, artifact, target)
        wholes = partial(self._wholes, artifact)
        with (
            private(artifact) as copy,
            self._session(artifact, compile_, wholes, copy.path) as session,
        ):
            yield session

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Open an artifact as `open` does, and keep the compiled graphs without their weights.

        OpenVINO still makes its kernels and lays out the weights, which it reads from the artifact.

        Raises:
            CandidateError: the IR can't be compiled.
        """
        if not self.keeps_compiled or artifact.custom_ops:
            with self.open(artifact, target) as session:
                yield session
            return
        compile_ = partial(self._recall, artifact, target, compiled)
        wholes = partial(self._recall_wholes, artifact, target, compiled)
        with (
            private(artifact) as copy,
            self._session(artifact, compile_, wholes, copy.path) as session,
        ):
            yield session

    @contextmanager
    def _session(
        self,
        artifact: Artifact,
        compile_: Callable[[Sequence[TensorSpec]], Any],
        wholes: Callable[[], Wholes],
        graph: Path,
    ) -> Iterator[Session]:
        whole = any(np.dtype(spec.dtype).kind in "iu" for spec in artifact.inputs)
        session = OpenVinoSession(
            artifact,
            compile_(artifact.request),
            compile_,
            wholes() if whole else None,
            self._with_nan(artifact, graph),
            risks=risks_of(graph),
        )
        try:
            yield session
        finally:
            session.close()

    def _with_nan(self, artifact: Artifact, graph: Path) -> frozenset[str]:
        if all(np.dtype(spec.dtype).kind != "f" for spec in artifact.inputs):
            return frozenset()
        return inputs_with_nan(graph, lambda: self._read(artifact)[1])

    def _wholes(self, artifact: Artifact) -> Wholes:
        from hasten.engines.openvino.wholes import Wholes

        return Wholes.of(self._read(artifact)[1])

    def _recall_wholes(self, artifact: Artifact, target: Target, compiled: CompileCache) -> Wholes:
        """Return a graph's whole numbers from the cache, or read the graph for them and keep them.

        Reading the graph takes a tenth or more of an opening from the cache. The key has the code that finds the numbers,
        whose rules may change.
        """
        from hasten.engines.openvino.wholes import Wholes

        by = source_digest(Wholes)
        if by is None:
            return self._wholes(artifact)
        key = cache_key(compiled, self, artifact, target, f"whole numbers by {by}")
        with compiled.entry(key) as entry:
            if entry is not None:
                compiled.passed_over()  # compiled graphs alone count as found
                with contextlib.suppress(ValueError, IntegrityError):
                    return from_record(Wholes, json.loads(entry.content))
        made = self._wholes(artifact)
        compiled.put(key, json.dumps(to_record(made)).encode())
        return made

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Answer requests with the runtime's counters on; see `layers.profiled`."""
        from hasten.engines.openvino.layers import operations, profiled

        usual = all(r[spec.name].shape == spec.sizes for r in requests for spec in artifact.request)
        request = artifact.request if usual else ()

        def opened() -> tuple[Any, Callable[[Tensors], Any]]:
            compiled = self._compile(artifact, target, request, more={"PERF_COUNT": True})
            with private(artifact) as copy:
                known, risks = self._with_nan(artifact, copy.path), risks_of(copy.path)
                session = OpenVinoSession(artifact, compiled, with_nan=known, risks=risks)
            return compiled, session.run

        return profiled(opened, operations(self._read(artifact)[1]), requests)

    def _compile(
        self,
        artifact: Artifact,
        target: Target,
        request: Sequence[TensorSpec] = (),
        *,
        more: Mapping[str, Any] = {},
    ) -> Any:
        """Compile for one request's shapes or, without a request, for all that the model takes."""
        settings = {**self._settings(target), **more}
        core, graph = self._read(artifact)
        if (settled := _settled(graph, request)) is not graph:
            with contextlib.suppress(Exception):  # with open shapes it is known to compile
                watch(settled)
                return core.compile_model(settled, self.plugin, settings)
        try:
            watch(graph)
            return core.compile_model(graph, self.plugin, settings)
        except Exception as error:
            raise failed("OpenVINO can't compile the model", error) from error

    def _recall(
        self,
        artifact: Artifact,
        target: Target,
        compiled: CompileCache,
        request: Sequence[TensorSpec],
    ) -> Any:
        """Return a compiled graph from the cache, or compile it as `_compile` does and keep it.

        Of some models, such as YOLOv3-tiny, OpenVINO refuses what it exported itself. Where it has done so twice, that
        is kept instead, and the model is compiled each time.
        """
        shapes = "settled" if request else "open"
        key = cache_key(compiled, self, artifact, target, f"{shapes}, watched by {rules()}")
        with compiled.entry(key) as entry:
            in_vain = entry is not None and entry.content == _REFUSED
            if entry is not None and not in_vain:
                made = self._imported(artifact, target, entry.content)
                if made is not None:
                    return made
        if in_vain:
            compiled.passed_over()
            return self._compile(artifact, target, request)
        if entry is not None:
            compiled.drop(key)
        made = self._compile(artifact, target, request, more=_WITHOUT_WEIGHTS)
        with contextlib.suppress(Exception):  # a graph that can't be written is compiled each time
            graph = made.export_model().getvalue()
            if entry is not None and self._imported(artifact, target, graph) is None:
                graph = _REFUSED
            compiled.put(key, graph)
        return made

    def _imported(self, artifact: Artifact, target: Target, graph: bytes) -> Any:
        """Return a graph that an earlier process exported, compiled; None if it is refused."""
        settings = {**self._settings(target), **_WITHOUT_WEIGHTS}
        core = new_core()
        with private(artifact) as copy:
            weights = copy.path.with_suffix(".bin")
            if weights in copy.files:
                settings["WEIGHTS_PATH"] = str(weights)
            try:
                return core.import_model(io.BytesIO(graph), self.plugin, settings)
            except Exception:  # it is known to compile
                return None

    def _read(self, artifact: Artifact) -> tuple[Any, Any]:
        """Return a runtime that knows the model's custom operators, and the model's graph."""
        core = new_core()
        for library in operators(artifact, "create_extensions"):
            try:
                core.add_extension(str(library))
            except Exception as error:
                raise failed(f"OpenVINO can't load {library.name}", error) from error
        with private(artifact) as copy:
            try:
                return core, core.read_model(copy.path)
            except Exception as error:
                raise failed("OpenVINO can't compile the model", error) from error

    def _settings(self, target: Target) -> dict[str, Any]:
        threads = self.threads or target.threads
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "ENABLE_CPU_PINNING": self.pinning and threads == len(target.cpus),
        }
        if self.precision == "f32":
            # Without this, activations before compressed weights would be quantized dynamically.
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        return settings

    def _narrowing(self) -> str:
        return "float64 rounded to float32" if self.narrows else ""

    def words(self) -> str:
        return listed(
            "" if self.precision == "f32" else self.precision,
            self._narrowing(),
            "OpenVINO",
            counted(self.threads or 0, "thread"),
            "bound threads" if self.pinning else "",
        )


def converted(model: Model, workdir: Path, *, keeps_doubles: bool = False) -> Artifact:
    """Write an ONNX model as IR by the converter, which gives a smaller graph than the reader.

    Args:
        model: Model to convert.
        workdir: Folder to write to.
        keeps_doubles: Whether to refuse a model that computes in float64, since plugins round that.

    Raises:
        CandidateError: it can't be converted.
        NotCovered: it computes in float64, with whole numbers that plugins hold in another type or that are too
            large for them, reads from places that a request names and nothing checks, or has windows that lie
            elsewhere at some sizes.
    """
    from hasten.engines.openvino.numbers import check_doubles, check_windows
    from hasten.engines.openvino.ties import keep_order

    ov = import_quietly("openvino")
    extensions = [str(library) for library in libraries(model.custom_ops, "create_extensions")]
    path = workdir / f"{model.path.stem}.xml"
    check_attributes(model.path)
    try:
        with telemetry_off():
            # In a list twice, since it splits other paths at commas.
            converted = ov.convert_model([[model.path]], extension=extensions or None)
        _name_ports(converted, model)
        if keeps_doubles:
            check_doubles(converted)
        check_windows(converted)
        _check_values(converted)
        keep_order(converted)
        ov.save_model(converted, path, compress_to_fp16=False)
    except CandidateError:
        raise
    except Exception as error:
        raise failed("OpenVINO can't convert the model", error, model.path) from error
    return Artifact(
        path=path,
        inputs=model.inputs,
        outputs=model.outputs,
        request=model.request,
        files=(path.with_suffix(".bin"),),
        custom_ops=model.custom_ops,
    )


def _check_values(graph: Any) -> None:
    """Refuse a graph that a plugin wouldn't compute as the model says for some values of a request.

    Raises:
        NotCovered: it is such; the message names the operation.
    """
    from hasten.engines.openvino.bodies import check_bodies
    from hasten.engines.openvino.numbers import check_places, check_whole_numbers
    from hasten.engines.openvino.wholes import check_wholes

    check_places(graph)
    check_bodies(graph)
    check_whole_numbers(graph)
    check_wholes(graph)


def check_attributes(path: Path) -> None:
    """Refuse attributes of operators that the converter would pass over, such as the windows of Attention.

    Raises:
        CandidateError: the ONNX model has such an attribute; the message names it.
    """
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # the converter says what is wrong with the file
        return
    if all(one.version <= _NEWEST for one in proto.opset_import if one.domain in ("", "ai.onnx")):
        return
    for node in every_node(proto):
        newer = newer_attribute(node, _NEWEST)
        if newer is not None:
            raise CandidateError(
                f"OpenVINO's converter passes over the attribute {newer!r} of {node.op_type} (node {node.name!r}), "
                f"which came after operator set {_NEWEST}"
            )


def _name_ports(converted: Any, model: Model) -> None:
    """Check that the graph has the model's inputs and no others, and give its ports the model's names."""
    wanted = {spec.name for spec in model.inputs}
    have = {name for port in converted.inputs for name in port.names}
    nameless = [port for port in converted.inputs if not wanted & port.names]
    lost = [spec.name for spec in model.inputs if spec.name not in have]
    if len(nameless) > len(lost):
        raise CandidateError(
            f"OpenVINO's converter adds the input {nameless[0].any_name!r}, as where an output is also an input"
        )
    if (
        len(lost) == len(nameless) == 1
    ):  # a first operator that does nothing takes the input's name away
        nameless[0].add_names({lost.pop()})
    if lost:
        raise CandidateError(f"OpenVINO's converter dropped the input {lost[0]!r}")
    for port, spec in zip(converted.outputs, model.outputs, strict=True):
        port.add_names({spec.name})


def _settled(graph: Any, request: Sequence[TensorSpec]) -> Any:
    """Return the graph for one request's shapes, if they can be propagated through it.

    Then shapes needn't be computed again on each request (5% or so of a small int8 model's time),
    and operators are fused that open shapes would keep apart.
    """
    if not request:
        return graph
    settled = graph.clone()
    try:
        settled.reshape({spec.name: spec.sizes for spec in request})
    except Exception:
        return graph
    return settled


class OpenVinoSession(Session):
    """Session of an infer request, with a second one for requests of other shapes.

    Args:
        artifact: Artifact that was opened.
        compiled: Model, compiled for settled shapes or for open ones.
        compile_: Function that compiles the model for one request's shapes or, without a request, for all that it
            takes; None if nothing but `compiled` is to be used.
        wholes: Calculations with whole numbers in the graph; None if it takes none.
        with_nan: Names of inputs that may have NaN, since the model looks for it itself.
        risks: Risks of the graph.
    """

    def __init__(
        self,
        artifact: Artifact,
        compiled: Any,
        compile_: Callable[[Sequence[TensorSpec]], Any] | None = None,
        wholes: Wholes | None = None,
        with_nan: frozenset[str] = frozenset(),
        *,
        risks: Risks,
    ) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._names = [spec.name for spec in artifact.outputs]
        static = all(spec.static for spec in artifact.inputs)
        settled = compile_ and not static and _is_static(compiled.inputs)
        self._sizes = [(s.name, s.sizes) for s in artifact.request] if settled else []
        self._request, self._compile = artifact.request, compile_
        self._compiled = compiled
        self._ranges = partial(Ranges, wholes.bounds if wholes is not None else None, with_nan)
        self._risks = risks
        self._first: _Request | None = self._requested(compiled)
        self._other: _Request | None = None

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            BeyondRange: an input has a number with which the runtime may calculate wrong, or NaN; or it fails with
                this request.
            CandidateError: the runtime failed.
        """
        request = self._first
        if request is None:
            raise CandidateError("the session is closed: open the artifact again")
        try:
            for name, sizes in self._sizes:
                if inputs[name].shape != sizes:
                    request = self._other or self._opened()
                    break
            return dict(zip(self._names, request.infer(inputs), strict=True))
        except CandidateError:
            if request.failed:
                self._renew(request)
            raise
        except Exception as error:
            if missing := [spec.name for spec in self.inputs if spec.name not in inputs]:
                raise CandidateError(f"OpenVINO didn't get the input {missing[0]!r}") from error
            raise failed("OpenVINO failed", error) from error

    def _renew(self, request: _Request) -> None:
        """Replace a request of open shapes that failed: the plugin may then refuse or mistake all later ones, too."""
        if request is self._other:
            self._other = None
        elif self._compile is not None and request.open:
            self._compiled = self._compile(self._request)
            self._first = self._requested(self._compiled)

    def _opened(self) -> _Request:
        assert self._compile is not None
        self._other = self._requested(self._compile(()))
        return self._other

    def _requested(self, compiled: Any) -> _Request:
        return _Request(compiled, self.inputs, self._ranges(), self._risks)

    def properties(self) -> Mapping[str, str]:
        """Settings of the plugin, and how many operators run in which precision."""
        found = {}
        with contextlib.suppress(Exception):  # some plugins don't show the compiled model
            executed = Counter(
                str(node.rt_info["runtimePrecision"].value)
                for node in self._compiled.get_runtime_model().get_ordered_ops()
                if "runtimePrecision" in node.rt_info
            )
            found["executed_precisions"] = ", ".join(f"{n} {k}" for k, n in executed.most_common())
        known = set(self._compiled.get_property("SUPPORTED_PROPERTIES"))
        for name, key in _PROPERTIES.items():
            if key in known:
                value = self._compiled.get_property(key)
                found[name] = value.to_string() if hasattr(value, "to_string") else str(value)
        return found

    def close(self) -> None:
        """Free the requests, the compiled models and the buffers."""
        self._first = self._other = self._compiled = None


class _Request:
    """Infer request over its own input buffers.

    Filling a tensor that was set once costs 9 us a call; `infer([x])` costs 95 us.

    On one thread, `infer` of OpenVINO 2026.4 doesn't raise where the plugin fails: it returns the last request's answers,
    and repeats the failed request before the next one. `start_async` raises, and takes some 15 to 120 us longer. So it
    takes the first request of each shape. Where shapes alone decide whether the plugin fails, `infer` takes later ones.

    Args:
        compiled: Compiled model.
        inputs: Specs of its inputs.
        ranges: Guard of their numbers.
        risks: Risks of its graph.

    Attributes:
        failed: Whether the plugin failed.
        open: Whether some shapes follow from a request's, or from its numbers.
    """

    def __init__(
        self, compiled: Any, inputs: Sequence[TensorSpec], ranges: Ranges, risks: Risks
    ) -> None:
        self.failed, self._fails = False, risks.fails
        self.open = not _is_static((*compiled.inputs, *compiled.outputs))
        self.open = self.open or (risks.fails and not _settles_all(compiled))
        self._empties, self._sums = risks.empties and self.open, risks.sums
        self._raises = _threads(compiled) > 1
        self._order = [(spec.name, _port(compiled.inputs, spec.name)) for spec in inputs]
        self._compiled, self._request = compiled, compiled.create_infer_request()
        self._buffers: dict[str, Array] = {}
        self._shapes: _Shapes = ()
        self._answered = set[_Shapes]()
        """Shapes of requests at which the plugin answered one and passed over no operation without numbers."""
        self._known = False
        """Whether the shapes of the buffers are among them."""
        self._seen = seen(compiled)
        """Words for each of the last outputs, which tell of a request; mostly none."""
        self._empty: str | None = None
        self._ranges = ranges

    def infer(self, inputs: Tensors) -> tuple[Array, ...]:
        """Return copies of the outputs, in the model's order."""
        for name, port in self._order:
            given, buffer = inputs[name], self._buffers.get(name)
            if buffer is None or buffer.shape != given.shape:
                buffer = self._allocate(name, port, given)
            buffer[...] = given
        self._ranges.check()
        answers: tuple[Array, ...]
        try:
            if self._raises or (self._known and not self._fails):
                found = self._request.infer()
            else:
                self._request.start_async()
                self._request.wait()
                found = self._request.results
        except Exception as error:
            if not (self._fails or self.open):
                raise
            self.failed = True
            raise BeyondRange(str(failed("OpenVINO can't answer this request", error))) from error
        answers = found.to_tuple()
        told: tuple[Array, ...] = ()
        if self._seen:
            count = len(answers) - len(self._seen)
            answers, told = answers[:count], answers[count:]
        if self._empty is not None:
            if any(answer.size for answer in answers):
                raise self._stale(self._empty)
            return answers
        if told:
            self._look(told)
        if not self._known:
            self._learn()
        return answers

    def _learn(self) -> None:
        """Remember the shapes of a request that was answered.

        Raises:
            BeyondRange: an operation inside the graph got an empty tensor.
        """
        if self._empties and (reader := _passed_over(self._compiled, self._sums)) is not None:
            shapes = (f"{name!r}: {list(array.shape)}" for name, array in self._buffers.items())
            raise BeyondRange(
                f"{_PASSED_OVER} an operation gets an empty tensor, as {reader} does for inputs of the shapes "
                f"{listed(*shapes)}: give longer inputs, or use another engine"
            )
        if len(self._answered) == _MOST_SHAPES:
            self._answered.clear()
        self._answered.add(self._shapes)
        self._known = True

    def _look(self, told: Sequence[Array]) -> None:
        """Look at what the last outputs told of a request.

        Raises:
            BeyondRange: an operation inside the graph got an empty tensor, a loop had no steps, or a Gather looked beyond
                its tensor.
        """
        for one, array in zip(self._seen, told, strict=True):
            if array.all():
                continue
            if not one.tells_shape:
                raise self._untrue(one.words)
            if (reader := _passed_over(self._compiled, self._sums)) is not None:
                raise BeyondRange(
                    f"{_PASSED_OVER} an operation gets an empty tensor, as {reader} does since {one.words} gives nothing "
                    "for the numbers of this request: give others, or use another engine"
                )

    def _untrue(self, words: str) -> BeyondRange:
        """Return the error for a loop without steps, or for a Gather that looks beyond its tensor."""
        if words.startswith("Loop"):
            return BeyondRange(
                f"{_PASSED_OVER} a loop has no steps, as {words} has for this request: give longer inputs, or use "
                "another engine"
            )
        return BeyondRange(
            f"OpenVINO reads zeros beyond a tensor, as {words} does for this request: a number in it is out of range, or it "
            "is too long or too short: give another, or use another engine"
        )

    def _stale(self, name: str) -> BeyondRange:
        """Return the error for numbers that are made of an empty input: the plugin passes over nodes that get none.

        What such a node answered before then stays in place, as of a convolution, a recurrent layer or a loop.
        """
        return BeyondRange(
            f"the input {name!r} has the shape {list(self._buffers[name].shape)}, and OpenVINO may answer it with the "
            "last request's numbers: give at least one number along each axis"
        )

    def _allocate(self, name: str, port: int, like: Array) -> Array:
        """Give the request a new input buffer of another shape."""
        ov = import_quietly("openvino")

        buffer = np.empty(like.shape, like.dtype)
        self._request.set_input_tensor(port, ov.Tensor(buffer, shared_memory=True))
        self._buffers[name] = buffer
        self._empty = next((one for one, array in self._buffers.items() if not array.size), None)
        self._shapes = tuple(array.shape for array in self._buffers.values())
        self._known = self._shapes in self._answered
        self._ranges.watch(name, buffer)
        return buffer


def _is_static(ports: Sequence[Any]) -> bool:
    return all(port.get_partial_shape().is_static for port in ports)


def _settles_all(compiled: Any) -> bool:
    """Whether all shapes in a compiled model are settled, also between its operations; asked before its first request."""
    return all(_is_static(operation.outputs()) for operation in _executed(compiled))


def _passed_over(compiled: Any, sums: frozenset[str]) -> str | None:
    """Return words for an operation that should have made numbers of an empty tensor; None if there is none.

    The plugin passes over most such operations, and what they answered before stays in place. Constants may be empty, as in
    place of a bias.

    Args:
        compiled: Compiled model, which has answered the request.
        sums: Names of reductions that are right about an empty tensor.
    """
    fixed = set[str]()
    for operation in _executed(compiled):
        sources = {port.get_source_output().get_node().get_name() for port in operation.inputs()}
        if operation.get_type_name() != "Parameter" and sources <= fixed:
            fixed.add(operation.get_name())
            continue
        empty = [port for port in operation.outputs() if _is_empty(port)]
        readers = (reader.get_node() for port in empty for reader in port.get_target_inputs())
        for node in readers:
            kind, name = _layer(node), node.get_friendly_name()
            takes = kind in _TAKING_EMPTY or (kind == "Reduce" and name in sums)
            takes = takes or name.startswith(MARK)
            if not takes and not all(_is_empty(port) for port in node.outputs()):
                return f"{kind} (node {name!r})"
    return None


def _is_empty(port: Any) -> bool:
    shape = port.get_partial_shape()
    return bool(shape.is_static and 0 in shape.to_shape())


def _layer(operation: Any) -> str:
    """Return the type of an executed operation, if it is said."""
    said = operation.get_rt_info()
    return str(said["layerType"].value) if "layerType" in said else "an operation"


def _executed(compiled: Any) -> Sequence[Any]:
    """Return the operations of a compiled model, with the shapes of the last request if there was one.

    There are none if the plugin doesn't show them.
    """
    with contextlib.suppress(Exception):
        operations: Sequence[Any] = compiled.get_runtime_model().get_ordered_ops()
        return operations
    return ()


def _threads(compiled: Any) -> int:
    """Return how many threads the CPU plugin computes on; 0 for a plugin that doesn't say."""
    name = _PROPERTIES["threads"]
    known = name in compiled.get_property("SUPPORTED_PROPERTIES")
    return int(compiled.get_property(name)) if known else 0


def _port(ports: Sequence[Any], name: str) -> int:
    """Return the position of a named input."""
    for position, port in enumerate(ports):
        if name in port.names:
            return position
    raise CandidateError(f"the artifact has no input {name!r}")
