"""Choice of the batch sizes that a ladder is certified for, by the search split alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hasten.bundle.batch_mates import share_batch_axis
from hasten.certificate.batches import Batches, drawn_together
from hasten.certificate.draws import BETTING, fewest_draws
from hasten.core.tensors import Array
from hasten.core.varying import no_batches
from hasten.engines.artifacts import batch_sizes
from hasten.engines.cascade import Cascade
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.metrics.unlabelled import scored_where_known
from hasten.measure.accuracy import check_infinite
from hasten.measure.alike import has_steady_shapes, kinds_of
from hasten.measure.steps import over_steps
from hasten.measure.workbench import OpenWorker
from hasten.optimization.judge import Judge, Ladder

SIZES = (2, 4, 8, 16, 32)
"""Batch sizes that are tried beside 1."""
_CHUNKS = 2
"""Chunks of the search split that are answered at each size, of up to 64 samples each."""
_PAYS = 0.95
"""Largest time per sample, as a share of that in smaller batches, at which a larger batch is worth it."""
_MOVES = 0.1
"""Largest drop beside lone samples, as a share of the limit, with which a size has a chance."""
_SHARE = 0.1
"""Longest further time for reading the sealed data, as a share of the run's time so far."""
_LEAST_S = 5.0


def with_batches(judge: Judge, ladder: Ladder) -> Ladder:
    """Return the ladder with the batch sizes that each rung is to be tested at.

    A size is tested if the model takes it, a sample takes less time in it, answers in it are about those
    of lone samples on the search split, and the sealed data can tell: where rows may depend on each
    other, a batch is one draw. All sizes together may lengthen the run by a tenth. A rung whose pictures are
    decoded smaller is tested at the sizes of its model: requests with whole pixels are batched as it states.

    Args:
        judge: Judge of the run.
        ladder: Ladder before it is frozen.
    """
    ready, job = judge.ready, judge.job
    if ready.target.kind == "compile-only" or ready.unrolled is not None:
        return ladder
    left_s = max(_LEAST_S, _SHARE * job.deadline.elapsed_s)
    found: dict[str, Batches] = {}
    if (spare_s := job.deadline.left_s() - job.deadline.needs("certify").wish_s) < _LEAST_S:
        found = dict.fromkeys(
            ladder.rungs, Batches(without="the time limit left no time to test them")
        )
        return replace(ladder, batches=found)
    left_s = min(left_s, spare_s / 2)
    judge.stand_by(ladder)
    models = {key: _model_of(judge, key) for key in ladder.rungs}
    asked = [key for key, model in models.items() if model == key or model not in models]
    for number, key in enumerate(asked):
        job.tell("certify", "batch sizes worth certifying", number, len(asked))
        try:
            with judge.opened(key) as opened:
                asking = _Asking(judge, key, opened, left_s / (len(asked) - number))
                found[key] = asking.chosen()
                left_s -= asking.taken_s
        except (CandidateError, InputError) as error:
            found[key] = Batches(without=str(error))
    return replace(
        ladder, batches={key: found[key if key in found else models[key]] for key in models}
    )


def _model_of(judge: Judge, key: str) -> str:
    """Return the key of a candidate's model, whose pictures are decoded as the pipeline states."""
    candidate = judge.trials.done[key].candidate
    return replace(candidate, least=0).key if candidate.least else key


class _Asking:
    """One candidate that is asked in batches."""

    def __init__(self, judge: Judge, key: str, opened: OpenWorker, most_s: float) -> None:
        self._judge, self._key, self._opened = judge, key, opened
        self._most_s = most_s
        self.taken_s = 0.0

    def chosen(self) -> Batches:
        """Return the sizes to test, and why larger ones aren't.

        Raises:
            CandidateError: the candidate can't answer lone samples.
        """
        bench, ready = self._judge.trials.bench, self._judge.ready
        if bench.varying:
            return Batches(without=no_batches(bench.varying))
        possible = [size for size in self._possible() if size <= bench.chunk]
        if not possible:
            return Batches(without="the model accepts no larger batches here")
        kinds = self._kinds(ready.parts.sealed) if ready.extents else ()
        limit = ready.promise.max_drop
        lone, best_s = self._answered(1)
        apart: bool | None = None
        kept: list[int] = []
        why = "a sample takes no less time in larger ones"
        for size in possible:
            try:
                scores, each_s = self._answered(size)
            except CandidateError as error:
                why = f"{size} and larger: {error}"
                break
            if float(np.maximum(lone - scores, 0).mean()) > _MOVES * limit:
                why = f"{size} and larger: on the search split answers depend on the batch"
                break
            if each_s > _PAYS * best_s:
                continue
            apart = self._apart() if apart is None else apart
            apart = apart and not self._moved(size)
            if not apart and (needed := self._lacking(size, kinds)):
                why = (
                    f"{size} and larger: rows may depend on each other, so each batch is one draw, and "
                    f"{needed:,} batches would be needed"
                )
                break
            cost_s = each_s * len(ready.parts.sealed)
            if self.taken_s + cost_s > self._most_s:
                why = f"{size} and larger: testing them would take over {self._most_s:.0f} s"
                break
            self.taken_s += cost_s
            best_s = each_s
            kept.append(size)
        largest = bool(kept) and kept[-1] == possible[-1]
        why = "" if largest else why
        return Batches(tuple(kept), bool(apart), bench.chunk, why, kinds if kept else ())

    def _possible(self) -> tuple[int, ...]:
        """Return the sizes that the open session takes."""
        artifact = self._opened.artifact
        if batch_sizes(artifact) is not None or not share_batch_axis(
            artifact.inputs, artifact.outputs
        ):
            return ()
        takes, _ = self._judge.trials.bench.ask(self._opened.worker, "takes")
        return tuple(size for size in SIZES if takes is None or size in takes)

    def _answered(self, size: int) -> tuple[Array, float]:
        """Return scores on some of the search split, and the seconds that a sample took."""
        trials = self._judge.trials
        asked = replace(self._opened, batch=size)
        parts, took_s, rows = list[Array](), 0.0, 0
        answers = trials.bench.predict(asked, trials.samples)
        metric = over_steps(trials.promise.metric, trials.bench.sequences)
        for own, labels in trials.exact_answers:
            if rows >= _CHUNKS * trials.bench.chunk:
                break
            began_s = time.perf_counter()
            outputs = next(answers)
            took_s += time.perf_counter() - began_s
            rows += len(next(iter(outputs.values())))
            check_infinite(outputs, own)
            try:
                scores = scored_where_known(metric, outputs, own, labels)
                parts.append(np.asarray(scores, np.float64))
            except InputError as error:
                raise CandidateError(f"answers can't be scored: {error}") from error
        return np.concatenate(parts), took_s / max(1, rows)

    def _apart(self) -> bool:
        """Whether it is proven that rows are answered each by itself."""
        bench = self._judge.trials.bench
        _, apart = bench.ask(self._opened.worker, "takes")
        if apart:
            return True
        candidate = self._judge.trials.done[self._key].candidate
        graphs = [candidate.passes, *([()] if isinstance(candidate.engine, Cascade) else [])]
        return all(bench.rows_apart(passes, self._opened.artifact.request) for passes in graphs)

    def _moved(self, size: int) -> bool:
        """Whether an answer is seen to depend on its batch mates, whatever the graph says."""
        trials = self._judge.trials
        return bool(
            trials.bench.ask(
                self._opened.worker,
                "moved_by_mates",
                samples=trials.samples.folder,
                batch=size,
            )
        )

    def _lacking(self, size: int, kinds: Sequence[int]) -> int:
        """Return the number of batches that would do, where the sealed data has fewer; else 0."""
        ready, chunk = self._judge.ready, self._judge.trials.bench.chunk
        promise = ready.tested or ready.promise
        needed = fewest_draws(BETTING, promise.max_drop, 1 - promise.confidence)
        draws = drawn_together(ready.sealed_units, size, chunk, kinds)
        return needed if len(np.unique(draws)) < needed else 0

    def _kinds(self, samples: Dataset) -> tuple[int, ...]:
        """Return the kind of each sample, of which those of one kind may share a batch.

        Raises:
            CandidateError: nobody knows, since samples have other shapes at each read.
            InputError: a sample can't be read.
        """
        if not has_steady_shapes(samples):
            raise CandidateError("samples have other shapes at each read")
        artifact = self._opened.artifact
        padder = self._judge.trials.done[self._key].candidate.engine.shared_padder(artifact)
        return tuple(kinds_of(padder, samples, range(len(samples)), artifact.request))
