"""Engine of several: one model compiled for each of a few shapes, and requests padded up to these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hasten.core.model import Format, Model
from hasten.core.records import check_integers, from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.artifacts import batch_sizes, settle
from hasten.engines.base import Artifact, Engine, Session, share
from hasten.engines.checked import content
from hasten.engines.failures import failed
from hasten.engines.layers import LayerTime
from hasten.engines.padding import Bucket, Dimension, Pad, Padder, Settled
from hasten.errors import CandidateError, IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compile_cache import CompileCache

_PARTS, _OPEN = "buckets.json", "open"
MOST_BYTES = 512 << 20
"""Largest size of the files of all buckets."""
OPEN_BYTES = 1 << 30
"""Largest size of the models that a session has open at once, but at least two."""


@dataclass(frozen=True)
class Buckets(Engine):
    """Pad each request to the least of a few shapes, and answer it by a model compiled for that shape.

    Runtimes are faster where shapes are settled. What is padded must not change an answer, as zeros in a
    mask see to; only a comparison of all answers shows whether it does. A request beyond all buckets, or
    smaller than any that was compared, is answered at its own shape by another engine.

    Attributes:
        inner: Engine of the buckets.
        beyond: Engine of the model with open shapes, for what no bucket covers.
        dimensions: Open dimensions that buckets settle.
        buckets: Shapes, smallest first.
        pads: Values to pad with, where they aren't 0.
        padding: Whether requests are padded; else a bucket answers only requests of its own shape.
        least: Least sizes of the dimensions at which padded answers were compared; smaller requests aren't
            padded. Without any, all are.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "openvino"})

    inner: Engine
    beyond: Engine
    dimensions: tuple[Dimension, ...]
    buckets: tuple[Bucket, ...]
    pads: tuple[Pad, ...] = ()
    padding: bool = True
    least: tuple[int, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether both engines are; whether padding changes an answer, a comparison shows."""
        return self.inner.exact and self.beyond.exact

    @property
    def precision(self) -> str | None:
        """Precision of the buckets' engine."""
        return self.inner.precision

    @property
    def runtimes(self) -> tuple[Engine, ...]:
        """Runtimes of both engines."""
        return tuple(dict.fromkeys((*self.inner.runtimes, *self.beyond.runtimes)))

    def within(self, threads: int) -> Self:
        """Return the engine with both its engines limited to a number of threads."""
        inner, beyond = self.inner.within(threads), self.beyond.within(threads)
        return replace(self, inner=inner, beyond=beyond)

    def beside(self) -> Self:
        """Return the engine with both its engines for use next to another."""
        return replace(self, inner=self.inner.beside(), beyond=self.beyond.beside())

    @property
    def keeps_compiled(self) -> bool:
        """Whether the engine of the buckets does, if each bucket has a file of its own."""
        return not self._shares and self.inner.keeps_compiled

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield nothing: which shapes are worth a bucket depends on the data."""
        yield from ()

    @classmethod
    def version(cls) -> str:
        """Return "1": the engines have versions of their own, see `runtimes`."""
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build the model with open shapes, and one for each bucket unless the runtime settles shapes itself.

        Raises:
            CandidateError: a model can't be built, or the buckets would take too much room.
        """
        model = replace(model, constant_inputs=())  # all of its models must take the same requests
        (workdir / _OPEN).mkdir()
        whole = self.beyond.build(model, target, workdir / _OPEN)
        parts = {_OPEN: whole}
        if not self._shares:
            size_bytes = len(self.buckets) * model.size_bytes
            if size_bytes > MOST_BYTES:
                raise CandidateError(
                    f"{len(self.buckets)} buckets of the model would take {size_bytes >> 20:,} "
                    f"MiB, more than the limit of {MOST_BYTES >> 20} MiB"
                )
            for number, bucket in enumerate(self.buckets):
                place = workdir / str(number)
                place.mkdir()
                request = self._request(bucket, model.request)
                parts[str(number)] = self._part(model, request, target, place)
        files = {name: (part.path, *part.files) for name, part in parts.items()}
        index = {
            name: {
                "files": [file.relative_to(workdir).as_posix() for file in own],
                "outputs": to_record(parts[name].outputs),
            }
            for name, own in files.items()
        }
        path = workdir / _PARTS
        path.write_text(json.dumps(index))
        every = tuple(file for own in files.values() for file in own)
        return replace(whole, path=path, files=every)

    def _part(
        self, model: Model, request: tuple[TensorSpec, ...], target: Target, workdir: Path
    ) -> Artifact:
        """Build the model of a bucket, for requests of its shape."""
        if self.inner.builds_settled:
            return self.inner.build(
                replace(model, inputs=request, request=request), target, workdir
            )
        sources = workdir.with_name(f"{workdir.name}-source")
        part = self.inner.build(settled(model, request, sources), target, workdir)
        shutil.rmtree(sources)
        return part

    @property
    def _shares(self) -> bool:
        """Whether the buckets are opened from the one model with open shapes."""
        return self.inner.reshapes and type(self.inner) is type(self.beyond)

    def loaded_bytes(self, artifact: Artifact) -> int:
        """Return the size of all buckets, or of those that are open at once."""
        size_bytes = artifact.size_bytes
        if not self._shares:
            return size_bytes
        return max(2 * size_bytes, min((len(self.buckets) + 1) * size_bytes, OPEN_BYTES))

    def shared_padder(self, artifact: Artifact) -> Padder | None:
        """Return the padding by which unlike requests can share a batch; None where buckets take their own shape only."""
        return self.padder(artifact) if self.padding else None

    def padder(self, artifact: Artifact) -> Padder:
        """Return the padding of an artifact's requests up to the buckets."""
        varied = {(one.name, one.axis) for each in self.dimensions for one in each.inputs}
        rows = {(spec.name, 0) for spec in artifact.inputs if _has_batches(self, artifact)}
        sizes = {spec.name: spec.sizes for spec in artifact.request}
        settled = [
            Settled(spec.name, axis, sizes[spec.name][axis])
            for spec in artifact.inputs
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str) and (spec.name, axis) not in varied | rows
        ]
        return Padder(
            self.dimensions,
            self.buckets,
            self.pads,
            padding=self.padding,
            least=self.least,
            settled=settled,
        )

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open the bucket of the certified request; the others open when a request needs them.

        Raises:
            CandidateError: a model can't be opened, or the list of files is damaged.
        """
        with self._opened(artifact, target, None) as session:
            yield session

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Open as `open` does; models that aren't opened from one file are opened through the cache.

        Raises:
            CandidateError: a model can't be opened, or the list of files is damaged.
        """
        with self._opened(artifact, target, compiled) as session:
            yield session

    @contextmanager
    def _opened(
        self, artifact: Artifact, target: Target, compiled: CompileCache | None
    ) -> Iterator[Session]:
        if not self.buckets or not self.dimensions:
            raise CandidateError("buckets without a shape can't answer anything")
        with _Opened(self, artifact, target, compiled) as opened:
            session = BucketsSession(self, artifact, opened)
            session.warm(artifact.request)
            yield session

    def profile(
        self, artifact: Artifact, target: Target, requests: Sequence[Tensors]
    ) -> tuple[LayerTime, ...]:
        """Profile the model with open shapes, at the requests' own shapes. See `Engine.profile`."""
        return self.beyond.profile(_parts(artifact)[_OPEN], target, requests)

    def _request(self, bucket: Bucket, request: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Return a request's inputs with a bucket's sizes."""
        sizes = {
            (one.name, one.axis): size
            for dimension, size in zip(self.dimensions, bucket.sizes, strict=True)
            for one in dimension.inputs
        }
        return tuple(
            replace(
                spec,
                shape=tuple(sizes.get((spec.name, n), size) for n, size in enumerate(spec.shape)),
            )
            for spec in request
        )

    def words(self) -> str:
        count = len(self.buckets)
        spread = f"{self.buckets[0]} to {self.buckets[-1]}" if count > 1 else f"{self.buckets[0]}"
        beyond = "" if self.beyond == self.inner else f", beyond them {self.beyond.words()}"
        how = "padded to" if self.padding else "compiled for"
        many = f"{count} shapes, {spread}" if count > 1 else spread
        return f"{self.inner.words()}, {how} {many}{beyond}"


def settled(model: Model, request: tuple[TensorSpec, ...], folder: Path) -> Model:
    """Return a copy of an ONNX model whose open dimensions have the sizes of one request.

    Raises:
        CandidateError: it is no ONNX file, or its shapes can't be inferred.
    """
    import onnx

    if model.format != "onnx":
        raise CandidateError(
            f"a model in the format {model.format} can't get the fixed shapes of a bucket"
        )
    folder.mkdir()
    placed = [folder / file.relative_to(model.path.parent) for file in (model.path, *model.files)]
    for file, to in zip((model.path, *model.files), placed, strict=True):
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)
    settle(placed[0], request, "can't fix the shapes of a bucket")
    try:
        onnx.shape_inference.infer_shapes_path(str(placed[0]), str(placed[0]), data_prop=True)
        graph = onnx.load(str(placed[0]), load_external_data=False).graph
    except Exception as error:
        raise failed("can't infer the shapes of a bucket", error) from error
    found = {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in value.type.tensor_type.shape.dim
        )
        for value in graph.output
        if value.type.tensor_type.HasField("shape")
    }
    outputs = tuple(replace(one, shape=found.get(one.name, one.shape)) for one in model.outputs)
    return replace(
        model,
        path=placed[0],
        files=tuple(placed[1:]),
        inputs=request,
        request=request,
        outputs=outputs,
    )


class _Opened:
    """Sessions of the buckets that were needed so far; the longest unused one goes for want of room."""

    def __init__(
        self, engine: Buckets, artifact: Artifact, target: Target, compiled: CompileCache | None
    ) -> None:
        self._engine, self._artifact, self._target = engine, artifact, target
        self._compiled = compiled
        self._parts = _parts(artifact)
        self._open: dict[int, tuple[Session, ExitStack]] = {}
        self._closed = False
        whole = self._parts[_OPEN]
        self._most = max(2, OPEN_BYTES // max(1, whole.size_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        for _, closing in self._open.values():
            closing.close()
        self._open.clear()

    def session(self, number: int) -> Session:
        """Return the session of a bucket, or of the model with open shapes for -1.

        Raises:
            CandidateError: it can't be opened.
        """
        if self._closed:
            raise CandidateError("the session is closed: open the artifact again")
        found = self._open.pop(number, None)
        if found is None:
            while len(self._open) >= self._most:
                self._open.pop(next(iter(self._open)))[1].close()
            closing = ExitStack()
            found = closing.enter_context(self._opening(number)), closing
        self._open[number] = found
        return found[0]

    def latest(self) -> Session | None:
        """Return the session that was asked for last; None where none is open."""
        return next((one for one, _ in reversed(self._open.values())), None)

    def _opening(self, number: int) -> Any:
        engine, whole = self._engine, self._parts[_OPEN]
        if number < 0:
            return engine.beyond.open(whole, self._target)
        request = engine._request(engine.buckets[number], self._artifact.request)
        if engine._shares:
            return engine.inner.open_at(whole, self._target, request)
        part = self._parts.get(str(number))
        if part is None:
            raise CandidateError(
                f"{self._artifact.path.name} lacks the bucket {engine.buckets[number]}"
            )
        part = replace(part, inputs=request, request=request)
        if self._compiled is not None:
            return engine.inner.open_cached(part, self._target, self._compiled)
        return engine.inner.open(part, self._target)


def _parts(artifact: Artifact) -> dict[str, Artifact]:
    """Return the artifacts that an artifact of buckets contains, by name.

    Raises:
        CandidateError: the list of files is damaged, or names a file that isn't the artifact's.
    """
    folder = artifact.path.parent
    try:
        index = json.loads(content(artifact, artifact.path))
        check_integers(index)
        found = {}
        for part, own in index.items():
            files = [folder / name for name in own["files"]]
            if not files or not set(files) <= set(artifact.files):
                raise ValueError("it lists other files")
            outputs = tuple(from_record(TensorSpec, spec) for spec in own["outputs"])
            if [_kind(spec) for spec in outputs] != [_kind(spec) for spec in artifact.outputs]:
                raise ValueError("its models have other outputs")
            found[str(part)] = replace(
                artifact, path=files[0], files=tuple(files[1:]), outputs=outputs
            )
        if _OPEN not in found:
            raise ValueError("it lacks the model with open shapes")
    except (
        *(OSError, ValueError, TypeError, KeyError, AttributeError),
        *(RecursionError, IntegrityError),
    ) as error:
        raise CandidateError(f"{artifact.path.name} is damaged: {error}") from error
    return found


def _kind(spec: TensorSpec) -> tuple[str, str, int]:
    return spec.name, spec.dtype, len(spec.shape)


class BucketsSession(Session):
    """Sessions of buckets, which open as requests need them, with counts of what was asked."""

    def __init__(self, engine: Buckets, artifact: Artifact, opened: _Opened) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self._engine, self._opened = engine, opened
        self._padder = engine.padder(artifact)
        self._batched = _has_batches(engine, artifact)
        self.batch_sizes = batch_sizes(artifact) if self._batched else (1,)
        self.answered = self.padded = self.beyond = 0

    def warm(self, request: Sequence[TensorSpec]) -> None:
        """Open what would answer a request of these inputs.

        Raises:
            CandidateError: it can't be opened.
        """
        sizes = self._padder.sizes({spec.name: spec.sizes for spec in request})
        self._opened.session(self._padder.bucket(sizes))

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request, padded to its bucket; several rows by the model with open shapes.

        Raises:
            CandidateError: a runtime failed, or an input is missing.
        """
        sizes = self._padder.sizes({name: array.shape for name, array in inputs.items()})
        rows = len(next(iter(inputs.values()))) if self._batched else 1
        number = self._padder.bucket(sizes)
        session = self._opened.session(number if rows == 1 else -1)
        self.answered += rows
        if number < 0 or sizes is None:
            self.beyond += rows
            return session.run(inputs)
        if rows > 1 or self._engine.buckets[number].sizes == sizes:
            return session.run(inputs)
        self.padded += 1
        answers = session.run(self._padder.filled(inputs, number))
        self._padder.check(answers, number)
        return self._padder.cut(answers, sizes)

    def properties(self) -> Mapping[str, str]:
        """Counts of requests that are padded, and of those that none of the buckets covers."""
        return {name: share(*counts) for name, counts in self.shares().items()}

    def settle(self, again: Callable[[], object]) -> None:
        if (session := self._opened.latest()) is not None:
            session.settle(again)

    def device_times(self) -> Mapping[str, str]:
        session = self._opened.latest()
        return {} if session is None else session.device_times()

    def shares(self) -> Mapping[str, tuple[int, int]]:
        """Number of requests that were padded, and of those beyond all buckets, out of all."""
        return {
            "padded": (self.padded, self.answered),
            "beyond all buckets": (self.beyond, self.answered),
        }


def _has_batches(engine: Buckets, artifact: Artifact) -> bool:
    """Whether the first axis of every input is an open one of rows."""
    rows = all(spec.shape[:1] and isinstance(spec.shape[0], str) for spec in artifact.inputs)
    lone = all(spec.shape[:1] == (1,) for spec in artifact.request)
    apart = all(one.axis > 0 for dimension in engine.dimensions for one in dimension.inputs)
    return rows and lone and apart
