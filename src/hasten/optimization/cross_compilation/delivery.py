"""What ships of a run for a device that isn't here: the bundle, with its evidence and its report."""

from __future__ import annotations

import datetime
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten import bundle
from hasten.bundle import Manifest, Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement
from hasten.core.devices import family_of
from hasten.core.invocation import Invocation
from hasten.core.records import digest, to_record, type_name
from hasten.core.target import Target
from hasten.errors import CandidateError
from hasten.inputs.data.spool import write_spool
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.candidate import Trial
from hasten.measure.environment import environment
from hasten.optimization.cross_compilation.board import Board, comparable, ranked
from hasten.optimization.cross_compilation.comparison import (
    compare_with_program,
    program_of,
    simulates,
)
from hasten.optimization.workspace import Parts
from hasten.report.foreseen import Foreseen, Foresight
from hasten.report.result import Asked

AREAS = {"fpga": ("TRELLIS_COMB", "ICESTORM_LC"), "tpu": ("peak_memory_bytes",)}
"""Figures that a family's frontier sets against the rank, whichever of them there is."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a run, as `cross_compile` takes it."""

    out: Path
    population: str
    keep_exact: bool
    accept_uncertified: bool
    budget_s: float | None
    invocation: Invocation


@dataclass
class Delivery:
    """From what was judged to a bundle.

    Attributes:
        board: What every candidate came to.
        parts: The data, split.
        wanted: What was asked for.
        target: The device.
        notes: What the result is to say besides; more is added.
        compared: On how many samples what ships was compared with its program, in words.
    """

    board: Board
    parts: Parts
    wanted: Wanted
    target: Target
    notes: list[str]
    compared: str = ""

    def finish(
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
                return self._simulated(trial, passed[1])
            if trial.candidate.exact:
                return "exact", "what ships keeps the original's precision", trial
            return (
                "uncertified",
                f"judged on this host, not on a {family_of(self.target).noun}, whose last bits may "
                f"differ: {passed[1].in_words()}; to know, run on the device: {self._certify()}",
                trial,
            )
        why = _why_not(judged, bool(self.board.estimated()), self._first_failure())
        able = [t for t in self.board.estimated() if self.board.able(t)]
        if self.wanted.accept_uncertified and able:
            return "uncertified", f"shipped by --accept-uncertified: {why}", able[0]
        exact = next((t for t in self.board.estimated() if t.candidate.exact), None)
        if exact is not None:
            return "exact", f"{why}: what ships keeps the original's precision", exact
        return "exact", f"{why}; the bundle holds the original, for this host", None

    def _simulated(self, trial: Trial, judgement: Judgement) -> tuple[Status, str, Trial | None]:
        """Return the status, why, and what ships where a design passed: certified if its RTL was simulated."""
        if program_of(self.board, trial) is not trial and not simulates(trial):
            return (
                "uncertified",
                "Verilator isn't installed, so nobody simulated the RTL; of the program that it was "
                f"written of: {judgement.in_words()}",
                trial,
            )
        try:
            self.compared = self._compared_on_all(trial)
        except CandidateError as error:
            return "exact", f"{error}; the bundle holds the original, for this host", None
        return "certified", judgement.in_words(), trial

    def _first_failure(self) -> str:
        """The first candidate that failed, and why, in words; empty where none did."""
        failed = (trial for trial in self.board.done.values() if trial.failure)
        return next((f"{trial.candidate.label}: {trial.failure}" for trial in failed), "")

    def _certify(self) -> str:
        """The command that judges the bundle on its device."""
        bundle = shlex.quote(str(self.wanted.out))
        limit = f"{100 * self.board.order.max_drop:.6g}%"
        return f"hasten certify {bundle} --data new.npz --max-drop {limit}"

    def _compared_on_all(self, trial: Trial) -> str:
        """Compare what ships on the sealed data too, and say on how many samples it was compared."""
        folder = self.board.bench.folder / "sealed"
        shutil.rmtree(folder, ignore_errors=True)
        count = compare_with_program(self.board, trial, write_spool(self.parts.sealed, folder))
        if not count:
            return ""
        return (
            f"the RTL answered {count + len(self.parts.search):,} samples, all that judged it, as its "
            "fixed-point program did, bit for bit"
        )

    def _rows(self) -> Iterator[Foreseen]:
        """Rows of what the device's tools were asked about, the fastest first; then what failed."""
        good = self.board.estimated()
        frontier = self._frontier(good)
        for trial in good:
            estimate = trial.estimate
            assert estimate is not None
            yield Foreseen(
                label=trial.candidate.label,
                source=estimate.source,
                said=self.board.said(trial),
                latency_ns=estimate.latency_ns,
                rank=ranked(trial)[0],
                unit=ranked(trial)[1],
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
            if any(t.estimate and name in t.estimate.figures for t in self.board.estimated()):
                return name
        return ""

    def _frontier(self, trials: Sequence[Trial]) -> set[str]:
        """Return the keys of trials under the limit that no other is both faster and smaller than."""
        name, kept, least = self._area(), set(), float("inf")
        for trial in comparable(trials):
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
        target = self.target if winner is not None else Target.host()
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
            target=target,
            environment=environment(target),
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
        from hasten.report import foresight

        extra = {"report.html": foresight.render(result, manifest)}
        bundle.write(wanted.out, manifest, records, extra)


def _first_judgement(judged: Sequence[tuple[str, Judgement | str]]) -> Judgement | None:
    return next((entry for _, entry in judged if isinstance(entry, Judgement)), None)


def _why_not(judged: Sequence[tuple[str, Judgement | str]], estimated: bool, failure: str) -> str:
    """Say why nothing passed.

    Args:
        judged: What was tested on the sealed data.
        estimated: Whether the device's tools told of any.
        failure: The first candidate that failed, and why.
    """
    if judged:
        entry = judged[0][1]
        return entry if isinstance(entry, str) else entry.in_words()
    if estimated:
        return "nothing that was made for the device is under the limit and answers as its program does"
    nothing = "nothing could be made for the device that answers well enough"
    return f"{nothing}; {failure}" if failure else nothing
