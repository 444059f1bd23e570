"""The run for a device that isn't here, top to bottom: make, judge, estimate, freeze, certify, bundle."""

from __future__ import annotations

import contextlib
import datetime
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten import bundle
from hasten.bundle import Manifest, Status
from hasten.candidate import Single, Trial
from hasten.certificate.planning import check_limits
from hasten.certificate.verdict import Guard, Judgement
from hasten.certification import (
    guarded,
    judge_ladder,
    last_certified,
    prior_of,
    sealed_scores,
)
from hasten.choose import Standing, ladder
from hasten.cross_compilation.board import Board
from hasten.cross_compilation.comparison import compare
from hasten.cross_compilation.exploration import explore
from hasten.cross_compilation.fixed_point import FixedPointSearch
from hasten.cross_compilation.training import trainings
from hasten.data.images import ImageFolder
from hasten.data.source import open_data
from hasten.data.spool import Spool, write_spool
from hasten.devices import family_of, find_target
from hasten.engines.estimates import Estimate
from hasten.engines.fixed_point import FixedPointProgram
from hasten.engines.installed import ENGINES, engine_kinds
from hasten.errors import CandidateError, InputError
from hasten.foreseen import Foreseen, Foresight
from hasten.frontends.source import find_model, load_with_data
from hasten.invocation import Invocation, invocation
from hasten.measure.environment import environment, versions
from hasten.measure.intervals import Ratio
from hasten.measure.workbench import Workbench
from hasten.metrics.base import Metric
from hasten.pipeline.base import Pipeline, check_steps
from hasten.pipeline.config import from_module
from hasten.preparation import cleared_up, metric_for, shortfall, warnings
from hasten.progress import Listener, Progress, nobody
from hasten.records import digest, from_record, to_record, type_name
from hasten.result import Asked
from hasten.search.grid import grid
from hasten.search.order import Order
from hasten.target import Target
from hasten.workspace import Parts, check_same_run, claimed, data_digest, lay_out

AREAS = {"fpga": ("TRELLIS_COMB", "ICESTORM_LC"), "tpu": ("peak_memory_bytes",)}
"""Figures that a family's frontier sets against the rank, whichever of them there is."""


@dataclass(frozen=True)
class _Wanted:
    """What is asked of a run, as `cross_compile` takes it."""

    out: Path
    training: Any
    population: str
    keep_exact: bool
    accept_uncertified: bool
    budget_s: float | None
    listen: Listener
    invocation: Invocation


def cross_compile(
    model: Any,
    data: Any,
    target: str,
    *,
    max_drop: float = 0.01,
    out: str | Path = "model.hasten",
    metric: str | Metric | None = None,
    guard: Guard = "net",
    confidence: float = 0.95,
    training: Any = None,
    pipeline: Pipeline | None = None,
    population: str = "inputs like the ones in this data",
    time_limit_s: float | None = None,
    trial_limit_s: float = 900.0,
    calibration: int = 300,
    seed: int = 0,
    keep_exact: bool = True,
    accept_uncertified: bool = False,
    budget_s: float | None = None,
    resume: bool = False,
    listen: Listener = nobody,
) -> Foresight:
    """Make the best certified version of a model for a device that isn't here.

    Candidates are compared by what the device's own tools tell; accuracy is judged on this host, by
    what answers as the device does: bit for bit (FPGAs, by simulation of the RTL), or nearly so, and
    then nothing is certified before it is certified there.

    Args:
        model: As `hasten.optimize` takes it.
        data: The same.
        target: "fpga:ecp5", "tpu:v5e", "cuda:sm86", "qnn", ...: see docs/targets.
        max_drop: The most that accuracy may fall, in absolute share: 0.01 is one point.
        out: The bundle's folder.
        metric: As `hasten.optimize` takes it.
        guard: The same.
        confidence: Of the certificate.
        training: Training data: to calibrate from, and to train for few bits where the device gains
            by it.
        pipeline: From an image file to the model's input, for a folder of images.
        population: What `data` was drawn from, in words, for the certificate.
        time_limit_s: After it nothing new is tried.
        trial_limit_s: One step of one candidate may take so long.
        calibration: How many samples set ranges, at most.
        seed: Of the split and of all orders.
        keep_exact: Keep the exact model in the bundle.
        accept_uncertified: Ship the fastest under the limit even where nothing certifies.
        budget_s: What one request may take, in seconds: the result says whether what ships stays
            under it.
        resume: Go on with the run that was stopped.
        listen: Told of each step.

    Raises:
        InputError: the model, the data or an option can't be used, the device is unknown or is here,
            or its extra or a tool isn't installed; nothing is written then.
    """
    asked = invocation(cross_compile, locals())
    check_limits(max_drop, confidence)
    for name, limit in (("time", time_limit_s), ("trial", trial_limit_s), ("budget", budget_s)):
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise InputError(f"the {name} limit is in seconds, above 0: got {limit}")
    device = find_target(target)
    if device.kind != "compile-only":
        raise InputError(f"{device.device} is here: hasten.optimize measures it")
    begin, family, out = time.monotonic(), family_of(device), Path(out)
    engines = engine_kinds(family.engines)
    for kind in engines:
        kind.check_tools(device)
    folder = out.with_name(out.name + ".work")
    bundle.replaceable(out)
    with claimed(folder, resume=resume) as journal, cleared_up(folder, journal):
        model = find_model(model)
        preparation = pipeline or from_module(model)
        check_steps(preparation)
        source, dataset = load_with_data(
            model, data, preparation, (), folder, **_kept(family.from_program)
        )
        pipeline = preparation if isinstance(dataset, ImageFolder) else pipeline
        known = (
            None
            if training is None
            else open_data(training, source.inputs, preparation, folder / "unpacked-training")
        )
        parts = lay_out(dataset, folder, calibration=calibration, seed=seed, training=known)
        source = source.settled_by({n: a[0] for n, a in parts.search.inputs([0]).items()})
        scored = guarded(metric_for(metric, parts, source), guard)
        options = [max_drop, scored, guard, confidence, seed]
        check_same_run(
            journal,
            {
                "model": source.sha256,
                "data": data_digest(parts),
                "machine": device,
                "pipeline": pipeline,
                "set of versions": versions(),
                "options": options,
            },
        )
        deadline = None if time_limit_s is None else begin + time_limit_s
        order = Order(scored, guard, max_drop, confidence, seed, (), deadline)
        board = Board(
            bench=Workbench(
                folder,
                device,
                limit_s=trial_limit_s,
                memory_bytes=device.memory_bytes // 2,
                model=source,
                calibration=parts.calibration,
                calibration_hash=parts.calibration_hash,
            ),
            journal=journal,
            samples=parts.search,
            units=parts.search_units,
            order=order,
            sealed_draws=len(np.unique(parts.sealed_units)),
        )
        wanted = _Wanted(
            out, training, population, keep_exact, accept_uncertified, budget_s, listen, asked
        )
        run = _Run(board, parts, wanted, device)
        calibrating = 0 if known is not None else calibration
        run.notes += warnings(parts, scored, guard, max_drop, confidence, calibrating)
        # One way, as on this host: what to make, how each does, who is worth certifying, what ships.
        run.try_all(known)
        rungs = run.freeze_ladder()
        judged = run.certify(rungs)
        run.notes += shortfall(judged, parts, calibrating)
        result = run.deliver(judged, pipeline, begin)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _kept(from_program: bool) -> dict[str, bool]:
    return {"keep_program": True} if from_program else {}


@dataclass
class _Run:
    """One run's state; what matters of it is in the journal."""

    board: Board
    parts: Parts
    wanted: _Wanted
    target: Target
    notes: list[str] = field(default_factory=list)
    compared: str = ""

    def try_all(self, training: Any) -> None:
        """Make, judge and estimate candidates until nothing promising is left, or the time is up."""
        self._tell("prepare", "opening the original model", 0, 1)
        host, model = Target.host(), self.board.bench.model
        originals = [
            Single((), engine)
            for kind in engine_kinds(ENGINES)
            for engine in list(kind.variants(host))[:1]
        ]
        self.board.begin(originals)
        share = float(self.board.exact_scores.mean())
        if self.board.metric.needs_labels:
            self.notes.append(
                f"the original's own {self.board.metric.noun} is {100 * share:.1f}% on "
                f"{len(self.parts.search):,} samples of the search split"
            )
        if self.board.journal.last("ladder") is not None:
            return  # a stopped run was past it
        if self.target.family == "fpga":
            trained = [] if training is None else trainings(self.board, training)
            FixedPointSearch(self.board, trained, self.wanted.listen).explore()
            return
        names = family_of(self.target).engines
        explore(self.board, grid(model, self.target, engine_names=names), self.wanted.listen)

    def estimated(self) -> list[Trial]:
        """Trials that the device's tools told of, the fastest first where they rank."""
        found = [t for t in self.board.done.values() if t.estimate and not t.failure]
        return sorted(found, key=lambda t: (_rank(t), self.board.risk(t)))

    def freeze_ladder(self) -> tuple[str, ...]:
        """Choose whom to certify, the safest first, and journal it with its hash."""
        frozen = self.board.journal.last("ladder")
        if frozen is None:
            rungs = [key for key in self._ladder() if self._agrees(key)]
            choice = {"rungs": rungs}
            self.board.journal.append("ladder", choice=choice, sha256=digest(choice))
            frozen = self.board.journal.last("ladder")
        assert frozen is not None
        if digest(frozen["choice"]) != frozen["sha256"]:
            raise InputError(
                f"{self.board.journal.path}: the frozen ladder was changed; remove the folder"
            )
        return tuple(frozen["choice"]["rungs"])

    def _ladder(self) -> tuple[str, ...]:
        trials = [t for t in self.estimated() if self.board.able(t)]
        if any(_ranked(t)[1] == "bytes" for t in trials):
            trials = [t for t in trials if _ranked(t)[1] == "bytes"]
            self.notes.append(
                "how fast they are shows on the device alone: candidates were compared by their size"
            )
        slowest = max((_rank(t) for t in trials), default=1.0) or 1.0
        standings = [
            Standing(
                t.candidate.key,
                False,
                _sure(_rank(t) / slowest),
                float(self.board.drops(t).mean()),
                self.board.risk(t),
            )
            for t in trials
        ]
        original = Standing("", True, _sure(2.0), 0.0, 0.0)
        return ladder([original, *standings], "", spread=0.0, max_drop=self.board.order.max_drop)

    def _agrees(self, key: str) -> bool:
        """Whether a design's RTL answers the search split as its program does; what doesn't falls out."""
        trial = self.board.done[key]
        try:
            self._compared(trial, self.parts.search)
        except CandidateError as error:
            self.notes.append(f"{trial.candidate.label} fell out: {error}")
            return False
        return True

    def _compared(self, trial: Trial, samples: Spool) -> int:
        """Let a design's RTL and its program answer samples; return how many, 0 of what is no design.

        Raises:
            CandidateError: they differ, or one of both fails.
        """
        program = self.board.done.get(Single(trial.candidate.passes, FixedPointProgram()).key)
        if program is None or program is trial:
            return 0
        self._tell("certify", f"comparing the RTL of {trial.candidate.label}", 0, 1)
        return compare(self.board, program, trial, samples)

    def _compared_on_all(self, trial: Trial) -> str:
        """Compare what ships on the sealed data too, and say on how many samples it was compared."""
        folder = self.board.bench.folder / "sealed"
        shutil.rmtree(folder, ignore_errors=True)
        count = self._compared(trial, write_spool(self.parts.sealed, folder))
        if not count:
            return ""
        return (
            f"the RTL answered {count + len(self.parts.search):,} samples, all that judged it, as its "
            "fixed-point program did, bit for bit"
        )

    def certify(self, rungs: Sequence[str]) -> list[tuple[str, Judgement | str]]:
        """Read the sealed data once and test the frozen ladder on it."""
        if not rungs:
            return []
        board = self.board
        known = board.journal.last("judged")
        if known is not None:
            return [
                (key, entry if isinstance(entry, str) else from_record(Judgement, entry))
                for key, entry in known["judged"]
            ]
        board.journal.append("sealed read", samples=len(self.parts.sealed))
        failed: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            exact = board.opened_exact()
            stack.callback(exact.worker.kill)
            opened = {}
            for key in rungs:
                try:
                    opened[key] = stack.enter_context(board.opened(board.done[key]))
                except CandidateError as error:
                    failed[key] = str(error)
            total = len(self.parts.sealed)
            original, scores = sealed_scores(
                board.bench,
                exact,
                opened,
                self.parts.sealed,
                board.metric,
                lambda done: self._tell("certify", "reading the sealed data, once", done, total),
            )
        order = board.order
        judged = judge_ladder(
            original,
            rungs,
            {**scores, **failed},
            self.parts.sealed_units,
            {key: prior_of(board.drops(board.done[key]), board.units) for key in rungs},
            metric=order.metric,
            guard=order.guard,
            max_drop=order.max_drop,
            confidence=order.confidence,
            binary=board.binary,
        )
        board.journal.append("judged", judged=[[key, to_record(entry)] for key, entry in judged])
        return judged

    def deliver(
        self, judged: Sequence[tuple[str, Judgement | str]], pipeline: Pipeline | None, begin: float
    ) -> Foresight:
        """Write the bundle of what passed, or say why nothing did."""
        passed = last_certified(judged)
        status, why, winner = self._choice(judged, passed)
        if winner is not None:
            try:
                winner = self.board.ask_further(winner)
            except CandidateError as error:
                self.notes.append(f"not all figures of {winner.candidate.label} are known: {error}")
        board, order = self.board, self.board.order
        judgement = passed[1] if passed else _first_judgement(judged)
        result = Foresight(
            bundle=self.wanted.out,
            status=status,
            why=why,
            judgement=judgement,
            population=self.wanted.population,
            device=self.target.device,
            noun=family_of(self.target).noun,
            rows=tuple(self._rows()),
            winner=board.exact.label if winner is None else winner.candidate.label,
            compared=self.compared,
            area=self._area(),
            notes=(*self.parts.notes, *self.notes),
            seconds=time.monotonic() - begin,
            asked=Asked(
                invocation=self.wanted.invocation,
                metric=type_name(order.metric),
                noun=order.metric.noun,
                guard=order.guard,
                max_drop=order.max_drop,
                confidence=order.confidence,
                seed=order.seed,
                searched=len(self.parts.search),
                sealed=len(self.parts.sealed),
            ),
            budget_ns=None if self.wanted.budget_s is None else 1e9 * self.wanted.budget_s,
        )
        self._write(result, winner, judged, passed, pipeline)
        return result

    def _choice(
        self,
        judged: Sequence[tuple[str, Judgement | str]],
        passed: tuple[str, Judgement] | None,
    ) -> tuple[Status, str, Trial | None]:
        """Return the status, why, and what ships; None for the original on this host."""
        if passed is not None:
            trial = self.board.done[passed[0]]
            if trial.candidate.engine.faithful:
                self.compared = self._compared_on_all(trial)
                return "certified", passed[1].in_words(), trial
            if trial.candidate.exact:
                return "exact", "what ships keeps the original's precision", trial
            return (
                "uncertified",
                f"judged on this host, not on a {family_of(self.target).noun}, whose last bits may "
                f"differ: {passed[1].in_words()}; certify the bundle on the device by hasten certify",
                trial,
            )
        why = _why_not(judged, bool(self.estimated()))
        able = [t for t in self.estimated() if self.board.able(t)]
        if self.wanted.accept_uncertified and able:
            return "uncertified", f"shipped by --accept-uncertified: {why}", able[0]
        exact = next((t for t in self.estimated() if t.candidate.exact), None)
        if exact is not None:
            return "exact", f"{why}: what ships keeps the original's precision", exact
        return "exact", f"{why}: the bundle holds the original, for this host", None

    def _rows(self) -> Iterator[Foreseen]:
        """Rows of what the device's tools were asked about, the fastest first; then what failed."""
        good = self.estimated()
        frontier = self._frontier(good)
        for trial in good:
            estimate = trial.estimate
            assert estimate is not None
            yield Foreseen(
                label=trial.candidate.label,
                source=estimate.source,
                said=self.board.said(trial),
                latency_ns=estimate.latency_ns,
                rank=_ranked(trial)[0],
                unit=_ranked(trial)[1],
                figures=estimate.figures,
                limits=estimate.limits,
                drop=self.board.drop(trial),
                frontier=trial.candidate.key in frontier,
            )
        for trial in self.board.done.values():
            if trial not in good:
                yield Foreseen(
                    label=trial.candidate.label,
                    source="none",
                    said=self.board.said(trial),
                    drop=None if trial.failure or trial.skipped else self.board.drop(trial),
                )

    def _area(self) -> str:
        """Name of the figure that stands for area, of those that a family has."""
        for name in AREAS.get(self.target.family, ()):
            if any(t.estimate and name in t.estimate.figures for t in self.estimated()):
                return name
        return ""

    def _frontier(self, trials: Sequence[Trial]) -> set[str]:
        """Return the keys of trials under the limit that no other is both faster and smaller than."""
        name, kept, least = self._area(), set(), float("inf")
        for trial in trials:
            if trial.estimate is None or not self.board.able(trial):
                continue
            area = trial.estimate.figures.get(name, 0.0)
            if area < least:
                kept.add(trial.candidate.key)
                least = area
        return kept

    def _write(
        self,
        result: Foresight,
        winner: Trial | None,
        judged: Sequence[tuple[str, Judgement | str]],
        passed: tuple[str, Judgement] | None,
        pipeline: Pipeline | None,
    ) -> None:
        board, wanted = self.board, self.wanted
        exact = bundle.part(board.exact.label, (), board.exact.engine, board.exact_artifact)
        main = exact
        if winner is not None:
            candidate = winner.candidate
            main = bundle.part(
                candidate.label, candidate.passes, candidate.engine, board.artifact(winner)
            )
        judgement = passed[1] if passed is not None and winner is not None else None
        certified = result.status == "certified"
        manifest = Manifest(
            status=result.status,
            why=result.why,
            winner=main,
            exact=exact if wanted.keep_exact else None,
            metric=to_record(board.metric),
            certificate=None
            if judgement is None or not certified
            else {
                "judgement": to_record(judgement),
                "words": judgement.in_words(),
                "population": wanted.population,
                "batch_sizes": [1],
                "threads": 1,
            },
            source_sha256=board.bench.model.sha256,
            sealed={
                "samples": len(self.parts.sealed),
                "sha256": digest(self.parts.sealed_hashes),
            },
            target=self.target,
            environment=environment(self.target),
            pipeline=pipeline,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        records = {
            "foresight.json": to_record(result),
            "trials.json": [to_record(trial) for trial in board.done.values()],
            "sealed.json": {
                "judged": [[key, to_record(entry)] for key, entry in judged],
                "hashes": self.parts.sealed_hashes,
                "seen": self.parts.seen_hashes,
                "groups": self.parts.group_hashes,
            },
        }
        # Here, since a plotting library comes with it that no run should wait for.
        from hasten.reporting import foresight

        extra = {"report.html": foresight.render(result, manifest)}
        bundle.write(wanted.out, manifest, records, extra)

    def _tell(self, stage: str, doing: str, done: int, total: int) -> None:
        self.wanted.listen(Progress(stage, doing, done, total))


def _ranked(trial: Trial) -> tuple[float, str]:
    """What trials are compared by, less is better, and its unit: bytes where the tools rank nothing."""
    estimate: Estimate | None = trial.estimate
    if estimate is None:
        return float("inf"), ""
    if estimate.rank is not None:
        return estimate.rank, estimate.unit
    sizes = [value for name, value in estimate.figures.items() if name.endswith("bytes")]
    artifact = trial.artifact
    return (sizes or [0.0 if artifact is None else float(artifact.size_bytes)])[0], "bytes"


def _rank(trial: Trial) -> float:
    return _ranked(trial)[0]


def _sure(ratio: float) -> Ratio:
    """A ratio of figures that don't vary."""
    return Ratio(ratio, ratio, ratio, 1)


def _first_judgement(judged: Sequence[tuple[str, Judgement | str]]) -> Judgement | None:
    return next((entry for _, entry in judged if isinstance(entry, Judgement)), None)


def _why_not(judged: Sequence[tuple[str, Judgement | str]], estimated: bool) -> str:
    """Say why nothing passed."""
    if judged:
        entry = judged[0][1]
        return entry if isinstance(entry, str) else entry.in_words()
    if estimated:
        return (
            "the device's tools don't say which is the fastest of those under the limit, if any is"
        )
    return "nothing could be made for the device that answers well enough"
