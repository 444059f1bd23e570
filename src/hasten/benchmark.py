"""A bundle against what is deployed today: paired rounds, fresh, with an interval."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle import artifact_of, read
from hasten.data.arrays import ArrayDataset
from hasten.data.dataset import Dataset, Subset
from hasten.data.source import open_data
from hasten.data.spool import write_spool
from hasten.engines.base import Artifact, Engine
from hasten.engines.onnxruntime import OnnxRuntime
from hasten.engines.python_function import PythonFunction
from hasten.errors import CandidateError, InputError
from hasten.frontends import onnx as onnx_frontend
from hasten.measure.latency import Pace
from hasten.measure.probe import usable_threads
from hasten.measure.process import Worker
from hasten.measure.workbench import Bench
from hasten.pipeline.base import Pipeline
from hasten.records import from_record
from hasten.result import Row, row
from hasten.run import FINAL_ROUNDS, SETTLED
from hasten.search.journal import Journal
from hasten.search.race import AGAIN, BASELINE, NotEstablished, Standings, race
from hasten.target import Target
from hasten.tensors import TensorSpec

_SAMPLES = 64
_CANDIDATE = "bundle"


@dataclass(frozen=True)
class Comparison:
    """A bundle's latency beside something else's.

    Attributes:
        against: Its row, the ratio being its twin's: what noise does.
        bundle: The bundle's row, the ratio over `against`.
        threads: How many each had.
        requests: "samples of the data", or "random numbers" where none was given.
        notes: What the reader should know besides.
    """

    against: Row
    bundle: Row
    threads: int
    requests: str
    notes: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times faster the bundle is."""
        return self.bundle.speedup


def bench(
    bundle: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    data: Any = None,
    rounds: int = FINAL_ROUNDS,
    seed: int = 0,
    custom_ops: Sequence[Path] = (),
) -> Comparison:
    """Compare a bundle with an .onnx file on ONNX Runtime's defaults, or with a Python function.

    Args:
        bundle: Its folder.
        against: An .onnx path, or "file.py:predict", called with the inputs as arrays in the
            model's order. By default the exact model that the bundle holds.
        data: Requests, as `optimize` takes them. Random numbers where None, and labelled so.
        rounds: Rounds to count.
        seed: Of the orders.
        custom_ops: Libraries with operators of the model's own.

    Raises:
        InputError: one of them can't be used.
        CandidateError: one of them failed.
    """
    folder = Path(bundle)
    manifest = read(folder)
    winner = artifact_of(folder, manifest.winner, manifest, custom_ops)
    engine = from_record(Engine, manifest.winner.engine)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hasten-bench-") as work:
        place = Path(work)
        dataset = _requests(data, winner, manifest.pipeline, seed)
        samples = write_spool(dataset, place / "requests")
        asked = Target.host().threads
        usable = usable_threads(asked)
        if usable < asked:
            notes.append(f"{asked} threads: not established, one thread is quoted")
        for threads in dict.fromkeys((usable, 1)):
            desk = Bench(place, Target.host().with_threads(threads))
            label, rival, rival_engine = _rival(against, folder, winner, custom_ops, desk)
            entrants: dict[str, Worker] = {}
            try:
                for name in (BASELINE, AGAIN):
                    entrants[name] = desk.open_built(rival_engine, rival).worker
                entrants[_CANDIDATE] = desk.open_built(engine, winner).worker
                standings = race(
                    f"bench/{threads}",
                    entrants,
                    samples,
                    Journal(place / "journal.jsonl"),
                    threads=threads,
                    count=rounds,
                    pace=Pace(),
                    seed=seed,
                    settle=SETTLED,
                )
                break
            except NotEstablished as why:
                notes.append(f"{threads} threads: not established, one thread is quoted: {why}")
            finally:
                for worker in entrants.values():
                    worker.kill()
        if _CANDIDATE not in standings.rounds:
            raise CandidateError(standings.dropped.get(_CANDIDATE, "the bundle gave no answer"))
        return Comparison(
            against=_row("against", label, standings, AGAIN, rival.size_bytes),
            bundle=_row("bundle", manifest.winner.label, standings, _CANDIDATE, winner.size_bytes),
            threads=standings.threads,
            requests="random numbers" if data is None else "samples of the data",
            notes=tuple(notes),
        )


def _row(role: str, label: str, standings: Standings, name: str, size_bytes: int) -> Row:
    baseline = standings.rounds[BASELINE]
    return row(role, label, standings.rounds[name], baseline, size_bytes=size_bytes, accuracy="")


def _rival(
    against: str | os.PathLike[str] | None,
    folder: Path,
    winner: Artifact,
    custom_ops: Sequence[Path],
    desk: Bench,
) -> tuple[str, Artifact, Engine]:
    """What the bundle is compared to: label, artifact, engine."""
    if against is None:
        manifest = read(folder)
        if manifest.exact is None:
            raise InputError(f"{folder} holds no exact model: say what to compare it --against")
        exact = artifact_of(folder, manifest.exact, manifest, custom_ops)
        return manifest.exact.label, exact, from_record(Engine, manifest.exact.engine)
    text = os.fspath(against)
    if ":" in text and not Path(text).exists():
        function = PythonFunction(text)
        return text, winner, function
    model = onnx_frontend.load(Path(text), custom_ops)
    sample = {spec.name: np.zeros(_sample(spec), spec.dtype) for spec in winner.request}
    engine = OnnxRuntime()
    place = desk.folder / f"rival-{desk.target.threads}"
    place.mkdir()
    artifact = engine.build(model.settled_by(sample), desk.target, place)
    return f"{text}, onnxruntime", artifact, engine


def _requests(data: Any, artifact: Artifact, pipeline: Pipeline | None, seed: int) -> Dataset:
    if data is not None:
        dataset = open_data(data, artifact.inputs, pipeline)
        count = min(len(dataset), _SAMPLES)
        return Subset(dataset, np.arange(count))
    rng = np.random.default_rng(seed)
    return ArrayDataset({spec.name: _random(spec, rng) for spec in artifact.request})


def _sample(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one sample, without the batch axis that one request has."""
    return spec.sizes[1:] if spec.sizes[:1] == (1,) else spec.sizes


def _random(spec: TensorSpec, rng: np.random.Generator) -> Any:
    shape = (_SAMPLES, *_sample(spec))
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)
