"""Cascades: a fast model answers, and the original is asked again where the answer was close."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.core.varying import no_batches
from hasten.engines.base import Engine
from hasten.engines.cascade import Cascade, margins
from hasten.errors import CandidateError, InputError
from hasten.inputs.metrics.outputs import class_scores
from hasten.inputs.metrics.unlabelled import scored_where_known
from hasten.measure.accuracy import beside
from hasten.measure.candidate import Single, Trial
from hasten.optimization.measured.mixing import Likely
from hasten.optimization.measured.screening import SCREEN_NOISE, Screening
from hasten.passes.small_model import small_model_of

_BASES = 3
"""Number of fast models of a kind to look at until one has a threshold."""
_SAFER = 1.5
"""Factor on the answers asked again, for the second proposal where no affordable one is sure."""
_SLACK = 0.1
"""Distance from [0, 1] within which scores are probabilities, as rounding to int8 may leave them."""


class _OtherKind(CandidateError):  # noqa: N818
    """A fast model's scores are of another kind than the original's, so no answers of both go together."""


class Escalation:
    """Proposes cascades of the fastest model that isn't surely accurate enough and the original.

    Args:
        trials: Trials, which screen the candidates.
        attempt: Callback that tries candidates, as far as the time allows.
        likely: Predicate of trials that would probably be certified.
        surely: Predicate of trials that would almost surely be certified.
        notes: Notes for the reader of the result, added to here.
    """

    def __init__(
        self,
        trials: Screening,
        attempt: Callable[[Sequence[Single]], Any],
        likely: Likely,
        surely: Likely,
        notes: list[str],
    ) -> None:
        self._trials, self._attempt, self._notes = trials, attempt, notes
        self._likely, self._surely = likely, surely

    def escalate(self, ranked: Sequence[Trial]) -> None:
        """Try the threshold that probably suffices, and a safer one, where that is worth the time.

        Args:
            ranked: Measured trials, fastest first.
        """
        rank = self._trials.promise.metric.margin_rank
        if rank is None or self._trials.bench.sequences is not None:
            return  # of two models, each would need the states that it gave itself
        if varying := self._trials.bench.varying:
            self._notes.append(f"no cascade was tried: {no_batches(varying)}")
            return
        able = [t for t in ranked if t.scores and t.candidate.passes]
        # A small model is wrong about other inputs than a quantized one.
        for small in (False, True):
            of_kind = [t for t in able if (small_model_of(t.candidate.passes) is not None) == small]
            for base in of_kind[:_BASES]:  # the fastest may be ruined by int8
                surely = [t for t in self._trials.measured() if self._surely(t, 1.0)]
                beat = min((self._trials.ratio(t).estimate for t in surely), default=1.0)
                if base in surely or (
                    self._trials.ratio(base).estimate > beat * (1 - 2 * SCREEN_NOISE)
                ):
                    break
                if self._escalate(base, rank, ranked, beat):
                    break

    def _escalate(self, base: Trial, rank: int, ranked: Sequence[Trial], beat: float) -> bool:
        """Try the thresholds of one fast model; return whether any of them might suffice.

        Args:
            base: Trial of the fast model.
            rank: Rank of the class score that the margin reaches down to.
            ranked: Measured trials, fastest first.
            beat: Ratio of the fastest candidate that would almost surely be certified.
        """
        careful, careful_ratio = self._careful(ranked)
        afford = (beat * (1 - SCREEN_NOISE) - self._trials.ratio(base).estimate) / careful_ratio
        try:
            output, close, scores = self._margins(base, rank)
        except _OtherKind as why:
            if (note := f"no cascade was tried: {why}") not in self._notes:
                self._notes.append(note)
            return False
        except CandidateError as why:
            self._notes.append(f"no cascade was tried: {why}")
            return True  # any other model would fail alike
        proposals = [
            Single(
                base.candidate.passes,
                Cascade(base.candidate.engine, careful, threshold, output, rank),
            )
            for threshold in self._thresholds(base, close, scores, afford)
        ]
        self._attempt(proposals)
        return bool(proposals)

    def _careful(self, ranked: Sequence[Trial]) -> tuple[Engine, float]:
        """Return the fastest exact engine for the untouched model, and its ratio."""
        for trial in ranked:
            if trial.exact and not trial.candidate.passes:
                ratio = self._trials.ratio(trial).estimate
                if ratio < 1:
                    return trial.candidate.engine, ratio
        return self._trials.baseline.engine, 1.0

    def _margins(self, base: Trial, rank: int) -> tuple[str, Array, Array]:
        """Return the output that holds class scores, and each search sample's margin and score."""
        metric: Any = self._trials.promise.metric
        bench, scores = self._trials.bench, []
        found: list[Array] = []
        small, both = small_model_of(base.candidate.passes), []
        if base.artifact is None:
            raise CandidateError(f"{base.candidate.label} was not built")
        opened = bench.open_built(base.candidate.engine, base.artifact)
        try:
            for outputs, own, labels in beside(bench, opened, self._trials.exact_answers):
                try:
                    chosen = class_scores(outputs, metric.output, metric.noun)
                except InputError as error:  # the model chooses the class itself
                    raise CandidateError("the model gives no class scores") from error
                output = next(name for name, array in outputs.items() if array is chosen)
                if chosen.shape[1] <= rank:
                    raise CandidateError(f"its {chosen.shape[1]} classes have no margin")
                if small is not None:
                    both.append((chosen, own[output]))
                found.append(margins(chosen, rank))
                scores.append(scored_where_known(metric, outputs, own, labels))
        finally:
            opened.worker.kill()
        if small is not None:  # of one sample, logits may lie in [0, 1]
            _check_kind(small.words(), *map(np.concatenate, zip(*both, strict=True)))
        return output, np.concatenate(found), np.concatenate(scores)

    def _thresholds(self, base: Trial, close: Array, scores: Array, afford: float) -> list[float]:
        """Return the lowest threshold that would probably be certified, and one that surely would.

        Args:
            base: Trial of the fast model.
            close: Margins of the search samples, `(n,)`.
            scores: Scores of the fast model, `(n,)`.
            afford: Largest share of the answers that may be asked again.
        """
        order = np.sort(close)
        most = min(int(afford * len(order)), len(order) - 1)

        def lowest(passes: Likely) -> int | None:
            """Return the fewest answers to ask again; each one asked again only gets better."""

            def enough(count: int) -> bool:
                mended = np.where(close < order[count], self._trials.exact_scores, scores)
                trial = dataclasses.replace(base, scores=tuple(map(float, mended)))
                return passes(trial, 1.0)

            low, high = 0, most
            if most < 1 or not enough(most):
                return None
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(middle) else (middle, high)
            return high

        probably = None if self._likely(base, 1.0) else lowest(self._likely)
        surely = lowest(self._surely)
        if surely is None and probably is not None:
            surely = min(most, round(_SAFER * probably))
        counts = dict.fromkeys(count for count in (probably, surely) if count is not None)
        return [float(order[count]) for count in counts]


def _check_kind(words: str, scores: Array, own: Array) -> None:
    """Check that some answers of a small model are scores of the original's kind.

    Logarithms of probabilities are logits too.

    Args:
        words: Name of the small model, for people.
        scores: Its class scores, `(n, classes)`.
        own: The original's class scores on the same samples.

    Raises:
        _OtherKind: they aren't.
    """
    kind, wanted = _kind(scores), _kind(own)
    if kind != wanted and (kind, wanted) != ("logarithms of probabilities", "logits"):
        raise _OtherKind(
            f"{words} gives {kind} and the original {wanted}, so some answers would be of one kind and some of "
            f"the other: give a small model that gives {wanted}"
        )


def _kind(scores: Array) -> str:
    """Return the kind of class scores `(n, classes)`, by their values."""
    known = scores[np.isfinite(scores)]
    if known.min(initial=0) >= -_SLACK and known.max(initial=0) <= 1 + _SLACK:
        return "probabilities"
    if known.max(initial=-np.inf) <= _SLACK:
        sums = np.exp(scores.astype(np.float64)).sum(axis=1)
        if 0.5 < np.nanmedian(sums) < 2:
            return "logarithms of probabilities"
    return "logits"
