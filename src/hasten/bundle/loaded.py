"""An open bundle: its model, ready to answer, and what was found or certified only elsewhere."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from hasten.bundle.folder import artifact_of, read
from hasten.bundle.manifest import Manifest, Part
from hasten.bundle.requirements import answers_as, distributions
from hasten.core.devices import at_hand
from hasten.core.records import from_record
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec, check_tensors
from hasten.engines.base import Engine, Session
from hasten.errors import InputError


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
    from hasten.measure.environment import DEVICE_FACTS

    record, there = (item or manifest.winner).engine, manifest.target
    on_device = there.kind != "host" and answers_as(there, record)
    known = [
        *(name for name in DEVICE_FACTS if on_device and name in manifest.environment),
        *distributions(record),
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
    if there.kind != "compile-only" or record["type"] not in Engine.registry:
        return False
    kind = Engine.member(record["type"])
    return there.family in kind.families and kind.faithful


def engine_of(item: Part, threads: int) -> Engine:
    """Return the engine that a part names, on at most so many threads, whatever it asks for.

    Raises:
        IntegrityError: there is no such engine or setting.
    """
    return from_record(Engine, item.engine).within(threads)


class Loaded:
    """An open bundle: a callable with the model's own inputs and outputs.

    Attributes:
        manifest: What the bundle states.
        not_certified: Why what was certified, or measured of an exact model, doesn't hold here;
            empty where it does.

    Args:
        request: The inputs of one request, every size settled.
        certified: The inputs of one request that a certificate covers; empty for any.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: Session,
        close: contextlib.ExitStack,
        notes: Sequence[str],
        request: Sequence[TensorSpec],
        certified: Sequence[TensorSpec] = (),
    ) -> None:
        self.manifest = manifest
        self.not_certified = tuple(notes)
        self._session = session
        self._close = close
        self._request = tuple(request)
        self._names = tuple(spec.name for spec in session.inputs)
        self._only = session.inputs[0] if len(session.inputs) == 1 else None
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
            CandidateError: the engine failed.
        """
        only = self._only
        if only is not None and len(arrays) == 1 and type(arrays[0]) is np.ndarray and not named:
            array = arrays[0]
            if array.flags.c_contiguous:
                if array.shape == self._seen and array.dtype == self._dtype:
                    return self._session.run({only.name: array})  # checked when it first came
                if only.fits(array):
                    self._warn_of({only.name: array})
                    self._seen = array.shape
                    return self._session.run({only.name: array})
        tensors = self._tensors(arrays, named)
        self._warn_of(tensors)
        return self._session.run(tensors)

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
        check_tensors(tensors, self._session.inputs)
        return tensors

    def _warn_of(self, tensors: Mapping[str, Array]) -> None:
        """Say once that requests have another shape than the certified ones: another batch size."""
        for name, shape in self._certified.items():
            if tensors[name].shape != shape:
                self._certified = {}
                note = f"{name} of shape {list(shape)} there, {list(tensors[name].shape)} here"
                self.not_certified += (note,)
                warnings.warn(f"not certified here: {note}", NotCertifiedHere, stacklevel=3)
                return

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a request brings; open dimensions have names."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gets back."""
        return self._session.outputs

    @property
    def batch_sizes(self) -> tuple[int, ...] | None:
        """The batch sizes that it takes, or None where any will do."""
        return self._session.batch_sizes

    @property
    def request(self) -> tuple[TensorSpec, ...]:
        """The inputs of one request as they were certified, every size settled."""
        return self._request

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Answer a request that was checked already: arrays by name, C-contiguous, as `inputs` says.

        Raises:
            CandidateError: the engine failed.
        """
        return self._session.run(tensors)

    def properties(self) -> Mapping[str, str]:
        """What the engine says that it does; of a cascade also how many answers were asked again.

        A share that grows says that inputs drift from those that it was certified on.
        """
        return self._session.properties()

    def close(self) -> None:
        """Free the engine."""
        self._close.close()

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
) -> Loaded:
    """Check a bundle and open its model on the engine that it names.

    Args:
        path: The bundle's folder.
        which: The winner, or the exact model that it was compared to.
        custom_ops: The libraries with the user's own operators, the same files as at the making.
        threads: How many to run on at most; by default as many as it was made for.

    Raises:
        InputError: no bundle, or it holds no exact model, or the engine isn't installed.
        CandidateError: the engine can't open the model here.
        IntegrityError: damaged, truncated, tampered with, or from a newer version.

    Warns:
        NotCertifiedHere: this machine or engine version isn't what was certified, or it has fewer
            threads to give; a call warns once where its shapes aren't.
        MeasuredElsewhere: the same of an exact model, whose answers hold everywhere.
    """
    from hasten.measure.environment import environment

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
    notes = differences(manifest, here, environment(here, of=distributions(item.engine)), item)
    exact = which == "exact" or manifest.status == "exact"
    if manifest.status == "uncertified" and not exact:
        notes.insert(0, manifest.why)
    if notes:
        kind = MeasuredElsewhere if exact else NotCertifiedHere
        warnings.warn(_warning(notes, exact=exact), kind, stacklevel=2)
    closing = contextlib.ExitStack()
    artifact = artifact_of(folder, item, manifest, custom_ops)
    session = closing.enter_context(engine.open(artifact, here.with_threads(threads)))
    judged = which == "winner" and manifest.status == "certified"
    return Loaded(
        manifest, session, closing, notes, artifact.request, artifact.request if judged else ()
    )


def _warning(notes: Sequence[str], *, exact: bool) -> str:
    """What a warning says of a machine that isn't the bundle's own."""
    if not exact:
        return f"not certified here: {'; '.join(notes)}"
    return (
        f"measured elsewhere: {'; '.join(notes)}; the answers are exact here too, within the tolerance, "
        "but another version may be the fastest: run hasten optimize here to know"
    )
