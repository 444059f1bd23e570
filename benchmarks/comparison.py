"""A bundle beside what somebody types without hasten: accuracy, paired rounds, and the floor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rivals
from models import Subject

from hasten.bundle import artifact_of, engine_of, read
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.telemetry import telemetry_off
from hasten.engines.base import Artifact, Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.python_function import PythonFunction
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.requests import first_samples
from hasten.inputs.data.splits import split
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics.base import Metric
from hasten.inputs.models import onnx as onnx_frontend
from hasten.measure import ceilings
from hasten.measure.accuracy import sealed_scores
from hasten.measure.effort import EFFORTS
from hasten.measure.intervals import Ratio, paired_ratio, quantile
from hasten.measure.journal import Journal
from hasten.measure.probe import usable_threads
from hasten.measure.race import AGAIN, BASELINE, NotEstablished, Rules, Standings, race
from hasten.measure.roofline import Floor, floor
from hasten.measure.work import work
from hasten.measure.workbench import Bench, OpenWorker
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.silence import first_line, silenced

HASTEN = "hasten"
UNTUNED = ("ONNX Runtime, untuned", "OpenVINO, untuned")
RECIPES = ("ONNX Runtime's static int8", "NNCF's int8 on OpenVINO")
CALIBRATION, SEED = 300, 0
"""As `hasten.optimize` has them: the rivals calibrate on the same samples."""


@dataclass(frozen=True)
class Version:
    """One version of a model: what runs it, and what it opens."""

    engine: Engine
    artifact: Artifact


@dataclass(frozen=True)
class Figures:
    """What was measured of one version.

    Attributes:
        score: Mean score on the sealed samples; None where that says nothing.
        drop: The mean of how far each score fell below the original's; None as for `score`.
        ratio: Latency over that of ONNX Runtime with its fp32 defaults.
        p50_ns: Median latency of single requests, in nanoseconds.
        over_floor: Median latency over the least time in which this machine could compute the
            original's layers in its fastest precision; None where that can't be told.
        failed: Why there are no figures; "" where there are.
    """

    score: float | None = None
    drop: float | None = None
    ratio: Ratio | None = None
    p50_ns: float | None = None
    over_floor: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Comparison:
    """All versions of one model, from one race.

    Attributes:
        figures: Version -> its figures, the baseline first.
        standings: The race's raw rounds.
        sealed: Number of samples that were scored; 0 where none was.
        floor_ns: Least time for one request on this machine; None where it can't be told.
        notes: Sentences that stand below the table.
    """

    figures: dict[str, Figures]
    standings: Standings
    sealed: int
    floor_ns: float | None
    notes: tuple[str, ...] = ()

    def over(
        self, names: tuple[str, ...], max_drop: float = float("inf")
    ) -> tuple[str, Ratio] | None:
        """Return the fastest of some that lost at most so much, and hasten's latency over its."""
        timed = {
            name: one.ratio.estimate
            for name in names
            if (one := self.figures[name]).ratio is not None and (one.drop or 0.0) <= max_drop
        }
        if not timed or self.figures[HASTEN].ratio is None:
            return None
        best = min(timed, key=lambda name: timed[name])
        rounds, statistic = self.standings.rounds, self.standings.statistic_of(HASTEN)
        return best, paired_ratio(rounds[HASTEN], rounds[best], statistic)


def compare(subject: Subject, model: Path, bundle: Path, folder: Path) -> Comparison:
    """Quantize as the toolkits do by default, then score and time everything side by side.

    Args:
        subject: The network that the bundle was made of, with its data.
        model: The exported ONNX file.
        bundle: Folder of the bundle that hasten made.
        folder: Empty folder to work in.
    """
    data = subject.data()
    splits = split(data, calibration=CALIBRATION, seed=SEED, training=subject.training())
    source = onnx_frontend.load(model).settled_by(
        {name: array[0] for name, array in data.inputs([0]).items()}
    )
    versions, failed = _prepared(source, splits.calibration, folder)
    manifest = read(bundle)
    versions[HASTEN] = Version(
        engine_of(manifest.winner, Target.host().threads),
        artifact_of(bundle, manifest.winner, manifest, ()),
    )
    bench = Bench(folder, Target.host(), memory_bytes=Target.host().memory_bytes // 2)
    scores: dict[str, tuple[float, float]] = {}
    if subject.real:
        scores = _scored(bench, versions, splits.sealed, subject.metric, failed)
    standings, notes = _raced(bench, versions, splits.sealed, failed)
    least, reason = _floor(source, splits.calibration, bench, standings.threads)
    names = (BASELINE, *UNTUNED, *RECIPES, HASTEN)
    return Comparison(
        {name: _figures(name, standings, scores, failed, least) for name in names},
        standings,
        len(splits.sealed) if scores else 0,
        None if least is None else least.floor_ns,
        (*notes, *([reason] if reason else [])),
    )


def _prepared(
    source: Model, calibration: Dataset, folder: Path
) -> tuple[dict[str, Version], dict[str, str]]:
    """Lay out what the rivals answer from; a recipe that fails is a result too."""
    place = folder / "rivals"
    place.mkdir()
    os.environ[rivals.FOLDER] = str(place)
    plain = OnnxRuntime().build(source, Target.host(), place)
    plain = replace(plain, path=plain.path.rename(place / rivals.MODEL))
    exact, static = Version(OnnxRuntime(), plain), place / rivals.STATIC
    calls = [
        Version(PythonFunction(f"{rivals.__file__}:{name}"), plain)
        for name in ("onnxruntime", "openvino", "openvino_int8")
    ]
    versions = {BASELINE: exact, AGAIN: exact, UNTUNED[0]: calls[0], UNTUNED[1]: calls[1]}
    made = (
        (
            RECIPES[0],
            rivals.static_int8,
            static,
            replace(exact, artifact=replace(plain, path=static)),
        ),
        (RECIPES[1], rivals.nncf_int8, place / rivals.NNCF, calls[2]),
    )
    failed: dict[str, str] = {}
    for name, recipe, out, version in made:
        try:
            with silenced(), telemetry_off():
                recipe(plain.path, CalibrationRequests(source, calibration, CALIBRATION), out)
            versions[name] = version
        except Exception as error:  # whatever a toolkit raises is what its user would see
            failed[name] = f"it can't be quantized: {first_line(error)}"
    return versions, failed


@contextmanager
def _opened(
    bench: Bench, versions: dict[str, Version], failed: dict[str, str]
) -> Iterator[dict[str, OpenWorker]]:
    """Open each version that hasn't failed, and end them all; one that can't be opened is noted."""
    opened: dict[str, OpenWorker] = {}
    try:
        for name, version in versions.items():
            if name not in failed:
                try:
                    opened[name] = bench.open_built(version.engine, version.artifact)
                except CandidateError as error:
                    failed[name] = str(error)
        yield opened
    finally:
        for one in opened.values():
            one.worker.kill()


def _scored(
    bench: Bench,
    versions: dict[str, Version],
    sealed: Dataset,
    metric: Metric,
    failed: dict[str, str],
) -> dict[str, tuple[float, float]]:
    """Return each version's mean score, and how far it is below the original's."""
    with _opened(bench, versions, failed) as opened:
        rest = {name: one for name, one in opened.items() if name not in (BASELINE, AGAIN)}
        own, others = sealed_scores(bench, opened[BASELINE], rest, sealed, metric)
    found = {BASELINE: (float(own.mean()), 0.0)}
    for name, scores in others.items():
        if isinstance(scores, str):
            failed[name] = scores
        else:
            found[name] = (float(scores.mean()), float(np.mean(own - scores)))
    return found


def _raced(
    bench: Bench, versions: dict[str, Version], sealed: Dataset, failed: dict[str, str]
) -> tuple[Standings, list[str]]:
    """Take turns on as many threads as the host gives its cores, else on one."""
    samples = write_spool(first_samples(sealed), bench.folder / "requests")
    asked = bench.target.threads
    usable, effort = usable_threads(asked), EFFORTS["normal"]
    notes = [f"{asked} threads: not established, one thread is quoted"] if usable < asked else []
    for threads in dict.fromkeys((usable, 1)):
        at = replace(bench, target=bench.target.with_threads(threads))
        with _opened(at, versions, failed) as opened:
            try:
                standings = race(
                    f"figures/{threads}",
                    {name: one.worker for name, one in opened.items()},
                    samples,
                    Journal(bench.folder / "journal.jsonl"),
                    Rules(
                        threads=threads,
                        count=effort.final_rounds,
                        pace=effort.pace("p50"),
                        seed=SEED,
                        settle=effort.settle,
                        uneven={name for name, one in versions.items() if one.engine.uneven},
                    ),
                )
            except NotEstablished as why:
                notes.append(f"{threads} threads: not established, one thread is quoted: {why}")
            else:
                failed.update(standings.failed)
                return standings, notes
    raise AssertionError("one thread needs no probe")


def _floor(
    source: Model, calibration: Dataset, bench: Bench, threads: int
) -> tuple[Floor | None, str]:
    """Return the least that this machine could do the original's layers in, or why it isn't known."""
    try:
        found = ceilings.measure(bench.target.with_threads(threads), bench.folder)
        least = floor(work(source, CalibrationRequests(source, calibration, 1)[0]), found)
        least.check_whole()
        return least, ""
    except CandidateError as error:
        return None, f"no floor: {error}"


def _figures(
    name: str,
    standings: Standings,
    scores: dict[str, tuple[float, float]],
    failed: dict[str, str],
    least: Floor | None,
) -> Figures:
    score, drop = scores.get(name, (None, None))
    if name in failed or not standings.stands(name):
        return Figures(score, drop, failed=failed.get(name, "it fell out of the rounds"))
    p50_ns = quantile(standings.rounds[name], 0.5).value_ns
    return Figures(
        score,
        drop,
        standings.ratio(AGAIN if name == BASELINE else name),
        p50_ns,
        None if least is None else least.ratio(p50_ns, standings.threads),
    )
