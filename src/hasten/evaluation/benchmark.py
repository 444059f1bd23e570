"""Comparison of a bundle with what is deployed today: fresh, paired rounds, with an interval."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle import Manifest, Part, artifact_of, engine_of, kept_requests, read, unpacked
from hasten.core.devices import at_hand, check_measurable
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.core.words import amount
from hasten.engines.base import Artifact, Engine
from hasten.engines.end_to_end import STAGES, EndToEnd, asked_by_file
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.python_function import PythonFunction
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.images import SUFFIXES
from hasten.inputs.data.requests import first_requests, telling
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.models import onnx as onnx_frontend
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.effort import Effort, effort_of
from hasten.measure.journal import Journal
from hasten.measure.probe import disturbance, on_one_thread, probe_of, usable_threads
from hasten.measure.process import Worker
from hasten.measure.race import AGAIN, BASELINE, NotEstablished, Rules, Standings, race
from hasten.measure.workbench import Bench
from hasten.reporting.card import Card, latency_bars, times
from hasten.reporting.notebook import as_html
from hasten.reporting.result import UNEVEN, Row, row

_CANDIDATE = "bundle"
_FILES = 64
"""Number of files that are timed, in turns."""
_LIMIT_S = 60.0
WITHIN = (
    "the bundle's time includes the normalization of pixels, which its model does itself; the "
    "other model gets pixels that are already normalized, and its time leaves that work out"
)
"""Note on a comparison in which only the bundle's model does the end of the pipeline itself."""


@dataclass(frozen=True)
class _Rival:
    """One of the two models that are compared.

    Attributes:
        label: Label of the model, for people.
        engine: Engine that runs the model.
        artifact: Artifact that the engine opens; for a function the bundle's, which has the inputs
            and outputs.
        uneven: Whether requests differ so much in cost that only the mean tells.
        samples: Requests in the form that the model takes, where it isn't the bundle's.
    """

    label: str
    engine: Engine
    artifact: Artifact
    uneven: bool = False
    samples: Spool | None = None


EXACT, GIVEN = "exact model", "given model"
"""Roles of what a bundle is compared with: its own exact model, or what `against` names."""


@dataclass(frozen=True)
class Stage:
    """Part of the way from a file's bytes to the decision.

    Attributes:
        name: Name of the pipeline's step, or "model".
        p50_ns: Median latency, in nanoseconds.
        p99_ns: 99th percentile of the latencies, in nanoseconds.
        share: Share of the whole way's time.
    """

    name: str
    p50_ns: float
    p99_ns: float
    share: float


@dataclass(frozen=True)
class Comparison:
    """A bundle's latency beside that of another model.

    Attributes:
        against: Row of the other model, whose ratio is its twin's: the effect of noise.
        bundle: Row of the bundle, whose ratio is its latency divided by the other model's.
        threads: Number of threads of each.
        requests: Origin of the requests: the data, the bundle, or made up.
        notes: Further notes for the reader.
        stages: Stages of the bundle's way from bytes to decision; empty where only models are
            compared.
        stages_against: Stages of the other model's way; empty for a function, which does all by
            itself.
    """

    against: Row
    bundle: Row
    threads: int
    requests: str
    notes: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    stages_against: tuple[Stage, ...] = ()

    @property
    def speedup(self) -> float:
        """Return how many times faster the bundle is."""
        return self.bundle.speedup

    def _repr_html_(self) -> str:
        """Return the comparison as a card, for notebooks."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        rows = (
            ("speed", times(self.bundle.ratio, f"that of {self.against.label}")),
            ("noise", times(self.against.ratio, "between two runs of one model")),
            ("with", f"{threads}, one sample in a request"),
            ("requests", self.requests),
        )
        ratio = self.bundle.ratio
        faster = "is faster" if ratio.high < 1 else "is slower" if ratio.low > 1 else "is as fast"
        return as_html(
            Card(
                f"The bundle {faster}: {1 / ratio.estimate:.2f}x",
                good=ratio.high < 1,
                rows=rows,
                notes=self.notes,
                bars=latency_bars(self.against, self.bundle),
            )
        )


def bench(
    bundle: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    data: Any = None,
    rounds: int | None = None,
    effort: str | Effort = "normal",
    seed: int = 0,
    custom_ops: Sequence[Path] = (),
    end_to_end: bool = False,
    pipeline: Pipeline | None = None,
) -> Comparison:
    """Compare a bundle with an .onnx file on ONNX Runtime's defaults, or with a Python function.

    Args:
        bundle: Folder of the bundle.
        against: Path of an .onnx file, or "file.py:predict", which is called with the inputs as
            arrays in the model's order. By default the exact model that the bundle holds.
        data: Requests, in any form that `optimize` takes. By default those that the bundle keeps;
            where it keeps none, made-up ones, which the result says.
        rounds: Number of rounds to count; by default the effort's.
        effort: "quick", "normal", "thorough", or an `Effort`, for the lengths of turns and rounds.
        seed: Seed of the orders.
        custom_ops: Paths of libraries with the model's own operators.
        end_to_end: Whether to compare the whole way from a file's bytes to the decision. `data` is a
            folder of the files then, and a function gets a file's bytes.
        pipeline: Steps before and after the model that the bundle is compared with, where they
            aren't the bundle's own; only with `end_to_end`.

    Returns:
        The latencies of both, and their ratio.

    Raises:
        InputError: the bundle, the other model or the data can't be used.
        CandidateError: one of the models failed.
    """
    if pipeline is not None and not end_to_end:
        raise InputError(
            "pipeline= is for a comparison from bytes to decision: add end_to_end=True"
        )
    tries = effort_of(effort)
    if rounds is not None:
        tries = replace(tries, final_rounds=rounds)
    folder = unpacked(bundle)
    manifest = read(folder)
    target = at_hand(manifest.target)
    check_measurable(target)
    winner = _held(folder, manifest.winner, manifest, custom_ops)
    with tempfile.TemporaryDirectory(prefix="hasten-bench-") as work:
        place = Path(work)
        files = files_of(data) if end_to_end else ()
        if end_to_end and manifest.pipeline is None:
            raise InputError(f"{folder} was made from arrays: it has no pipeline to measure")
        requests, said = first_requests(
            None if end_to_end else data,
            winner.artifact.inputs,
            winner.artifact.request,
            manifest.pipeline,
            kept_requests(folder, manifest),
            seed,
        )
        samples = write_spool(requests, place / "requests")
        other = _against(against, folder, manifest, samples, custom_ops, place)
        if manifest.pipeline is not None and end_to_end:
            winner = _whole(winner, manifest.pipeline, files)
            own = manifest.pipeline if other.samples is None else manifest.pipeline.whole
            other = _whole(other, own if pipeline is None else pipeline.behind(own), files)
            numbers = ArrayDataset({"file": np.arange(len(files))})
            samples, said = (
                write_spool(numbers, place / "numbers"),
                f"{amount(len(files), 'file')} of {data}",
            )
        with telling(said):
            standings, notes, stages = _raced(other, winner, samples, place, tries, seed, target)
            if not standings.stands(_CANDIDATE):
                raise CandidateError(f"the bundle failed: {standings.failed[_CANDIDATE]}")
        if other.samples is not None:
            notes.append(WITHIN)
        if winner.uneven:
            notes.append(UNEVEN.format(winner.label))
        return Comparison(
            against=_row(EXACT if against is None else GIVEN, other, standings, AGAIN),
            bundle=_row("bundle", winner, standings, _CANDIDATE),
            threads=standings.threads,
            requests=said,
            notes=tuple(notes),
            stages=stages.get(_CANDIDATE, ()),
            stages_against=stages.get(BASELINE, ()),
        )


def _held(folder: Path, part: Part, manifest: Manifest, custom_ops: Sequence[Path]) -> _Rival:
    """Return one of the models that the bundle holds."""
    artifact = artifact_of(folder, part, manifest, custom_ops)
    engine = engine_of(part, Target.host().threads)
    return _Rival(part.label, engine, artifact, engine.uneven)


def files_of(data: Any) -> tuple[Path, ...]:
    """Return the files of a folder of samples, as many as are timed; its images, where it has some.

    Raises:
        InputError: there is no such folder, or it has no files.
    """
    if not isinstance(data, (str, os.PathLike)) or not Path(data).is_dir():
        raise InputError(
            "a comparison from bytes to decision needs the files that samples come in: give a folder "
            f"as data; got {data!r:.100}"
        )
    folder = Path(data)
    listed = sorted(
        file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")
    )
    files = [file for file in listed if file.suffix.lower() in SUFFIXES] or listed
    if not files:
        raise InputError(f"{folder} has no files")
    return tuple(files[place] for place in np.linspace(0, len(files) - 1, _FILES).astype(int))


def _whole(rival: _Rival, pipeline: Pipeline, files: tuple[Path, ...]) -> _Rival:
    """Return a rival that is asked for the whole way from a file's bytes to the decision."""
    function = isinstance(rival.engine, PythonFunction)
    inputs = (TensorSpec("raw", "uint8", ("size",)),) if function else rival.artifact.inputs
    engine = EndToEnd(
        rival.engine, None if function else pipeline, files, inputs, rival.artifact.request
    )
    return _Rival(rival.label, engine, asked_by_file(rival.artifact), rival.uneven)


def _against(
    against: str | os.PathLike[str] | None,
    folder: Path,
    manifest: Manifest,
    samples: Spool,
    custom_ops: Sequence[Path],
    place: Path,
) -> _Rival:
    """Return the model to compare the bundle with."""
    if against is None:
        if manifest.exact is None:
            raise InputError(
                f"{folder} has no exact model: say what to compare it with in against="
            )
        return _held(folder, manifest.exact, manifest, custom_ops)
    text = os.fspath(against)
    unfolded = _unfolded(manifest, samples, place / "unfolded")
    own = unfolded or samples
    if ":" in text and not Path(text).exists():
        winner = artifact_of(folder, manifest.winner, manifest, custom_ops)
        if unfolded is not None:
            ((name, first),) = unfolded.inputs([0]).items()
            spec = TensorSpec(name, str(first.dtype), (winner.inputs[0].shape[0], *first.shape[1:]))
            request = replace(spec, shape=first.shape)
            winner = replace(winner, inputs=(spec,), request=(request,))
        return _Rival(text, PythonFunction(text), winner, samples=unfolded)
    if text.endswith(".py"):
        raise InputError(f"{text} is a Python file: also name the function in it, {text}:predict")
    model = onnx_frontend.load(Path(text), custom_ops)
    if unfolded is not None and model.inputs[0].dtype == "uint8":
        unfolded, own = None, samples  # it does the same steps itself
    model = model.settled_by({name: array[0] for name, array in own.inputs([0]).items()})
    engine = OnnxRuntime()
    (place / "rival").mkdir()
    artifact = engine.build(model, Target.host(), place / "rival")
    return _Rival(f"{text}, {engine.words()}", engine, artifact, samples=unfolded)


def _unfolded(manifest: Manifest, samples: Spool, folder: Path) -> Spool | None:
    """Return the requests as a model takes them that doesn't do the bundle's folded steps itself.

    None where nothing was folded into the bundle's model.
    """
    pipeline = manifest.pipeline
    if pipeline is None or not pipeline.folded:
        return None
    rest = Pipeline(pipeline.folded)
    (name,) = samples.names
    pixels = samples.inputs(range(len(samples)))[name]
    return write_spool(ArrayDataset({name: np.stack([rest(one) for one in pixels])}), folder)


def _raced(
    other: _Rival,
    winner: _Rival,
    samples: Spool,
    place: Path,
    effort: Effort,
    seed: int,
    target: Target,
) -> tuple[Standings, list[str], dict[str, tuple[Stage, ...]]]:
    """Take turns on as many threads as the host provides.

    Returns:
        The rounds, notes on them, and the stages of each entrant that has some.
    """
    asked = target.threads
    usable = usable_threads(asked)
    notes = []
    if usable < asked:
        notes.append(on_one_thread(asked, "the host is too busy for more"))
    for threads in dict.fromkeys((usable, 1)):
        desk = Bench(place, target.with_threads(threads))
        try:
            probe = probe_of(target)
            standings, stages = _race(other, winner, samples, desk, effort, seed, probe)
            return standings, [*notes, *filter(None, [disturbance(probe)])], stages
        except NotEstablished as why:
            notes.append(on_one_thread(threads, str(why)))
    raise AssertionError("one thread needs no probe")


def _race(
    other: _Rival,
    winner: _Rival,
    samples: Spool,
    desk: Bench,
    effort: Effort,
    seed: int,
    probe: Callable[[int], bool],
) -> tuple[Standings, dict[str, tuple[Stage, ...]]]:
    entrants: dict[str, Worker] = {}
    try:
        for name, rival in ((BASELINE, other), (AGAIN, other), (_CANDIDATE, winner)):
            entrants[name] = desk.open_built(rival.engine, rival.artifact).worker
        standings = race(
            f"bench/{desk.target.threads}",
            entrants,
            samples,
            Journal(desk.folder / "journal.jsonl"),
            Rules(
                threads=desk.target.threads,
                count=effort.final_rounds,
                pace=effort.pace("p50"),
                seed=seed,
                settle=effort.settle,
                uneven={
                    name
                    for name, rival in ((AGAIN, other), (_CANDIDATE, winner))
                    if rival.uneven or samples.ragged
                },
            ),
            own_samples={}
            if other.samples is None
            else dict.fromkeys((BASELINE, AGAIN), other.samples),
            probe=probe,
        )
        return standings, {name: _stages(worker) for name, worker in entrants.items()}
    finally:
        for worker in entrants.values():
            worker.kill()


def _stages(worker: Worker) -> tuple[Stage, ...]:
    """Return the stages of an entrant, in order; none for an engine that has none."""
    properties = worker.ask("properties", limit_s=_LIMIT_S)
    kept: dict[str, list[int]] = json.loads(properties.get(STAGES, "{}"))
    whole = sum(map(sum, kept.values()))
    return tuple(
        Stage(
            name,
            float(np.median(spans)),
            float(np.quantile(spans, 0.99)),
            sum(spans) / max(1, whole),
        )
        for name, spans in kept.items()
    )


def _row(role: str, rival: _Rival, standings: Standings, name: str) -> Row:
    return row(
        role,
        rival.label,
        standings.rounds[name],
        standings.rounds[BASELINE],
        size_bytes=None
        if isinstance(_inner(rival.engine), PythonFunction)
        else rival.artifact.size_bytes,
        accuracy="",
        statistic=standings.statistic_of(name),
    )


def _inner(engine: Engine) -> Engine:
    return engine.inner if isinstance(engine, EndToEnd) else engine
