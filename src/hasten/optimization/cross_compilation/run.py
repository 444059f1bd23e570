"""The run for a device that isn't here, top to bottom: make, judge, estimate, freeze, certify, bundle."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten import bundle
from hasten.certificate.certification import (
    guarded,
    judge_ladder,
    prior_of,
    sealed_scores,
)
from hasten.certificate.planning import check_limits
from hasten.certificate.verdict import Guard, Judgement
from hasten.core.devices import family_of, find_target
from hasten.core.invocation import invocation
from hasten.core.progress import Listener, Progress, nobody
from hasten.core.records import digest, from_record, to_record
from hasten.core.target import Target
from hasten.engines.fpga.toolchain import TOOLS
from hasten.engines.fpga.toolchain import version as tool_version
from hasten.engines.installed import engine_kinds, tried_on
from hasten.errors import CandidateError, InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.environment import versions
from hasten.measure.intervals import Ratio
from hasten.optimization.choose import Standing, ladder
from hasten.optimization.cross_compilation.board import Board, comparable, rank, ranked
from hasten.optimization.cross_compilation.comparison import compare_with_program, program_of
from hasten.optimization.cross_compilation.delivery import Delivery, Wanted
from hasten.optimization.cross_compilation.exploration import explore
from hasten.optimization.cross_compilation.fixed_point import FixedPointSearch
from hasten.optimization.cross_compilation.training import trainings
from hasten.optimization.preparation import (
    check_seconds,
    cleared_up,
    metric_for,
    prepare,
    shortfall,
    warnings,
)
from hasten.optimization.search.grid import grid, originals
from hasten.optimization.search.order import Order
from hasten.optimization.workspace import Parts, check_same_run, claimed, data_digest
from hasten.report.foreseen import Foresight


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
    check_seconds({"time limit": time_limit_s, "trial limit": trial_limit_s, "budget": budget_s})
    device = find_target(target)
    if device.kind != "compile-only":
        raise InputError(f"{device.device} is here: hasten.optimize measures it")
    begin, family, out = time.monotonic(), family_of(device), Path(out)
    engines = engine_kinds(tried_on(device.family), device)
    for kind in engines:
        kind.check_tools(device)
    folder = out.with_name(out.name + ".work")
    bundle.replaceable(out)
    with claimed(folder, resume=resume) as journal, cleared_up(folder, journal):
        ready = prepare(
            model,
            data,
            folder,
            training=training,
            pipeline=pipeline,
            calibration=calibration,
            seed=seed,
            device=device,
        )
        source, parts, known, pipeline = ready.model, ready.parts, ready.training, ready.pipeline
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
                "tools": {name: tool_version(name) for name in TOOLS}
                if device.family == "fpga"
                else {},
                "options": options,
            },
        )
        deadline = None if time_limit_s is None else begin + time_limit_s
        order = Order(scored, guard, max_drop, confidence, seed, (), deadline)
        board = Board(
            bench=ready.bench(device, trial_limit_s),
            journal=journal,
            samples=parts.search,
            units=parts.search_units,
            order=order,
            sealed_draws=len(np.unique(parts.sealed_units)),
            listen=listen,
        )
        wanted = Wanted(out, population, keep_exact, accept_uncertified, budget_s, asked)
        run = _Run(board, parts, device)
        calibrating = 0 if known is not None else calibration
        run.notes += warnings(parts, scored, guard, max_drop, confidence, calibrating)
        # One way, as on this host: what to make, how each does, who is worth certifying, what ships.
        run.try_all(known)
        rungs = run.freeze_ladder()
        judged = run.certify(rungs)
        run.notes += shortfall(judged, parts, calibrating)
        result = Delivery(board, parts, wanted, device, run.notes).finish(judged, pipeline, begin)
    shutil.rmtree(folder, ignore_errors=True)
    return result


@dataclass
class _Run:
    """One run's state; what matters of it is in the journal."""

    board: Board
    parts: Parts
    target: Target
    notes: list[str] = field(default_factory=list)

    def try_all(self, training: Any) -> None:
        """Make, judge and estimate candidates until nothing promising is left, or the time is up."""
        self._tell("prepare", "opening the original model", 0, 1)
        model = self.board.bench.model
        self.board.begin(originals(model))
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
            FixedPointSearch(self.board, trained).explore()
            return
        explore(self.board, grid(model, self.target))

    def freeze_ladder(self) -> tuple[str, ...]:
        """Choose whom to certify, the safest first, and journal it with its hash."""
        frozen = self.board.journal.last("ladder")
        if frozen is None:
            rungs = self._agreed()
            choice = {"rungs": rungs}
            self.board.journal.append("ladder", choice=choice, sha256=digest(choice))
            frozen = self.board.journal.last("ladder")
        assert frozen is not None
        if any(ranked(self.board.done[key])[1] == "bytes" for key in frozen["choice"]["rungs"]):
            self.notes.append(
                "how fast they are shows on the device alone: candidates were compared by their size"
            )
        if digest(frozen["choice"]) != frozen["sha256"]:
            raise InputError(
                f"{self.board.journal.path}: the frozen ladder was changed; remove the folder"
            )
        return tuple(frozen["choice"]["rungs"])

    def _agreed(self) -> tuple[str, ...]:
        """Return the ladder of those whose RTL answers as their program; who doesn't makes room for others."""
        agree: set[str] = set()
        while True:
            rungs = self._ladder()
            unknown = [key for key in rungs if key not in agree]
            if not unknown:
                return rungs
            agree |= {key for key in unknown if self._agrees(key)}

    def _ladder(self) -> tuple[str, ...]:
        trials = comparable([t for t in self.board.estimated() if self.board.able(t)])
        slowest = max((rank(t) for t in trials), default=1.0) or 1.0
        standings = [
            Standing(
                t.candidate.key,
                False,
                _sure(rank(t) / slowest),
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
            compare_with_program(self.board, trial, self.parts.search)
        except CandidateError as error:
            self.board.fall_out(trial, str(error))
            return False
        return True

    def certify(self, rungs: Sequence[str]) -> list[tuple[str, Judgement | str]]:
        """Read the sealed data once and test the frozen ladder on it.

        A design's answers are its program's, with which its RTL agreed on the search split; whatever
        ships is compared on the sealed data too.
        """
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
                    judged_as = program_of(board, board.done[key])
                    opened[key] = stack.enter_context(board.opened(judged_as))
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

    def _tell(self, stage: str, doing: str, done: int, total: int) -> None:
        self.board.listen(Progress(stage, doing, done, total))


def _sure(ratio: float) -> Ratio:
    """A ratio of figures that don't vary."""
    return Ratio(ratio, ratio, ratio, 1)
