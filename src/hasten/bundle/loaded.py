"""An open bundle: its model, ready to answer, and what was found or certified only elsewhere."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from hasten.bundle.folder import artifact_of, read
from hasten.bundle.manifest import Manifest, Part, nested_engines
from hasten.bundle.requests import kept_requests
from hasten.core.devices import FAMILIES, at_hand
from hasten.core.records import from_record, load_object
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec, check_tensors
from hasten.engines.base import Engine
from hasten.engines.pool import SessionPool, sessions_for
from hasten.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


class NotCertifiedHere(UserWarning):
    """A bundle is used outside what its certificate covers."""


class MeasuredElsewhere(UserWarning):
    """An exact model runs on another machine than the one that it was found the fastest on."""


def differences(
    manifest: Manifest, here: Target, facts: Mapping[str, str], item: Part | None = None
) -> list[str]:
    """Say where this machine differs from the one that a bundle was made on; empty where it doesn't.

    Of what answers bit for bit as a device that isn't here, no machine matters, only the packages do.

    Args:
        manifest: What the bundle states.
        here: This machine.
        facts: Its environment.
        item: Whose engine counts; by default the winner's.
    """
    from hasten.measure.environment import DEVICE_FACTS, DISTRIBUTIONS

    record, there = (item or manifest.winner).engine, manifest.target
    inner = [each["type"] for each in nested_engines(record).values()]
    packages = (n for name in inner or [record["type"]] for n in DISTRIBUTIONS.get(name, ()))
    family = FAMILIES.get(there.family)
    on_device = family is not None and bool({*inner, record["type"]} & {*family.engines})
    known = [
        *(name for name in DEVICE_FACTS if on_device and name in manifest.environment),
        *dict.fromkeys(packages),
    ]
    pairs: list[tuple[str, object, object]] = [
        (name, manifest.environment.get(name, "none"), facts.get(name, "none")) for name in known
    ]
    if not _anywhere(there, record):
        pairs = [
            ("processor", there.processor, here.processor),
            ("instruction sets", " ".join(there.isa), " ".join(here.isa)),
            *pairs,
        ]
        if here.threads < there.threads:  # with more, it still runs on as many as there
            pairs.append(("threads", there.threads, here.threads))
    return [f"{name}: {one} there, {other} here" for name, one, other in pairs if one != other]


def _anywhere(there: Target, record: Mapping[str, Any]) -> bool:
    """Whether an engine answers as a device that isn't here does, bit for bit, on whatever host."""
    family = FAMILIES.get(there.family)
    if there.kind != "compile-only" or family is None or record["type"] not in family.engines:
        return False
    return bool(load_object(Engine.registry[record["type"]]).faithful)


def engine_of(item: Part, threads: int) -> Engine:
    """Return the engine that a part names, on at most so many threads, whatever it asks for.

    Raises:
        IntegrityError: there is no such engine or setting.
    """
    inner = nested_engines(item.engine)
    return from_record(
        Engine,
        {
            **_bounded(item.engine, threads),
            **{name: _bounded(record, threads) for name, record in inner.items()},
        },
    )


def _bounded(record: Mapping[str, Any], threads: int) -> dict[str, Any]:
    asked = record.get("threads")
    bound = {"threads": max(1, min(asked, threads))} if type(asked) is int else {}
    return {**record, **bound}


class Loaded:
    """An open bundle: a callable with the model's own inputs and outputs, for any number of threads.

    Calls from several threads are answered side by side, each on a session of its own, as many as
    `load` was told; further calls wait in line. An answer never depends on who else asks.

    Attributes:
        manifest: What the bundle states.
        not_certified: Why what was certified, or measured of an exact model, doesn't hold here;
            empty where it does.

    Args:
        folder: The bundle's.
        pool: Its model, open on its engine; closed with the bundle.
        request: The inputs of one request, every size settled.
        certified: The inputs of one request that a certificate covers; empty for any.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        pool: SessionPool,
        notes: Sequence[str],
        request: Sequence[TensorSpec],
        certified: Sequence[TensorSpec] = (),
    ) -> None:
        self.manifest = manifest
        self._folder = folder
        self.not_certified = tuple(notes)
        self._pool = pool
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._request = tuple(request)
        self._names = tuple(spec.name for spec in pool.inputs)
        self._only = pool.inputs[0] if len(pool.inputs) == 1 else None
        self._certified = {spec.name: spec.shape for spec in certified}
        self._dtype = None if self._only is None else np.dtype(self._only.dtype)
        self._seen: tuple[int, ...] | None = None

    def __call__(self, *arrays: Any, **named: Any) -> dict[str, Array]:
        """Answer one request.

        Args:
            *arrays: The inputs in the model's order, or one mapping of input name to array.
            **named: Or the inputs by name.

        Returns:
            Arrays by output name.

        Raises:
            InputError: which input doesn't fit, and what the model takes.
            CandidateError: the engine failed, or the bundle is closed.
        """
        only = self._only
        if only is not None and len(arrays) == 1 and type(arrays[0]) is np.ndarray and not named:
            array = arrays[0]
            if array.flags.c_contiguous:
                if array.shape == self._seen and array.dtype == self._dtype:
                    return self._pool.run({only.name: array})  # checked when it first came
                if only.fits(array):
                    self._warn_of({only.name: array})
                    self._seen = array.shape
                    return self._pool.run({only.name: array})
        tensors = self._tensors(arrays, named)
        self._warn_of(tensors)
        return self._pool.run(tensors)

    async def answer(self, *arrays: Any, **named: Any) -> dict[str, Array]:
        """Answer one request, as a call does, while the event loop goes on.

        It is answered in a thread of the bundle's own, of which there are as many as sessions: any
        number of tasks may wait, and one that is cancelled while it waits is never asked.

        Raises:
            InputError: which input doesn't fit, and what the model takes.
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

    def _tensors(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Array]:
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            named = {**arrays[0], **named}
            arrays = ()
        if len(arrays) > len(self._names):
            raise InputError(f"the model takes {len(self._names)} inputs; got {len(arrays)}")
        by_place = dict(zip(self._names, arrays, strict=False))
        if twice := by_place.keys() & named.keys():
            raise InputError(f"input {min(twice)!r} is given twice, by its place and by its name")
        tensors = {}
        for name, array in {**by_place, **named}.items():
            try:
                tensors[name] = np.asarray(array, order="C")
            except ValueError as error:
                raise InputError(f"input {name!r} is no array: {error}") from error
        check_tensors(tensors, self._pool.inputs)
        return tensors

    def _warn_of(self, tensors: Mapping[str, Array]) -> None:
        """Say once that requests have another shape than the certified ones: another batch size."""
        for name, shape in self._certified.items():
            if tensors[name].shape != shape:
                note = f"{name} of shape {list(shape)} there, {list(tensors[name].shape)} here"
                with self._lock:
                    if not self._certified:
                        return  # another thread says it
                    self._certified = {}
                    self.not_certified += (note,)
                warnings.warn(f"not certified here: {note}", NotCertifiedHere, stacklevel=3)
                return

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a request brings; open dimensions have names."""
        return self._pool.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gets back."""
        return self._pool.outputs

    @property
    def batch_sizes(self) -> tuple[int, ...] | None:
        """The batch sizes that it takes, or None where any will do."""
        return self._pool.batch_sizes

    @property
    def request(self) -> tuple[TensorSpec, ...]:
        """The inputs of one request as they were certified, every size settled."""
        return self._request

    @functools.cached_property
    def requests(self) -> tuple[dict[str, Array], ...]:
        """Requests of the data that the bundle keeps, read when they are first asked for; maybe none.

        Raises:
            IntegrityError: the bundle was changed since it was loaded.
        """
        return kept_requests(self._folder, self.manifest)

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Answer a request that was checked already: arrays by name, C-contiguous, as `inputs` says.

        Raises:
            CandidateError: the engine failed, or the bundle is closed.
        """
        return self._pool.run(tensors)

    def properties(self) -> Mapping[str, str]:
        """What the engine says that it does; of a cascade also how many answers were asked again, by
        all sessions together.

        A share that grows says that inputs drift from those that it was certified on.

        Raises:
            CandidateError: the bundle is closed.
        """
        return self._pool.properties()

    def close(self) -> None:
        """Wait for the calls that the engine answers, refuse those in line, and free the engine."""
        self._pool.close()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    *,
    which: Literal["winner", "exact"] = "winner",
    custom_ops: Sequence[Path] = (),
    threads: int | None = None,
    sessions: int | None = None,
) -> Loaded:
    """Check a bundle and open its model on the engine that it names, for any number of threads.

    Args:
        path: The bundle's folder.
        which: The winner, or the exact model that it was compared to.
        custom_ops: The libraries with the user's own operators, the same files as at the making.
        threads: How many to run one request on at most; by default as many as it was made for.
        sessions: How many requests to answer side by side at most, each of a thread that asks. The
            model is loaded once for each, the first time that so many ask at once. By default as
            many as this process has processors for and half of the memory holds, and one on a device.

    Raises:
        InputError: no bundle, or it holds no exact model, or the engine isn't installed, or fewer
            than one session is asked for.
        CandidateError: the engine can't open the model here.
        IntegrityError: damaged, truncated, tampered with, or from a newer version.

    Warns:
        NotCertifiedHere: this machine or engine version isn't what was certified, or it has fewer
            threads to give; a call warns once where its shapes aren't.
        MeasuredElsewhere: the same of an exact model, whose answers hold everywhere.
    """
    from hasten.measure.environment import environment

    if sessions is not None and (type(sessions) is not int or sessions < 1):
        raise InputError(
            "sessions is how many requests are answered side by side, a whole number from 1: "
            f"got {sessions!r}"
        )
    folder = Path(path)
    manifest = read(folder)
    item = manifest.winner if which == "winner" else manifest.exact
    if item is None:
        raise InputError(f"{folder} was made with --no-exact: it holds no exact model")
    here = at_hand(manifest.target)
    threads = max(1, min(threads or manifest.target.threads, manifest.target.threads, here.threads))
    engine = engine_of(item, threads)
    for runtime in engine.runtimes:
        runtime.version()
    notes = differences(manifest, here, environment(here), item)
    exact = which == "exact" or manifest.status == "exact"
    if manifest.status == "uncertified" and not exact:
        notes.insert(0, manifest.why)
    if notes:
        kind = MeasuredElsewhere if exact else NotCertifiedHere
        warnings.warn(_warning(notes, exact=exact), kind, stacklevel=2)
    artifact, target = artifact_of(folder, item, manifest, custom_ops), here.with_threads(threads)
    limit = sessions or sessions_for(engine, artifact, target, here.threads)
    judged = which == "winner" and manifest.status == "certified"
    return Loaded(
        folder.absolute(),
        manifest,
        SessionPool(engine, artifact, target, limit),
        notes,
        artifact.request,
        artifact.request if judged else (),
    )


def _warning(notes: Sequence[str], *, exact: bool) -> str:
    """What a warning says of a machine that isn't the bundle's own."""
    if not exact:
        return f"not certified here: {'; '.join(notes)}"
    return (
        f"measured elsewhere: {'; '.join(notes)}; the answers are exact here too, within the tolerance, "
        "but another version may be the fastest: run hasten optimize here to know"
    )
