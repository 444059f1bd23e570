"""Profiles of where a request's time goes, step by step, on each engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from hasten.bundle import artifact_of, engine_of, kept_requests, read, unpacked
from hasten.bundle.packing.names import is_packed
from hasten.core.model import Model
from hasten.core.presence import is_folder
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine
from hasten.engines.installed import engine_kinds
from hasten.engines.layers import LayerTime, summarize
from hasten.errors import CandidateError, InputError
from hasten.inputs.chains import is_chain, models_in_words
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.requests import (
    MADE_UP,
    SAMPLES,
    first_requests,
    first_samples,
    random_requests,
    telling,
)
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.models.source import (
    find_model,
    load_model,
    load_with_data,
    pipeline_around,
)
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.latency import Pace
from hasten.measure.workbench import REQUESTS, Bench

__all__ = ["Profile", "profile", "remarks", "summarize"]

Role: TypeAlias = Literal["model", "winner", "exact"]
_NAMED = 3
"""Largest number of steps that a remark names, of the longest ones."""


@dataclass(frozen=True)
class Profile:
    """Where one model spends its time on one engine.

    Attributes:
        role: "model"; for a bundle "winner" or "exact".
        label: Label of the model, for people.
        threads: Number of threads of the engine.
        requests: Origin of the requests: the data, the bundle, or made up.
        layers: Steps in the order of execution; empty where profiling failed.
        latency_ns: Latencies of whole requests in a row, without a profiler, in nanoseconds.
        failed: Reason why there is no profile; "" where there is one.
    """

    role: Role
    label: str
    threads: int
    requests: str
    layers: tuple[LayerTime, ...] = ()
    latency_ns: tuple[int, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class _Subject:
    """A subject to profile: a model for an engine to build, or an artifact."""

    role: Role
    label: str
    engine: Engine
    made: Model | Artifact


def profile(
    model: Any,
    *,
    data: Any = None,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    requests: int = REQUESTS,
    seed: int = 0,
    pipeline: Pipeline | None = None,
    custom_ops: Sequence[Path] = (),
    trust_code: bool = False,
) -> tuple[Profile, ...]:
    """Time each step of a model on every engine, or of the winner and the exact model of a bundle.

    Args:
        model: Model in any form that `optimize` takes, or the folder of a bundle.
        data: Requests, in any form that `optimize` takes. By default those that the bundle keeps;
            without any, made-up ones, which the result says.
        engines: Names of the runtimes for a model; by default all that have a profiler. A bundle
            states its own.
        threads: Number of threads of each engine; by default all that this process may use, and no
            more than the bundle was made for.
        requests: Number of requests to time, after some that aren't timed.
        seed: Seed of made-up requests.
        pipeline: Steps from a file to the model's input, for a folder of images or of sounds.
        custom_ops: Paths of libraries with the model's own operators.
        trust_code: Whether code that a model's folder or file brings may run.

    Returns:
        A profile of each model and engine, with the time of each step in nanoseconds.

    Raises:
        InputError: the model, the data or an option can't be used.
        CandidateError: every engine failed.
    """
    if isinstance(model, (str, os.PathLike)) and is_chain(model):
        raise InputError(
            f"{os.fspath(model)} is a chain: profile its bundles one by one ({models_in_words(model)}); "
            f"hasten bench {os.fspath(model)} --end-to-end --data FOLDER shows where a chain's time goes"
        )
    target = _target(threads)
    if requests < 1:
        raise InputError(f"a profile takes at least one request; got requests={requests}")
    with tempfile.TemporaryDirectory(prefix="hasten-profile-") as work:
        place = Path(work)
        if isinstance(model, (str, os.PathLike)) and (_is_bundle(Path(model)) or is_packed(model)):
            if engines:
                raise InputError(
                    f"{model} is a bundle, which names its own engine: leave the engine out"
                )
            if pipeline is not None:
                raise InputError(
                    f"{model} is a bundle, which has its own pipeline or none: leave the pipeline out"
                )
            bench, subjects, (dataset, said) = _of_bundle(
                unpacked(model), data, target, seed, custom_ops, place
            )
        else:
            given = find_model(model, trust_code=trust_code)
            source, (dataset, said) = _read(given, data, seed, pipeline, custom_ops, place)
            bench = _bench(place, target, source.path)
            subjects = [
                _Subject("model", engine.label(""), engine, source)
                for engine in (next(kind.variants(target)) for kind in _kinds(engines))
            ]
        samples = write_spool(dataset, place / "requests")
        found = tuple(_profiles(subjects, bench, samples, requests, said))
    if all(one.failed for one in found):
        raise CandidateError("; ".join(f"{one.label}: {one.failed}" for one in found))
    return found


def _kinds(engines: Sequence[str] | None) -> list[type[Engine]]:
    """Return the engines that were asked for, or all that have a profiler."""
    return engine_kinds(engines) if engines else [k for k in engine_kinds() if k.has_profiler()]


def _is_bundle(path: Path) -> bool:
    """Whether a path is a folder and not one of a model, as Hugging Face and TensorFlow have them."""
    models = ("config.json", "saved_model.pb")
    return is_folder(path) and not any((path / name).is_file() for name in models)


def _target(threads: int | None) -> Target:
    host = Target.host()
    if threads is None:
        return host
    if not 1 <= threads <= host.threads:
        raise InputError(
            f"the number of threads is from 1 to {host.threads}, which this process may use; got "
            f"{threads}"
        )
    return host.with_threads(threads)


def _bench(place: Path, target: Target, original: Path | None) -> Bench:
    return Bench(place, target, memory_bytes=target.memory_bytes // 2, original=original)


def _of_bundle(
    folder: Path, data: Any, target: Target, seed: int, custom_ops: Sequence[Path], place: Path
) -> tuple[Bench, list[_Subject], tuple[Dataset, str]]:
    """Return the models that a bundle holds, requests for them, and the origin of the requests."""
    manifest = read(folder)
    target = target.with_threads(min(target.threads, manifest.target.threads))
    held: dict[Role, Any] = {"winner": manifest.winner}
    if manifest.exact not in (None, manifest.winner):
        held["exact"] = manifest.exact
    subjects = [
        _Subject(
            role,
            part.label,
            engine_of(part, target.threads, manifest.environment),
            artifact_of(folder, part, manifest, custom_ops),
        )
        for role, part in held.items()
    ]
    artifacts = [one.made for one in reversed(subjects) if isinstance(one.made, Artifact)]
    known = (artifact.path for artifact in artifacts if artifact.path.suffix == ".onnx")
    winner = artifacts[-1]
    kept = kept_requests(folder, manifest)
    found = first_requests(data, winner.inputs, winner.request, manifest.pipeline, kept, seed)
    return _bench(place, target, next(known, None)), subjects, found


def _read(
    found: Any,
    data: Any,
    seed: int,
    pipeline: Pipeline | None,
    custom_ops: Sequence[Path],
    place: Path,
) -> tuple[Model, tuple[Dataset, str]]:
    """Return a model that `find_model` returned, settled for its requests, with the requests and their origin."""
    if data is None:
        source = _settled(load_model(found, None, place, custom_ops))
        return source, (random_requests(source.request, seed), MADE_UP)
    source, dataset = load_with_data(
        found, data, pipeline_around(found, pipeline), custom_ops, place
    )
    sample = {name: array[0] for name, array in dataset.inputs([0]).items()}
    return source.settled_by(sample), (first_samples(dataset), SAMPLES)


def _settled(model: Model) -> Model:
    """Settle a model's request without data, which works only for an open batch axis."""
    sample = {}
    for spec in model.inputs:
        if any(isinstance(size, str) for size in spec.shape[1:]):
            raise InputError(
                f"{spec} has open dimensions besides the batch: give data, so that "
                "their sizes are known"
            )
        batched = bool(spec.shape) and (isinstance(spec.shape[0], str) or spec.shape[0] == 1)
        shape = [int(size) for size in spec.shape[1 if batched else 0 :]]
        sample[spec.name] = np.broadcast_to(np.zeros((), spec.dtype), shape)
    return model.settled_by(sample)


def _profiles(
    subjects: Sequence[_Subject], bench: Bench, samples: Spool, requests: int, said: str
) -> Iterator[Profile]:
    """Profile subjects one after another; a failure of one leaves the others alone."""
    for number, subject in enumerate(subjects):
        facts = (subject.role, subject.label, bench.target.threads, said)
        try:
            made = subject.made
            if isinstance(made, Model):
                made = bench.build(subject.engine, made, bench.folder / f"built{number}")
            whole_ns = _whole(bench, subject.engine, made, samples, said)
            layers = bench.profile(subject.engine, made, samples, requests=requests)
        except CandidateError as error:
            yield Profile(*facts, failed=str(error))
        else:
            yield Profile(*facts, layers, whole_ns)


def _whole(
    bench: Bench, engine: Engine, artifact: Artifact, samples: Spool, said: str
) -> tuple[int, ...]:
    """Time whole requests, in nanoseconds; a failure says so if the requests were made up."""
    pace = Pace()
    with bench.open_built(engine, artifact).worker as worker, telling(said):
        return tuple(
            worker.ask(
                "time",
                limit_s=pace.limit_s,
                samples=samples.folder,
                first=0,
                warmup_ns=pace.warmup_ns,
                block_ns=pace.block_ns,
                at_least=pace.at_least,
                at_most=pace.at_most,
            )
        )


def remarks(layers: Sequence[LayerTime]) -> list[str]:
    """Return remarks on what a reader may not expect: steps of a quantized model not in int8."""
    breakdown = summarize(layers)
    products = [layer for layer in breakdown.slowest if layer.kind == "arithmetic"]
    left = [layer for layer in products if layer.precision != "i8"]
    if not 0 < len(left) < len(products):
        return []
    time_ns = sum(layer.median_ns for layer in left)
    share = time_ns / breakdown.latency_ns if breakdown.latency_ns else 0.0
    names = ", ".join(" + ".join(layer.sources) or layer.name for layer in left[:_NAMED])
    more = ", ..." if len(left) > _NAMED else ""
    return [
        f"{len(left)} of {len(products)} arithmetic steps don't run in int8, {share:.0%} of the "
        f"time: {names}{more}"
    ]
