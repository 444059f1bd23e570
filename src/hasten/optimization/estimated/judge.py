"""The judge for an absent device: candidates are made, judged on this host, and estimated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from hasten.engines.base import Engine
from hasten.errors import CandidateError
from hasten.measure.candidate import Single
from hasten.measure.intervals import Ratio
from hasten.measure.workbench import OpenWorker
from hasten.optimization.choose import Standing, ladder
from hasten.optimization.data_needed import calibrating, warn_of_scores
from hasten.optimization.estimated.comparison import compare_with_program, program_of
from hasten.optimization.estimated.ending import Finish
from hasten.optimization.estimated.fixed_point import FixedPointSearch
from hasten.optimization.estimated.training import trainings
from hasten.optimization.estimated.trials import Estimation, comparable, rank, ranked
from hasten.optimization.grid import grid, originals, variations
from hasten.optimization.job import Job
from hasten.optimization.judge import Ending, Judge, Ladder, Shipment, Verdicts
from hasten.optimization.outline import outline_of
from hasten.optimization.preparation import engine_names
from hasten.optimization.ready import Ready

_TRIAL_LIMIT_S = 900.0


class Estimated(Judge):
    """Compares candidates by the figures of the device's own tools.

    Accuracy is judged on this host. For FPGAs the RTL is simulated, so that the answers are the
    device's bit for bit. For other devices they are nearly the device's, so nothing is certified
    until it is certified on the device.

    Args:
        job: The run at work.
        ready: Model and data of the run.
    """

    trials: Estimation

    def __init__(self, job: Job, ready: Ready) -> None:
        self.job, self.ready = job, ready
        self.trials = Estimation(
            ready.bench(job.folder, job.order.trial_limit_s or _TRIAL_LIMIT_S),
            job.journal,
            ready.parts.search,
            ready.search_promise,
            sealed_draws=ready.sealed_draws,
            units=ready.parts.search_units,
            trusted=Engine.paths(job.order.engines or ()),
        )

    @property
    def original(self) -> str:
        """Nothing: on the device the original is no candidate."""
        return ""

    def search(self) -> None:
        """Make, judge and estimate candidates until none promises more, or the time is up."""
        ready, order, trials = self.ready, self.job.order, self.trials
        proposed = self._proposed()
        outline = outline_of(self.job, ready, proposed)
        self.job.tell("prepare", "opening the original model", 0, 1, outline=outline)
        trials.begin(originals(ready.model))
        self.job.varying = trials.bench.varying
        self.job.notes += trials.notes
        warn_of_scores(ready, calibrating(order, ready), self.job.notes, binary=trials.binary)
        metric = ready.promise.metric
        if metric.needs_labels and len(trials.known_scores):
            known = trials.known_scores
            share = float(known.mean())
            self.job.notes.append(
                f"the original's own {metric.noun} is {100 * share:.1f}% on "
                f"{len(known):,} samples of the search split"
            )
        if self.job.journal.last("ladder") is not None:
            return  # a stopped run had ended its search
        if ready.target.family == "fpga":
            data, folder = ready.training, self.job.folder
            trained = [] if data is None else trainings(folder, data, order.seed)
            FixedPointSearch(self.job, trials, trained).explore()
        elif self._try_all(proposed):
            self._try_further(proposed)

    def _proposed(self) -> list[Single]:
        """Return the candidates of the grid; for an FPGA none, whose programs follow one another."""
        if self.ready.target.family == "fpga":
            return []
        order, target = self.job.order, self.ready.target
        return grid(
            self.ready.model,
            target,
            engine_names=engine_names(order, target),
            pass_names=order.passes,
            keep_float=order.keep_float,
        )

    def _try_further(self, proposed: Sequence[Single]) -> None:
        """Try further settings of each pass until one of its forms surely passes the test.

        A pass itself says in which order to try them. The device's tools estimate no form that loses
        too much, so the engines on which a pass lost least come first.

        Args:
            proposed: Candidates that were tried, each pass with its first setting.
        """
        ready, order, trials = self.ready, self.job.order, self.trials
        tried = [trials.done[candidate.key] for candidate in proposed]
        tried = sorted((t for t in tried if not t.skipped), key=trials.risk)
        further = variations(
            [trial.candidate for trial in tried],
            ready.model,
            ready.target,
            order.keep_float,
            order.passes,
        )
        if order.effort.depth == "all":
            self._try_all(further, until_one_passes=True)
        elif any(not self._settled(candidate) for candidate in further):
            self.job.notes.append("left out at this effort: further settings that may lose less")

    def _settled(self, candidate: Single) -> bool:
        """Whether some form of a candidate's last pass surely passes the test."""
        return any(
            type(trial.candidate.passes[-1]) is type(candidate.passes[-1])
            and self.trials.surely_passes(trial, self.ready.search_units)
            for trial in self.trials.done.values()
            if trial.candidate.passes
        )

    def _try_all(self, candidates: Sequence[Single], *, until_one_passes: bool = False) -> bool:
        """Judge each candidate; the device's tools estimate those under the limit.

        Args:
            candidates: Candidates in the order to try them in.
            until_one_passes: Whether to leave out candidates once a form of their pass surely passes.

        Returns:
            Whether there was time for all.
        """
        for number, candidate in enumerate(candidates):
            if until_one_passes and self._settled(candidate):
                continue
            if self.job.late:
                left = len(candidates) - number
                self.job.notes.append(
                    f"the time limit left {left} of {len(candidates)} candidates untried"
                )
                return False
            self.job.tell("try", candidate.label, number, len(candidates))
            trial = self.trials.judge(candidate)
            if self.trials.able(trial) or (candidate.exact and trial.scores):
                trial = self.trials.estimate(trial)
            outcome = f"{candidate.label}: {self.trials.outcome(trial)}"
            self.job.tell("try", candidate.label, number + 1, len(candidates), outcome)
        return True

    def choose(self) -> Ladder:
        """Choose candidates to certify; a design's RTL must answer as its program does."""
        agree: set[str] = set()
        while True:
            rungs = self._rungs()
            unknown = [key for key in rungs if key not in agree]
            if not unknown:
                exact = next((t for t in self.trials.estimated() if t.exact), None)
                return Ladder("" if exact is None else exact.candidate.key, rungs)
            agree |= {key for key in unknown if self._agrees(key)}

    def _rungs(self) -> tuple[str, ...]:
        trials = self.trials
        able = comparable([t for t in trials.estimated() if trials.able(t)])
        slowest = max((rank(t) for t in able), default=1.0) or 1.0
        standings = [
            Standing(
                t.candidate.key,
                False,
                _sure(rank(t) / slowest),
                float(trials.drops(t).mean()),
                trials.risk(t),
            )
            for t in able
        ]
        original = Standing("", True, _sure(2.0), 0.0, 0.0)
        return ladder(
            [original, *standings], "", spread=0.0, max_drop=self.ready.search_promise.max_drop
        )

    def _agrees(self, key: str) -> bool:
        """Whether a design's RTL answers the search split as its program does; if not, it fails."""
        trial = self.trials.done[key]
        self.job.tell("certify", f"comparing the RTL of {trial.candidate.label}", 0, 1)
        try:
            compare_with_program(self.trials, trial, self.ready.parts.search)
        except CandidateError as error:
            self.trials.fall_out(trial, str(error))
            return False
        return True

    def stand_by(self, ladder: Ladder) -> None:
        """Note it where candidates were compared by their size alone."""
        if any(ranked(self.trials.done[key])[1] == "bytes" for key in ladder.rungs):
            self.job.notes.append(
                "candidates were compared by size, because only the device shows how fast they are"
            )

    def open_exact(self) -> OpenWorker:
        """Open the original on this host.

        Raises:
            InputError: it fails.
        """
        return self.trials.opened_exact()

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[OpenWorker]:
        """Open a design's program, which its RTL agrees with; of any other candidate, its artifact.

        Raises:
            CandidateError: it can't be opened any more.
        """
        program = program_of(self.trials, self.trials.done[key])
        with self.trials.opened(program) as opened:
            yield opened

    def close(self) -> None:
        """Do nothing: each process ends with its step."""

    def conclude(
        self, ladder: Ladder, verdicts: Verdicts, keep: Callable[[Shipment], None]
    ) -> Ending:
        """Decide what ships, with the figures of the device's tools."""
        return Finish(self.job, self.ready, self.trials, verdicts, exact=ladder.exact).ending()


def _sure(ratio: float) -> Ratio:
    """Return a ratio without an interval, of figures that don't vary."""
    return Ratio(ratio, ratio, ratio, 1)
