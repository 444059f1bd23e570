"""Engine that writes a model as C and compiles it where it is opened."""

from __future__ import annotations

import io
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from hasten.core.c_compiler import Compiler
from hasten.core.cache_folder import CacheFolder
from hasten.core.model import Format, Model
from hasten.core.records import digest
from hasten.core.scratch import scratch
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import counted, listed, numbers_in_words
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.cache_keys import cache_key
from hasten.engines.checked import private
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.constants import Constants
from hasten.engines.compiled.granted import granted
from hasten.engines.compiled.kept import (
    code,
    compiler_facts,
    library_key,
    library_of,
    prepared,
    shared_tables,
)
from hasten.engines.compiled.library import Library
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.source import Source, shared_operations, write
from hasten.engines.compiled.tensors import wrong_size
from hasten.errors import CandidateError, InputError, IntegrityError, NotCovered, named

if TYPE_CHECKING:
    from hasten.engines.layers import LayerTime
    from hasten.engines.weights import Stretch

_PLAN, _WEIGHTS = "plan.json", "plan.bin"
_SMALL_WORK = 30_000_000
"""Multiplications that take some milliseconds."""
_SCRATCH_BYTES = 256 << 20
"""Largest number of bytes that the processes of runs keep for each other, among temporary files."""
_UNTIMED = 2
"""Requests that are answered before the ones that are timed."""
_PRECISIONS = {"float32": "f32", "float64": "f64", "uint8": "u8", "int64": "i64", "int32": "i32"}
_log = logging.getLogger("hasten.compiled")


@dataclass(frozen=True)
class CompiledC(Engine):
    """The model's own C, with its shapes as constants.

    `build` writes a plan and weights, which are data. `open` writes C of them and compiles that, unless
    the cache has it.

    Attributes:
        most_work: Largest number of multiplications with floats for one row of a model that it
            takes. With more of them a runtime's own kernels are faster than what a compiler makes
            of plain C. A quantized network may have as many with floats as with bytes even so, such as
            layers that stay in float for their accuracy: whether it is faster is found by timing.
        threads: Number of threads that share an answer, where its operations are large enough; at most 32
            do.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino"})
    families: ClassVar[frozenset[str]] = frozenset({"host"})
    extra: ClassVar[str] = "compiler"
    program: ClassVar[str] = "a C compiler"
    settles: ClassVar[bool] = True
    builds_settled: ClassVar[bool] = True
    sums_exactly: ClassVar[bool] = True
    sums_words: ClassVar[bool] = True
    reads_late: ClassVar[bool] = True
    hurry: ClassVar[int] = 0
    copied_into: ClassVar[tuple[str, ...] | None] = ()

    most_work: int = _SMALL_WORK
    threads: int = 1

    @property
    def exact(self) -> bool:
        """True: the arithmetic is the model's own, in its own precision."""
        return True

    @property
    def keeps_compiled(self) -> bool:
        """True: the shared object."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield one thread, and all that the target has."""
        yield cls()
        if target.threads > 1:
            yield cls(threads=target.threads)

    @classmethod
    def prefers_narrow(cls, target: Target) -> bool:
        """Whether products of bytes are summed in 16 bits where that provably holds: with AVX2 alone."""
        from hasten.engines.compiled.writer import byte_widths, spelled_dots

        return byte_widths(target.isa)[0] == 32 and not spelled_dots(target.isa)

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return the engine set to a number of threads."""
        return replace(self, threads=threads)

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield the other numbers of threads that are worth trying: one, and all."""
        for threads in {1, target.threads} - {self.threads}:
            yield replace(self, threads=threads)

    @classmethod
    def version(cls) -> str:
        """Return the compiler's version.

        Raises:
            InputError: there is no compiler.
        """
        return Compiler.find().version

    @classmethod
    def tools(cls) -> Mapping[str, str]:
        """Return the version of the compiler, on which the last bits of answers depend."""
        try:
            return {"C compiler": cls.version()}
        except InputError:
            return {}

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write the model's plan and weights.

        Raises:
            NotCovered: an operator isn't covered (the message names it and its node), or there is too
                little to calculate for several threads.
            CandidateError: the model can't be read.
        """
        from hasten.engines.compiled.values import REFUSES

        if model.custom_ops:
            raise NotCovered(f"{REFUSES} custom operators")
        plan, weights = self._lowered(model)
        if self.threads > 1 and not any(shared_operations(plan)):
            raise NotCovered(
                f"there is too little to calculate for {self.threads} threads: it would be the "
                "same as on one"
            )
        path, beside = workdir / _PLAN, workdir / _WEIGHTS
        try:
            plan.check(len(weights))
        except IntegrityError as error:
            raise NotCovered(f"the compiled engine can't take the model: {error}") from error
        plan.write(path)
        beside.write_bytes(weights)
        return Artifact(
            path=path,
            files=(beside,),
            inputs=_inputs(model, plan),
            outputs=_outputs(model, plan),
            request=one_request(model),
        )

    def _lowered(self, model: Model) -> tuple[Plan, bytes]:
        """Make the plan of an ONNX file or an IR."""
        from hasten.engines.compiled.lowering import lower, lower_graph

        request = one_request(model)
        constants = model.constant_inputs
        if model.format == "onnx":
            return lower(model.path, request, model.outputs, self.most_work, constants)
        from hasten.engines.compiled.ir.reader import as_onnx

        proto = as_onnx(model.path, request, model.outputs)
        return lower_graph(proto, request, model.outputs, self.most_work, constants)

    def substitute(self, refused: str) -> Engine | None:
        """Return the engine that leaves the rest to ONNX Runtime, if that is installed and an operator was refused."""
        from hasten.engines.compiled.values import REFUSES
        from hasten.engines.split.engine import Split

        if not refused.startswith(REFUSES):
            return None
        try:
            Split.version()
        except InputError:
            return None
        return Split(self)

    def reference(self) -> Engine | None:
        """Return the engine that calculates the same plan in numpy."""
        from hasten.engines.compiled.integers import Integers

        return Integers(self.most_work)

    def same_everywhere(self, artifact: Artifact) -> bool:
        """Whether every step of the plan gives the same bits everywhere; False if it can't be read."""
        try:
            with private(artifact) as copy:
                return _plan(copy).same_bits
        except (CandidateError, IntegrityError, InputError):
            return False

    def constant_inputs(self, artifact: Artifact) -> Mapping[str, tuple[int, ...]]:
        """Return the only numbers that inputs take, by name; nothing if the plan can't be read."""
        try:
            with private(artifact) as copy:
                return Constants(copy, _plan(copy)).numbers
        except (CandidateError, IntegrityError, InputError):
            return {}

    def stretches(self, artifact: Artifact) -> Iterator[Stretch]:
        """Yield where the constants of the plan lie in the file of weights."""
        return tensors_of(artifact)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Write C, compile it and load it, unless another process of this run did so before.

        A run opens a candidate in several processes; no figure depends on how long the compiler took.

        Raises:
            CandidateError: the plan is damaged, there is no compiler, or it failed.
        """
        kept = CompileCache(CacheFolder(scratch(), _SCRATCH_BYTES))
        with self.open_cached(artifact, target, kept) as session:
            yield session

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Open as `open` does, and keep the shared object.

        Raises:
            CandidateError: the plan is damaged, there is no compiler, or it failed.
        """
        facts = compiler_facts()
        target = granted(target, facts.version)
        threads = min(self.threads, target.threads)
        what = digest({"code": code(), "compiler": facts})
        before_s = compiled.compiling_s
        key = cache_key(compiled, replace(self, threads=threads), artifact, target, what)

        def written() -> tuple[Plan, Source]:
            with private(artifact) as copy:
                plan = _plan(copy)
                with _weights(copy) as weights:
                    return plan, _source(plan, weights, target, threads)

        session = CompiledSession(artifact, *prepared(key, written, target, compiled), key)
        session.compiling_s = compiled.compiling_s - before_s
        with _open(session) as made:
            yield made

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Answer requests on one thread, by C that looks at the clock between its operations.

        Raises:
            CandidateError: the plan is damaged, there is no compiler, or it failed.
        """
        plan, weights = read(artifact)
        target = granted(target, compiler_facts().version)
        source = _source(plan, weights, target, timed=True)
        with tempfile.TemporaryDirectory(prefix="hasten-c-") as folder:
            cache = CompileCache(CacheFolder(Path(folder)))
            library = library_of(library_key(source, target), source, cache)
        times = library.times(len(plan.operations))
        found = []
        with _open(CompiledSession(artifact, plan, source, library)) as session:
            for _ in range(_UNTIMED):
                session.run(requests[0])
            for request in requests:
                times[:] = 0
                session.run(request)
                found.append(times.tolist())
        return tuple(
            _timed(plan, operation, tuple(each))
            for operation, *each in zip(plan.operations, *found, strict=True)
        )

    def words(self) -> str:
        return listed("compiled C", counted(self.threads, "thread") if self.threads > 1 else "")


class CompiledSession(Session):
    """Session of one shared object, which runs in the calling thread and those that it starts.

    Args:
        artifact: Artifact that was opened.
        plan: Its plan, with or without its steps.
        source: C text that was compiled, with its tables.
        library: The shared object.
        key: Key of the tables, which sessions of one process share; "" for tables of its own.
    """

    lends_calls = True

    def __init__(
        self, artifact: Artifact, plan: Plan, source: Source, library: Library, key: str = ""
    ) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = row_counts(artifact, plan)
        self.rows_apart = self.batch_sizes is None
        self._constants = Constants(artifact, plan)
        self._library = library
        self._closed = np.zeros(1, np.int32)
        self._tables = shared_tables(key, source.tables) if key else source.tables
        self._threads = source.threads
        self._team = library.team(source.threads) if source.threads > 1 else None
        self._arena_bytes = source.arena_bytes
        self._answer = library.answering(self._tables, self._arena_bytes, self._team)
        self._names = tuple(spec.name for spec in artifact.inputs)
        self._by_row = plan.by_row
        given = (*plan.inputs, *plan.outputs)
        self._tensors = tuple(plan.tensor(name) for name in given)
        self._made = tuple(
            (spec.name, shape[1:] if plan.by_row else shape, np.dtype(spec.dtype))
            for spec, shape in zip(artifact.outputs, plan.shapes, strict=True)
        )

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: an array is missing, or of another size.
            InputError: a constant input has other numbers.
            BeyondRange: the request names a place beyond a tensor.
        """
        try:
            given = [inputs[name] for name in self._names]
            if self._constants:
                self._constants.check(given)
            outputs = self._outputs(given)
            self._answer(*given, *outputs.values())
        except (KeyError, ValueError, BufferError, TypeError) as error:
            if isinstance(error, ValueError):  # it says of no array which one doesn't fit
                self._check_sizes(given, ())
            raise CandidateError(f"the compiled model failed: {named(error)}") from error
        return outputs

    def bind(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        """Return a call that answers from and to the same arrays each time; see `Session.bind`.

        Raises:
            CandidateError: the plan takes or gives arrays of another size.
        """
        given = [inputs[name] for name in self._names]
        taken = [outputs[name] for name, _, _ in self._made]
        rows = len(given[0]) if self._by_row else 1
        self._check_sizes(given, taken)  # C reads and writes as many, whatever a bundle says
        call = self._library.bound(
            self._tables, self._arena_bytes, given, taken, rows, self._closed, self._team
        )
        if not self._constants:
            return call
        check = self._constants.check

        def checked() -> None:
            check(given)
            call()

        return checked

    def close(self) -> None:
        """Refuse the calls of `bind` from now on, and end the threads."""
        self._closed[0] = 1
        if self._team is not None:
            self._team.dismiss()

    def _check_sizes(self, given: Sequence[Array], taken: Sequence[Array]) -> None:
        """Check that arrays have as many bytes as the plan reads and writes.

        Args:
            given: Arrays of the inputs.
            taken: Arrays for the outputs, or none.

        Raises:
            CandidateError: one has another number; the message names it.
        """
        rows = len(given[0]) if self._by_row else 1
        names = (*self._names, *(name for name, _, _ in self._made))
        for name, array, tensor in zip(names, (*given, *taken), self._tensors, strict=False):
            if array.nbytes != rows * tensor.bytes:
                raise wrong_size(name, array, tensor, rows, self.batch_sizes)

    def _outputs(self, given: list[Array]) -> dict[str, Array]:
        if self._by_row:
            rows = len(given[0])
            return {name: np.empty((rows, *shape), dtype) for name, shape, dtype in self._made}
        return {name: np.empty(shape, dtype) for name, shape, dtype in self._made}

    def properties(self) -> Mapping[str, str]:
        """Return the compiler, the number of threads that share a call, and constant inputs."""
        found = {"compiler": Compiler.find().version, "threads": str(self._threads)}
        for name, numbers in self._constants.numbers.items():
            found[f"input {name}"] = f"always {numbers_in_words(numbers)}"
        return found


@contextmanager
def _open(session: CompiledSession) -> Iterator[CompiledSession]:
    """Lend a session, and close it in the end."""
    try:
        yield session
    finally:
        session.close()


def one_request(model: Model) -> tuple[TensorSpec, ...]:
    """Return the inputs of one request; an open batch has one row where no data settled it."""
    if model.request:
        return model.request
    found = []
    for spec in model.inputs:
        shape = spec.shape
        if shape and isinstance(shape[0], str):
            shape = (1, *shape[1:])
        if not all(isinstance(size, int) for size in shape):
            raise CandidateError(
                f"the compiled engine takes only fixed shapes: got {spec}; give a sample of data "
                "to fix it"
            )
        found.append(replace(spec, shape=shape))
    return tuple(found)


def _inputs(model: Model, plan: Plan) -> tuple[TensorSpec, ...]:
    """Return the inputs that sessions take: as of one request, for any batch where rows are apart."""
    found = []
    for spec, settled in zip(model.inputs, one_request(model), strict=True):
        rest = settled.shape[1:]
        opened = plan.by_row and spec.shape and isinstance(spec.shape[0], str)
        found.append(replace(settled, shape=(spec.shape[0], *rest)) if opened else settled)
    if not _open_batch(tuple(found)):
        return one_request(model)
    return tuple(found)


def _outputs(model: Model, plan: Plan) -> tuple[TensorSpec, ...]:
    """Return the outputs, with the batch open where the inputs' is."""
    inputs = _inputs(model, plan)
    opened = plan.by_row and _open_batch(inputs)
    return tuple(
        TensorSpec(
            spec.name,
            plan.tensor(name).dtype,
            (inputs[0].shape[0], *shape[1:]) if opened else shape,
        )
        for spec, name, shape in zip(model.outputs, plan.outputs, plan.shapes, strict=True)
    )


def _open_batch(inputs: tuple[TensorSpec, ...]) -> bool:
    return all(bool(spec.shape) and isinstance(spec.shape[0], str) for spec in inputs)


def row_counts(artifact: Artifact, plan: Plan) -> tuple[int, ...] | None:
    """Return the batch sizes that a session takes; None for any."""
    if plan.by_row and _open_batch(artifact.inputs):
        return None
    first = artifact.request[0].shape if artifact.request else ()
    return (int(first[0]) if first else 1,)


def tensors_of(artifact: Artifact) -> Iterator[Stretch]:
    """Yield where the constants of a plan lie in its file of weights; nothing if it can't be read."""
    from hasten.engines.weights import Stretch

    try:
        plan = _plan(artifact)
    except CandidateError:
        return
    for name, tensor in plan.tensors.items():
        if tensor.offset is not None and tensor.bytes:
            width = np.dtype(tensor.dtype).itemsize
            place = (artifact.files[0], tensor.offset, tensor.bytes)
            yield Stretch(name, tensor.dtype, (tensor.size,), width, *place)


def read(artifact: Artifact) -> tuple[Plan, bytes]:
    """Read a plan and its constants, and check them.

    Raises:
        CandidateError: it is damaged, or doesn't fit the artifact's inputs and outputs.
    """
    try:
        weights = artifact.files[0].read_bytes() if artifact.files else b""
    except OSError as error:
        raise CandidateError(f"the compiled engine can't open the model: {error}") from error
    return _plan(artifact, len(weights)), weights


def _plan(artifact: Artifact, weights: int | None = None) -> Plan:
    """Read a plan, and check it against its constants' number of bytes; None for the file's.

    Raises:
        CandidateError: it is damaged, or doesn't fit the artifact's inputs and outputs.
    """
    try:
        if weights is None:
            weights = artifact.files[0].stat().st_size if artifact.files else 0
        plan = Plan.read(artifact.path)
        plan.check(weights)
        _check_fits(artifact, plan)
        return plan
    except (IntegrityError, OSError) as error:
        raise CandidateError(f"the compiled engine can't open the model: {error}") from error


@contextmanager
def _weights(artifact: Artifact) -> Iterator[bytes | io.BufferedReader]:
    """Lend the file with a plan's constants.

    Raises:
        CandidateError: it can't be read.
    """
    if not artifact.files:
        yield b""
        return
    try:
        with artifact.files[0].open("rb") as file:
            yield file
    except OSError as error:
        raise CandidateError(f"the compiled engine can't open the model: {error}") from error


def _source(
    plan: Plan,
    weights: bytes | io.BufferedReader,
    target: Target,
    threads: int = 1,
    *,
    timed: bool = False,
) -> Source:
    """Write C of a plan.

    Raises:
        CandidateError: its constants are damaged, or it asks for too much.
    """
    try:
        return write(plan, weights, target, threads, timed=timed)
    except IntegrityError as error:
        raise CandidateError(f"the compiled engine can't open the model: {error}") from error


def _timed(plan: Plan, operation: Operation, latency_ns: tuple[int, ...]) -> LayerTime:
    """Return the times of an operation."""
    from hasten.engines.layers import LayerTime

    made = operation.writes[0]
    precision = _PRECISIONS.get(plan.tensor(made).dtype, "")
    if operation.narrow:
        dtypes = {plan.tensor(name).dtype for name in (*operation.reads, *operation.writes)}
        precision = "i16" if "int16" in dtypes else "i8"
    name = plan.sources.get(made, (made,))
    return LayerTime(
        name=name[-1],
        operator=type(operation).__name__,
        kind=operation.task,
        precision=precision or plan.tensor(made).dtype,
        kernel="C, one thread",
        sources=plan.sources.get(made, ()),
        latency_ns=latency_ns,
    )


def _check_fits(artifact: Artifact, plan: Plan) -> None:
    """Check that the plan takes and gives what the artifact says."""
    given = [(spec.dtype, _size(spec)) for spec in artifact.request]
    taken = [(spec.dtype, _size(spec)) for spec in artifact.outputs]
    for specs, names in ((given, plan.inputs), (taken, plan.outputs)):
        tensors = [plan.tensor(name) for name in names]
        if specs != [(tensor.dtype, tensor.size) for tensor in tensors]:
            raise IntegrityError(
                "the plan's inputs or outputs differ from those that the bundle states"
            )


def _size(spec: TensorSpec) -> int:
    """Return the number of elements, with one row in an open batch."""
    return math.prod(size if isinstance(size, int) else 1 for size in spec.shape)
