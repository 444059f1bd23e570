"""The open model of a bundle, which answers requests."""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from hasten.bundle.binding import bound_arrays
from hasten.bundle.covered import cut, has_batch_axis, joined, not_covered
from hasten.bundle.requests import REQUESTS, kept_requests
from hasten.bundle.spreading import FEW_ROWS, Spread
from hasten.bundle.states import StateSession
from hasten.bundle.stored import Stored
from hasten.core.forks import after_forks
from hasten.core.lookups import RowNumbers
from hasten.core.shapes import Extent, check_alike, shared_sizes
from hasten.core.tensors import Array, Tensors, TensorSpec, check_tensors
from hasten.core.varying import in_words, no_batches, of_sample
from hasten.core.words import amount
from hasten.engines.pool import SessionPool
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline, as_request

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from hasten.bundle.rows import BoundRow, RowPath
    from hasten.engines.padding import Padder
    from hasten.inputs.pipeline.row_arrays import RowArrays


class NotCertifiedHere(UserWarning):
    """Warning that a bundle is used outside what its certificate covers."""


class MeasuredElsewhere(UserWarning):
    """Warning that an exact model runs on a machine other than the one where it was the fastest."""


class UnfinishedRun(UserWarning):
    """Warning that the run that made a bundle has not finished, so that another model may still ship."""


class Loaded:
    """An open bundle: a thread-safe callable with the model's own inputs and outputs.

    Calls from several threads are answered in parallel, each on its own session, up to the limit
    that `load` was given; further calls wait in line. No answer depends on other calls.

    Attributes:
        manifest: The bundle's manifest.
        signed: "unsigned"; "signature not checked", without trusted keys; or "signed by a trusted key".
        from_cache: Whether opening the first session read a cache of compiled models.
        opened_s: Seconds that `load` took, of which compiling may be the largest part.
        padder: Padding of requests up to buckets, so that unlike ones can share a batch; None if there is none.
        not_certified: Reasons why the certificate, or an exact model's measurements, don't hold
            here; empty if they do.

    Args:
        stored: The bundle where it lies; closed together with the model.
        pool: The model, open on its engine; closed together with the bundle.
        notes: Reasons for `not_certified`.
        request: The inputs of one request, without open dimensions.
        certified: The inputs of one request that the certificate covers; empty if every shape is
            covered.
        ways: Largest number of threads that share out a large batch, where its rows are computed
            apart.
        covered: Batch sizes that the certificate covers; None where it holds in any batch.
        any_batch: Whether batches of other sizes run as they come, instead of in parts.
        padder: Padding of requests up to buckets; None where the model has none.
        extents: Dimensions that the certificate covers at several sizes.
        which: Which of the bundle's models is open.
    """

    def __init__(
        self,
        stored: Stored,
        pool: SessionPool,
        notes: Sequence[str],
        request: Sequence[TensorSpec],
        certified: Sequence[TensorSpec] = (),
        *,
        from_cache: bool = False,
        ways: int = 1,
        covered: tuple[int, ...] | None = None,
        any_batch: bool = False,
        extents: Sequence[Extent] = (),
        padder: Padder | None = None,
        which: Literal["winner", "exact"] = "winner",
    ) -> None:
        self.padder = padder
        self.manifest = stored.manifest
        self.signed = stored.signed
        self.from_cache = from_cache
        self.opened_s = 0.0
        self._stored, self._prepared_by = stored, stored.manifest.pipeline_of(which)
        self.not_certified = tuple(notes)
        self._pool = pool
        self._spread = Spread(pool, ways)
        varying = stored.manifest.varying  # an answer isn't divided into rows
        self._most_alone = FEW_ROWS if self._spread.ways > 1 and not varying else math.inf
        self._batched = not varying and has_batch_axis(pool.inputs, pool.outputs, request)
        self._covered = covered
        self._keeps = None if any_batch or not self._batched else covered
        if self._keeps is not None:
            self._most_alone = 1
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._request = tuple(request)
        self._names = tuple(spec.name for spec in pool.inputs)
        self._only = pool.inputs[0] if len(pool.inputs) == 1 else None
        self._certified = {spec.name: spec.shape for spec in certified}
        self._extents = tuple(extents)
        self._shared = shared_sizes(pool.inputs, request)
        self._dtype = None if self._only is None else np.dtype(self._only.dtype)
        self._seen: tuple[int, ...] | None = None
        self._row_arrays = _row_arrays(stored.manifest.pipeline, pool.inputs)
        after_forks(self, Loaded._anew)

    def __call__(self, /, *arrays: Any, **named: Any) -> dict[str, Array]:
        """Answer one request.

        Args:
            *arrays: The inputs in the model's order, or one mapping of input name to array. Each has the
                dtype and the shape that `inputs` gives for it. A dimension with a name may have any size,
                but `batch_sizes` lists the batch sizes of a model that takes only some.
            **named: The inputs by name, instead of or in addition to `arrays`.

        Returns:
            Arrays by output name, with the dtypes and shapes that `outputs` gives.

        Raises:
            InputError: an input doesn't fit; the message says which, and what the model takes.
            CandidateError: the engine failed, or the bundle is closed.
        """
        only = self._only
        if only is not None and len(arrays) == 1 and type(arrays[0]) is np.ndarray and not named:
            array = arrays[0]
            if array.flags.c_contiguous:
                if array.shape == self._seen and array.dtype == self._dtype:
                    if self._row_arrays is not None:
                        self._row_arrays.check(only.name, array)
                    return self.run({only.name: array})  # this shape was checked before
                if only.fits(array):
                    if self._row_arrays is not None:
                        self._row_arrays.check(only.name, array)
                    self._warn_of({only.name: array})
                    self._seen = array.shape
                    return self.run({only.name: array})
        tensors = self._tensors(arrays, named)
        self._warn_of(tensors)
        return self.run(tensors)

    async def answer(self, /, *arrays: Any, **named: Any) -> dict[str, Array]:
        """Answer one request, as a call does, without blocking the event loop.

        Requests run on the bundle's own threads, one per session. Any number of tasks may wait, and a
        task that is cancelled while it waits never reaches the engine.

        Args:
            *arrays: The inputs in the model's order, or one mapping of input name to array. Each has the
                dtype and the shape that a call takes.
            **named: The inputs by name, instead of or in addition to `arrays`.

        Returns:
            Arrays by output name, with the dtypes and shapes that `outputs` gives.

        Raises:
            InputError: an input doesn't fit; the message says which, and what the model takes.
            CandidateError: the engine failed, or the bundle is closed.
        """
        import asyncio

        with self._lock:
            self._pool.check_open()
            if self._threads is None:
                from concurrent.futures import ThreadPoolExecutor

                self._threads = ThreadPoolExecutor(self._pool.limit, "hasten")
            asked = self._threads.submit(self, *arrays, **named)
        return await asyncio.wrap_future(asked)

    def decide(self, value: Any) -> Any:
        """Answer one request from what a sensor or a file gives: prepare it, run the model, decide.

        Args:
            value: Sample as the bundle's pipeline takes it: for pictures a file's bytes, or its path.

        Returns:
            The decision as plain values that JSON can represent; without steps after the model, its
            outputs for the sample, without a batch axis, by name.

        Raises:
            InputError: the bundle has no pipeline, or the value can't be read or doesn't fit.
            CandidateError: the engine failed, or the bundle is closed.
        """
        pipeline, rows = self._pipeline, self._rows
        if rows is not None:
            request = rows.request(value)
            if self._certified:
                self._warn_of(request)
            return rows.decided(self._pool.run(request))
        prepared, origin = pipeline.prepared(value)
        request = as_request(prepared, self._pool.inputs)
        self._warn_of(request)
        outputs = self._pool.run(request)
        return pipeline.decided(of_sample(outputs, 0, self.manifest.varying), origin)

    def session(self, start: Mapping[str, Any] | None = None) -> StateSession:
        """Begin a sequence: the session carries the model's states from step to step.

        Any number of sessions may be open, each for a sequence of its own.

        Args:
            start: States to begin with, by the input's name; zeros for those that aren't given.

        Returns:
            The session, a callable that answers one step at a time.

        Raises:
            InputError: the bundle was made without states, or a start state doesn't fit.
        """
        sequences = self.manifest.sequences
        if sequences is None:
            raise InputError(
                f"{self._stored.name} was made without states=: it answers each request by itself"
            )
        bind = self._bound_step if self._pool.lends_calls else None
        return StateSession(self, sequences, start or {}, bind)

    def _bound_step(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None] | None:
        """Return a call from and to these arrays, in line with all others; None where `run` divides the request."""
        if self._divided(inputs):
            return None
        return functools.partial(self._pool.turn, self._pool.bind(inputs, outputs))

    def bind(self, /, *arrays: Any, **named: Any) -> Callable[[], None]:
        """Return a call without arguments that answers from and to the same arrays each time.

        Fill the inputs, call, and read the outputs. The arrays are checked here, once. Each call checks the
        numbers that the model looks up in a table, and no others. The call keeps a session of its own, which
        is freed with the bundle, and the arrays; it is for one thread: while one is in it, another gets an
        error. Bind one for each thread.

        Args:
            *arrays: The inputs in the model's order and then the outputs; or a mapping of input name to
                array and one of output name to array. Each has the dtype and the shape that `inputs` or
                `outputs` gives for it, and a size for each open dimension. All are C-contiguous,
                and no output overlaps another array.
            **named: Inputs and outputs by name, instead of or in addition to `arrays`.

        Returns:
            The call. It raises CandidateError where the engine fails, another thread is in it, or the
            bundle is closed, and InputError where a number is no row of a table that the model looks it up in.

        Raises:
            InputError: an array doesn't fit; the message says which, and what the model takes or gives. Or the
                size of an output depends on the sample's values.
            CandidateError: a session can't be opened, or the bundle is closed.
        """
        if self.manifest.varying:
            raise InputError(
                f"no array can be bound to {in_words(self.manifest.varying)}: call it instead"
            )
        inputs, outputs = bound_arrays(
            arrays, named, self._pool.inputs, self._pool.outputs, self._pool.batch_sizes
        )
        self._warn_of(inputs, whole=True)
        return self._pool.bind(inputs, outputs)

    def bind_row(self) -> BoundRow:
        """Return a call that takes one row of a table and gives its decision, as `decide` does.

        It reads each row into an array of its own, to which the model is bound: see `bind` about
        threads, and about what it keeps.

        Raises:
            InputError: the bundle's pipeline doesn't begin with `row` alone.
            CandidateError: a session can't be opened, or the bundle is closed.
        """
        from hasten.bundle.rows import BoundRow, RowPath

        path = RowPath(self._pipeline, self._pool.inputs)
        return BoundRow(path, self.bind, self._pool.outputs)

    def decide_rows(self, rows: Any) -> list[Any]:
        """Answer many rows of a table at once; see `decide`.

        Where the model computes rows apart, a large batch is shared out to threads, at most as many as
        `load` was told.

        Args:
            rows: Rows in any form that `decide` takes; or a matrix, a data frame of pandas, or a table or
                a record batch of Arrow.

        Returns:
            One decision for each row.

        Raises:
            InputError: a row can't be read, the message says which, from 0; the bundle's pipeline doesn't begin
                with `row` alone; or the size of an output depends on the row's values.
            CandidateError: the engine failed, or the bundle is closed.
        """
        from hasten.bundle.rows import RowPath

        if self.manifest.varying:
            raise InputError(f"{no_batches(self.manifest.varying)}: use decide for each")
        path = self._rows or RowPath(self._pipeline, self._pool.inputs)
        batch = path.reader.read_all(rows)
        decisions: list[Any] = []
        sizes = self._pool.batch_sizes
        most = len(batch) if sizes is None else max(sizes)
        for begin in range(0, len(batch), most):
            part = batch[begin : begin + most]
            if sizes is not None and len(part) not in sizes:
                singly = [self._pool.run({path.name: part[n : n + 1]}) for n in range(len(part))]
                decisions += [path.decided(outputs) for outputs in singly]
                continue
            request = {path.name: part}
            self._warn_of(request)
            outputs = self.run(request)
            decisions += [path.decided(outputs, place) for place in range(len(part))]
        return decisions

    @property
    def _pipeline(self) -> Pipeline:
        """The bundle's pipeline for the model that is open.

        Raises:
            InputError: it has none.
        """
        if self._prepared_by is None:
            raise InputError(
                f"{self._stored.name} was made from arrays and has no pipeline: call it with "
                "arrays, or make a bundle with a pipeline"
            )
        return self._prepared_by

    @functools.cached_property
    def _rows(self) -> RowPath | None:
        """Way of rows; None where the pipeline takes something else."""
        from hasten.bundle.rows import RowPath

        known = None if self.manifest.varying else self.manifest.pipeline
        return RowPath.of(known, self._pool.inputs)

    def _tensors(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Array]:
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            named = {**arrays[0], **named}
            arrays = ()
        if len(arrays) > len(self._names):
            raise InputError(
                f"the model takes {amount(len(self._names), 'input')}; got {len(arrays)}"
            )
        by_place = dict(zip(self._names, arrays, strict=False))
        if twice := by_place.keys() & named.keys():
            raise InputError(f"input {min(twice)!r} is given twice, by position and by name")
        tensors = {}
        for name, array in {**by_place, **named}.items():
            try:
                tensors[name] = np.asarray(array, order="C")
            except ValueError as error:
                raise InputError(f"input {name!r} is not an array: {error}") from error
        check_tensors(tensors, self._pool.inputs)
        if self._row_arrays is not None and self._only is not None:
            self._row_arrays.check(self._only.name, tensors[self._only.name])
        check_alike(tensors, self._shared)
        return tensors

    def _warn_of(self, tensors: Mapping[str, Array], *, whole: bool = False) -> None:
        """Warn once when a request's shape, such as its batch size, isn't a certified one.

        Args:
            tensors: Inputs by name.
            whole: Whether the request is never answered in parts.
        """
        for name, shape in self._certified.items():
            given, outside = self._within(name, tensors[name].shape, shape)
            if given != shape:
                note = outside or f"{name} of shape {list(shape)} there, {list(given)} here"
                if self._batched and given[1:] == shape[1:]:
                    in_parts = self._keeps is not None and not whole
                    if in_parts or self._covered is None or given[0] in self._covered:
                        continue
                    note = not_covered(tensors[name].shape[0], self._covered)
                with self._lock:
                    if not self._certified:
                        return  # another thread warns already
                    self._certified = {}
                    self.not_certified += (note,)
                warnings.warn(f"not certified here: {note}", NotCertifiedHere, stacklevel=3)
                return

    def _within(
        self, name: str, given: tuple[int, ...], certified: tuple[int | str, ...]
    ) -> tuple[tuple[int | str, ...], str]:
        """Return a shape with the certified size wherever the certificate covers the one that came.

        The line says which size it doesn't cover; "" where it covers all that differ among samples.
        """
        sizes: list[int | str] = list(given)
        outside = ""
        for one in self._extents:
            if one.input == name and one.axis < min(len(sizes), len(certified)):
                size = given[one.axis]
                if one.covers(size):
                    sizes[one.axis] = certified[one.axis]
                else:
                    outside = f"dimension {one.axis} of {name} from {one.least} to {one.most} there, {size} here"
        return tuple(sizes), outside

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of a request; open dimensions have names."""
        return self._pool.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the model; open dimensions have names."""
        return self._pool.outputs

    @property
    def numbers(self) -> RowNumbers | None:
        """Check that each request's numbers are rows of the tables that the model looks them up in; None for none."""
        return self._pool.numbers

    @property
    def batch_sizes(self) -> tuple[int, ...] | None:
        """Batch sizes that the model takes; None if it takes any."""
        return self._pool.batch_sizes

    @property
    def keeps_to(self) -> tuple[int, ...] | None:
        """Batch sizes in which requests are answered, since the certificate covers them; None for any."""
        return self._keeps

    @property
    def certified_batches(self) -> tuple[int, ...] | None:
        """Batch sizes that the certificate covers; None where there is none, or it covers any."""
        return self._covered

    @property
    def lends_calls(self) -> bool:
        """Whether bound calls take no session of their own; see `Session.lends_calls`."""
        return self._pool.lends_calls

    @property
    def request(self) -> tuple[TensorSpec, ...]:
        """Inputs of one request as they were certified, without open dimensions."""
        return self._request

    @functools.cached_property
    def requests(self) -> tuple[dict[str, Array], ...]:
        """Requests from the data that the bundle keeps, maybe none; read on first access.

        Each is a mapping of input name to array, with dtypes and shapes that a call takes.

        Raises:
            IntegrityError: the bundle was changed since it was loaded.
        """
        names = [REQUESTS] if self.manifest.requests else []
        return kept_requests(self._stored.unchecked(names), self.manifest)

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Answer a request of C-contiguous arrays by name that is known to fit `inputs`.

        A certified model answers batches of other than certified sizes in parts of those sizes, unless
        it was loaded with `any_batch`.

        Args:
            tensors: Arrays by input name, C-contiguous. Their dtypes and shapes aren't checked.

        Returns:
            Arrays by output name, with the dtypes and shapes that `outputs` gives.

        Raises:
            InputError: a number is no row of a table that the model looks it up in.
            CandidateError: the engine failed, or the bundle is closed.
        """
        if self._most_alone < math.inf and (count := self._divided(tensors)):
            if self._keeps is None:
                return self._spread.run(tensors, count)
            parts = cut(tensors, count, self._keeps)
            return joined([self._pool.run(part) for part in parts])
        return self._pool.run(tensors)

    def _divided(self, tensors: Tensors) -> int:
        """Return the number of rows of a request that isn't answered as it comes; 0 for one that is."""
        rows = {len(array) if array.ndim else 1 for array in tensors.values()}
        if len(rows) != 1 or (count := rows.pop()) <= self._most_alone:
            return 0
        return 0 if self._keeps is not None and count in self._keeps else count

    def properties(self) -> Mapping[str, str]:
        """Return what the engine reports about itself, by property name.

        A cascade also reports how many of its answers, over all sessions, its large model had to
        compute. A growing share indicates that inputs drift from those that it was certified on.

        Raises:
            CandidateError: the bundle is closed.
        """
        return self._pool.properties()

    def shares(self) -> Mapping[str, tuple[int, int]]:
        """Return what the engine counts, over all sessions: name -> answers of the kind, and all."""
        return self._pool.shares()

    def _anew(self) -> None:
        """Forget the threads, which aren't in this process."""
        self._lock, self._threads = threading.Lock(), None

    def close(self) -> None:
        """Wait for the calls that are running, refuse those in line, and free the engine."""
        self._pool.close()
        self._spread.close()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
        self._stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row_arrays(pipeline: Pipeline | None, inputs: Sequence[TensorSpec]) -> RowArrays | None:
    if pipeline is None:
        return None
    from hasten.inputs.pipeline.row_arrays import RowArrays

    return RowArrays.of(pipeline, inputs)
