"""The search over candidates: a grid first, then what its outcomes suggest."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hasten.core.progress import StageName, Tried, Verdict
from hasten.core.tensors import Array
from hasten.errors import CandidateError, OutOfTime
from hasten.measure.candidate import Candidate, Single, Trial
from hasten.optimization.grid import hurried, neighbours, substitutes, variations
from hasten.optimization.job import Job
from hasten.optimization.measured.bucketing import Bucketing
from hasten.optimization.measured.escalation import Escalation
from hasten.optimization.measured.mixing import Least, Mixing
from hasten.optimization.measured.screening import SCREEN_NOISE, Screening
from hasten.optimization.trials import DOUBT
from hasten.passes.base import Pass, Skipped
from hasten.passes.small_model import small_model_of
from hasten.reporting.summary import faster

_TRANSFORMS_AT_ONCE = 2
_MADE_AT_ONCE = 6
"""Candidates whose models are made before any of them is tried, so that the first ones don't wait for all."""
_NEIGHBOURS_OF = 2


class Exploration:
    """Tries candidates until nothing is left to try, or the time is up.

    Args:
        trials: Trials, which screen the candidates.
        job: The run at work.
        units: Number of each search sample's group; samples with one number were drawn together.
        sealed_draws: Number of independent draws to certify by.
        on_better: Callback for each trial that is the best so far.
        least: Function from a precision (None for the machine's fastest) to the least time that the
            machine can take for the model; it returns None where that can't be computed.
    """

    def __init__(
        self,
        trials: Screening,
        job: Job,
        *,
        units: Array,
        sealed_draws: int,
        on_better: Callable[[Trial], None],
        least: Least,
    ) -> None:
        self.trials = trials
        self.best: str | None = None
        self._job, self._order, self._units = job, job.order, units
        self._sealed_draws = sealed_draws
        self._on_better, self._least, self._notes = on_better, least, job.notes
        self._best_ratio = 1.0
        self._at_limit = False
        self._told_exact = False
        self._stage: StageName = "exact"
        self._frozen = job.journal.last("ladder") is not None
        self._ended = False
        self._met: set[str] = set()
        self._proposed: set[str] = set()
        self._left: set[str] = set()
        self._untried = ""
        self._earlier = 0

    def explore(self, grid: Sequence[Single]) -> None:
        """Try the grid; more variants where the fastest aren't accurate; neighbours of the best.

        Exact candidates come first: they are soon made, and a person has an answer that needs no test.
        Where samples differ in shape, buckets of exact models are among them, since they gain most there; buckets
        of the likeliest inexact model follow those that were tried at any shape.
        A time limit may leave too little for others after them; so with one, the kinds alternate.
        """
        model, target = self.trials.bench.model, self.trials.bench.target
        ordered = sorted(grid, key=lambda one: not one.exact)
        depth, bucketing = self._order.effort.depth, self._bucketing()
        if bucketing is None:
            whole = self._try(hurried(grid) if self._job.deadline.limited else ordered)
        else:
            whole = self._try([one for one in ordered if one.exact])
            if whole:
                bucketing.propose_exact(few=depth == "first")
            whole = self._try([one for one in ordered if not one.exact]) and whole
            if whole and not self._over():
                bucketing.propose_inexact(self._ranked(), few=True)
        whole = whole and self._try(self._substitutes(ordered))
        self._tell_exact(whole=whole or self._ended)
        self._stage = "try"
        if not whole or depth != "all":
            return
        if not self._over() and self._fastest_could_be_safer():
            ranked = [t.candidate for t in self._worth_varying()]
            kept, passes = self._order.keep_float, self._order.passes
            self._try(variations(ranked, model, target, kept, passes, self._failed(ordered)))
        while not self._over() and self._fastest_could_be_safer() and (along := self._further()):
            if not self._try(along):  # else it would be proposed again
                break
        common = (self.trials, self._try, self._likely_passes, self._surely_passes)
        if bucketing is not None and not self._over():
            bucketing.propose_inexact(self._ranked())
        if not self._over():
            Mixing(*common, self._left_s, self._least, self._notes).mix(self._ranked())
        if self._order.objective == "p99":
            self._notes.append(
                "no cascade was tried: p99 is compared, and a request that both models answer "
                "costs the time of both"
            )
        elif not self._over():
            Escalation(*common, self._notes).escalate(self._ranked())
        if not self._over():
            best = self._promising()
            trials = [self.trials.done[c.key] for c in best]
            passing = [t for t in trials if self._likely_passes(t)] or trials
            ratios = [self.trials.ratio(t).estimate for t in passing]
            around = neighbours(best, self._helpful(), target, settled=self._settling_helps())
            self._try(around, min(ratios, default=1.0))

    def _substitutes(self, tried: Sequence[Single]) -> list[Single]:
        """Return what engines propose in place of candidates that were tried, and that they refused."""
        skipped = {one: self.trials.done[one.key].skipped for one in tried}
        refused = {one: said for one, said in skipped.items() if said}
        return substitutes(refused, self.trials.bench.model)

    def _bucketing(self) -> Bucketing | None:
        """Return what proposes buckets; None where samples have one shape, or engines alone are tried."""
        if not self.trials.samples.ragged or self._order.effort.depth == "engines":
            return None
        return Bucketing(self.trials, self._try, self._likely_passes, self._notes, self._order.pad)

    def _further(self) -> list[Single]:
        """Return what follows the safest form of each pass on a scale of its settings, if that may fail the test."""
        safest: dict[type[Pass], Trial] = {}
        for trial in sorted(self._ranked(), key=self.trials.risk):
            if isinstance(trial.candidate, Single) and trial.candidate.passes and trial.scores:
                safest.setdefault(type(trial.candidate.passes[-1]), trial)
        found = []
        for trial in safest.values():
            *before, last = trial.candidate.passes
            step = None if self._surely_passes(trial) else last.further()
            if step is not None:
                found.append(Single((*before, step), trial.candidate.engine))
        return [one for one in found if one.key not in self._met]

    def _worth_varying(self) -> list[Trial]:
        """Return measured trials, fastest first, without small models that fail in every form."""
        ranked = self._ranked()
        able = {
            small_model_of(t.candidate.passes)
            for t in ranked
            if t.scores and self.trials.drop(t) < self.trials.promise.max_drop
        }
        return [
            t for t in ranked if (own := small_model_of(t.candidate.passes)) is None or own in able
        ]

    def _failed(self, candidates: Sequence[Single]) -> list[Single]:
        """Return those of some candidates of the original that failed; skipped ones had nothing to do."""
        return [
            one
            for one in candidates
            if self.trials.done[one.key].failure and small_model_of(one.passes) is None
        ]

    def _over(self) -> bool:
        """Whether the time is up, or less is left to gain than a few turns can tell apart."""
        if self._late() or self._at_limit or self._ended:
            return True
        passing = [t for t in self._ranked() if self._surely_passes(t)]
        # A floor says nothing about tails, nor about another model.
        small = any(small_model_of(t.candidate.passes) for t in self._ranked())
        of_use = passing and not small and self._order.objective != "p99"
        floor = self._least(None) if of_use else None
        measured = passing[0].measurement if passing else None
        if floor is None or not floor.whole or measured is None:
            return False
        blocks = np.concatenate([np.asarray(block) for block in measured.rounds.values()])
        by_mean = self._order.objective == "mean" or passing[0].candidate.engine.uneven
        latency_ns = float(blocks.mean() if by_mean else np.median(blocks))
        ratio = floor.ratio(latency_ns, measured.threads)
        left = floor.left_to_gain(latency_ns, measured.threads)
        # A ratio far below 1 means that the ceilings were measured too low.
        self._at_limit = left < SCREEN_NOISE and ratio > 1 - SCREEN_NOISE
        if self._at_limit:
            self._notes.append(
                f"the search ended early: {passing[0].candidate.label} takes only {ratio:.2f} "
                "times the shortest time that this machine allows"
            )
        return self._at_limit

    def _try(self, candidates: Sequence[Single], beat: float = 1.0) -> bool:
        """Try candidates; return whether all were tried.

        A candidate that surely doesn't beat the ratio `beat` isn't judged.
        """
        if not candidates:
            return True
        outcome: str | None = None
        tried: Tried | None = None
        made = 0
        inexact = 1 + max((n for n, one in enumerate(candidates) if one.exact), default=-1)
        self._proposed.update(candidate.key for candidate in candidates)
        for number, candidate in enumerate(candidates):
            if number == inexact and not self._told_exact:
                self._tell_exact(len(candidates), outcome, tried)
                outcome, tried = None, None
            if not candidate.exact and self._stage == "exact":
                self._stage = "try"
                self._tell("making the other forms", number, len(candidates), outcome, tried)
                outcome, tried = None, None
            if not self._frozen and number == made:
                coming = self._coming(candidates[number:])
                made += len(coming)
                self._transform(c for c in coming if c.key not in self.trials.done)
            untried = candidate.key not in self.trials.done
            if untried and self._frozen:  # what is certified was chosen before the run was stopped
                self._ended = True
                return False
            if untried and self._late():
                self._tell("the time is up", number, len(candidates), outcome, tried)
                self._earlier += number
                return self._left_out(candidates[number:])
            self._tell(candidate.label, number, len(candidates), outcome, tried)
            try:
                trial = self.trials.run(candidate, beat)
            except OutOfTime:
                self._earlier += number
                return self._left_out(candidates[number:])
            self._met.add(candidate.key)
            outcome, tried = f"{candidate.label}: {self.trials.outcome(trial)}", self._tried(trial)
            self._note_better(trial)
        self._tell("all tried", len(candidates), len(candidates), outcome, tried)
        self._earlier += len(candidates)
        return True

    def _coming(self, candidates: Sequence[Single]) -> Sequence[Single]:
        """Return the next candidates whose models are made together.

        Without a time limit, inexact ones aren't made with exact ones, whose results are told first.
        """
        if self._job.deadline.limited:
            return candidates[:_TRANSFORMS_AT_ONCE]
        kind = candidates[0].exact
        return list(itertools.takewhile(lambda one: one.exact == kind, candidates[:_MADE_AT_ONCE]))

    def _tell(
        self, doing: str, done: int, total: int, outcome: str | None, tried: Tried | None
    ) -> None:
        """Report progress; `done` and `total` count the candidates of the list that is being tried."""
        done, total = self._earlier + done, self._earlier + total
        self._job.tell(self._stage, doing, done, total, outcome, self.best, tried=tried)

    def _tell_exact(
        self,
        total: int = 0,
        outcome: str | None = None,
        tried: Tried | None = None,
        *,
        whole: bool = True,
    ) -> None:
        """Tell the fastest exact candidate, once all exact ones of the grid were tried.

        Args:
            total: Number of candidates of the grid, if some are still to be tried.
            outcome: Outcome of the last candidate, in a line.
            tried: The last candidate.
            whole: Whether all exact candidates were tried.
        """
        if self._told_exact:
            return
        trials, default = self.trials, f"the default engine ({self.trials.baseline.label})"
        exact = [t for t in trials.measured() if t.exact and t.candidate.key in self._met]
        fastest = min(exact, key=lambda t: trials.ratio(t).estimate, default=None)
        answer = f"no exact form is faster than {default}"
        if not whole:
            answer = (
                f"the time limit left exact forms untried; none so far is faster than {default}"
            )
        if fastest is not None and trials.ratio(fastest).estimate < 1:
            figure = trials.ratio(fastest)
            sure = "" if figure.high < 1 else ", so it isn't surely faster"
            rest = "" if whole else "; the time limit left other exact forms untried"
            answer = f"{fastest.candidate.label} is exact and {faster(figure, default)}{sure}{rest}"
        news = f"first answer after {self._job.deadline.elapsed_s:.0f} s: {answer}"
        doing = "all exact forms tried" if whole else "the time is up"
        done = len(self._met)
        total = max(done, total)
        self._job.tell(self._stage, doing, done, total, outcome, self.best, tried=tried, news=news)
        self._told_exact = True

    def _tried(self, trial: Trial) -> Tried:
        """Return a trial as a screen draws it."""
        timed = trial.measurement is not None and not trial.failure
        return Tried(
            trial.candidate.label,
            self._verdict(trial),
            trial.failure or trial.skipped or self.trials.outcome(trial),
            self.trials.ratio(trial).estimate if timed else None,
        )

    def _verdict(self, trial: Trial) -> Verdict:
        if trial.skipped or trial.failure:
            return "skipped" if trial.skipped else "failed"
        if trial.measurement is None:
            return "baseline"
        if trial.exact or (trial.candidate.exact and trial.changed is None):
            return "exact"
        if trial.scores is None:
            return "slower"
        accurate = self.trials.drop(trial) < self.trials.promise.max_drop
        return "accurate" if accurate else "wrong"

    def _left_out(self, candidates: Sequence[Candidate]) -> bool:
        """Note that candidates are left untried, in one note with those that were left before."""
        self._left.update(candidate.key for candidate in candidates)
        if self._untried in self._notes:
            self._notes.remove(self._untried)
        left = len(self._left - self.trials.done.keys())
        self._untried = f"the time limit left {left} of {len(self._proposed)} candidates untried"
        self._notes.append(self._untried)
        return False

    def _ranked(self) -> list[Trial]:
        """Return the measured trials, fastest first.

        A resumed run sees only trials whose turn has come again, so that it repeats its own steps.
        """
        met = [t for t in self.trials.measured() if t.candidate.key in self._met]
        return sorted(met, key=lambda t: self.trials.ratio(t).estimate)

    def _fastest_could_be_safer(self) -> bool:
        """Whether the fastest candidate may fail the test, and a variant of it could be seen to be safer.

        No variant can look safer than a candidate whose scores are those of the original.
        """
        ranked = self._ranked()
        if not ranked:
            return True
        return not self._surely_passes(ranked[0]) and not self._unchanged(ranked[0])

    def _unchanged(self, trial: Trial) -> bool:
        """Whether a trial was scored, and has the scores of the original."""
        scores = np.array(trial.scores or ())
        return bool(len(scores)) and np.array_equal(scores, self.trials.exact_scores[: len(scores)])

    def _surely_passes(self, trial: Trial, scale: float = 1.0) -> bool:
        """Whether a candidate would be certified even if the search split flattered it."""
        return self._likely_passes(trial, scale, doubt=DOUBT)

    def _likely_passes(self, trial: Trial, scale: float = 1.0, doubt: float = 0.0) -> bool:
        """Whether a candidate would probably be certified with the sealed data at hand.

        Args:
            trial: Trial with its scores.
            scale: Factor on its flips and its drop.
            doubt: Standard errors to add to its observed drop.
        """
        return self.trials.probably_certified(
            trial, self._units, self._sealed_draws, scale=scale, doubt=doubt
        )

    def _helpful(self) -> list[Pass]:
        """Return exact passes that surely made the untouched model faster on its engine."""
        exact = [t for t in self.trials.measured() if t.candidate.exact]
        plain = {
            t.candidate.engine: self.trials.ratio(t).low for t in exact if not t.candidate.passes
        }
        plain[self.trials.baseline.engine] = 1.0
        return list(
            dict.fromkeys(
                t.candidate.passes[0]
                for t in exact
                if t.candidate.passes
                and self.trials.ratio(t).high
                < plain.get(t.candidate.engine, 0) * (1 - SCREEN_NOISE)
            )
        )

    def _settling_helps(self) -> bool:
        """Whether an engine that settles shapes for one sample is surely faster than with open ones."""
        plain = {
            t.candidate.engine: self.trials.ratio(t).low
            for t in self.trials.measured()
            if t.candidate.exact and not t.candidate.passes
        }
        plain[self.trials.baseline.engine] = 1.0
        settled = {own: low for engine, low in plain.items() if (own := engine.settling())}
        return any(
            self.trials.ratio(t).high < settled.get(t.candidate.engine, 0) * (1 - SCREEN_NOISE)
            for t in self.trials.measured()
            if not t.candidate.passes
        )

    def _promising(self) -> list[Single]:
        """Return the best candidates of both kinds, inexact ones first.

        Inexact ones that would probably be certified come before those just under the limit.
        """
        ranked = self._ranked()
        exact = [t.candidate for t in ranked if t.exact]
        lossy = [
            t for t in ranked if not t.exact and self.trials.drop(t) < self.trials.promise.max_drop
        ]
        lossy.sort(key=lambda t: not self._likely_passes(t))
        return [t.candidate for t in lossy[:_NEIGHBOURS_OF]] + exact[:1]

    def _transform(self, candidates: Iterable[Candidate]) -> None:
        """Make the models that the candidates need, two at once, while nothing is timed."""
        chains = list(dict.fromkeys(c.passes for c in candidates if c.passes))
        if not chains:
            return
        done = 0

        def make(passes: tuple[Pass, ...]) -> None:
            nonlocal done
            if not self._late():
                with contextlib.suppress(CandidateError, Skipped):  # the trial will meet it again
                    self.trials.bench.transform(passes)
            done += 1
            name = Single(passes, self.trials.baseline.engine).made
            self._job.tell("transform", name, done, len(chains), best=self.best)

        self.trials.opened_baseline().worker.sleep()
        pool = ThreadPoolExecutor(_TRANSFORMS_AT_ONCE)
        try:
            list(pool.map(make, chains))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self.trials.bench.stop_transforms()
            raise
        finally:
            pool.shutdown()

    def _note_better(self, trial: Trial) -> None:
        if trial.measurement is None or trial.failure:
            return
        own = self.trials.ratio(trial).estimate
        if (
            own < self._best_ratio * (1 - SCREEN_NOISE)
            and self.trials.drop(trial) < self.trials.promise.max_drop
        ):
            self._best_ratio = own
            self.best = f"{trial.candidate.label}, {1 / own:.2f}x"
            self._on_better(trial)

    def _late(self) -> bool:
        return self._left_s() <= 0

    def _left_s(self) -> float:
        """Return the time left to search, in seconds."""
        return self._job.deadline.left_s()
