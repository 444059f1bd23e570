"""Result on the sealed data before its labels: scores, and the answers that labels will score."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hasten.core.comparison import Comparison
from hasten.core.records import from_record, to_record, write_whole
from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError, InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.unlabelled import missing_labels, rows_of
from hasten.optimization.job import Job
from hasten.optimization.ready import Ready

READ = "read without labels"
"""Kind of the journal's event with the scores that the sealed data gave."""
_ANSWERS = "sealed-answers.npz"


@dataclass
class Differences:
    """Gathers, chunk by chunk, the answers to samples without a label that differ between models.

    Attributes:
        metric: Metric that says which answers are the same, whatever the label.
        missing: Which samples lack a label, bool `(n,)`.
        rungs: Keys of the candidates that are compared with the original.
        rows: Samples on which answers differ, in order, once all chunks were seen.
    """

    metric: Metric
    missing: Array
    rungs: Sequence[str]
    rows: list[int] = field(default_factory=list)
    _start: int = 0
    _chunk: dict[str, Tensors] = field(default_factory=dict)
    _kept: dict[str, list[Tensors]] = field(default_factory=dict)

    def __call__(self, key: str, outputs: Tensors) -> None:
        """Take a model's answers to a chunk; the original's, whose key is "", come first."""
        if key == "":
            self._close()
        if key == "" or key in self.rungs:
            self._chunk[key] = outputs

    def _close(self) -> None:
        """Keep what differs in the chunk before, and begin the next."""
        if not self._chunk:
            return
        own = self._chunk[""]
        count = len(next(iter(own.values())))
        differs = np.zeros(count, bool)
        for key, outputs in self._chunk.items():
            if key:
                differs |= ~self.metric.unchanged(outputs, own)
        rows = np.flatnonzero(differs & self.missing[self._start : self._start + count])
        self.rows += (rows + self._start).tolist()
        for key, outputs in self._chunk.items():
            self._kept.setdefault(key, []).append(rows_of(outputs, rows))
        self._start += count
        self._chunk = {}

    def answers(self) -> dict[str, Tensors]:
        """Return each model's answers to `rows`; a model that failed on the way has none."""
        self._close()
        whole: dict[str, Tensors] = {}
        for key, parts in self._kept.items():
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            if len(next(iter(joined.values()))) == len(self.rows):
                whole[key] = joined
        return whole


@dataclass(frozen=True)
class Reading:
    """Scores of the sealed data, where samples without a label are scored by their changes.

    Attributes:
        original: Scores of the original, `(n,)`.
        scores: Key -> scores of the candidate, or the reason why it failed.
        rows: Samples without a label on which answers differ, in order, `(k,)`.
        answers: Key -> answers to these samples, each of shape `(k, ...)`; "" is the original.
        comparisons: Comparisons with the original of all that may ship.
        told: Places in `rows` of the samples that were labelled since, and so have true scores.
        fallen: Key of a candidate that was exact in the search -> how its answers differ, in words.
        changed: Key -> how much of each answer is changed, as the monitor counts it, `(n,)`.
    """

    original: Array
    scores: Mapping[str, Array | str]
    rows: Array
    answers: Mapping[str, Tensors]
    comparisons: tuple[Comparison, ...] = ()
    told: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    fallen: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, Array] = field(default_factory=dict)

    def keep(self, job: Job) -> None:
        """Write the answers to the work folder, and the scores to the journal.

        Raises:
            InputError: the disk is full, or the folder can't be written.
        """
        keys = list(self.answers)
        arrays = {
            f"{i}/{name}": array
            for i, key in enumerate(keys)
            for name, array in self.answers[key].items()
        }
        data = io.BytesIO()
        np.savez(data, **arrays)  # type: ignore[arg-type]
        write_whole(job.folder / _ANSWERS, data.getvalue())
        job.journal.append(
            READ,
            original=self.original.tolist(),
            scores={k: s if isinstance(s, str) else s.tolist() for k, s in self.scores.items()},
            rows=self.rows.tolist(),
            models=keys,
            answers_sha256=hashlib.sha256(data.getvalue()).hexdigest(),
            comparisons=to_record(self.comparisons),
            fallen=self.fallen,
            changed={key: parts.tolist() for key, parts in self.changed.items()},
        )

    @classmethod
    def kept(cls, job: Job) -> Reading | None:
        """Return the reading that a stopped run kept; None where the sealed data wasn't read.

        Raises:
            InputError: the answers are gone or were changed.
        """
        event = job.journal.last(READ)
        if event is None:
            return None
        path = job.folder / _ANSWERS
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"can't read {path}: {error.strerror or error}; remove the folder"
            ) from error
        if hashlib.sha256(data).hexdigest() != event["answers_sha256"]:
            raise InputError(
                f"{path}: the answers to the sealed data were changed; remove the folder"
            )
        answers: dict[str, dict[str, Any]] = {key: {} for key in event["models"]}
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for place in arrays.files:
                number, _, name = place.partition("/")
                answers[event["models"][int(number)]][name] = arrays[place]
        return cls(
            original=np.array(event["original"], np.float64),
            scores={
                key: one if isinstance(one, str) else np.array(one, np.float64)
                for key, one in event["scores"].items()
            },
            rows=np.array(event["rows"], np.int64),
            answers=answers,
            comparisons=tuple(from_record(Comparison, one) for one in event["comparisons"]),
            fallen=event.get("fallen", {}),
            changed={
                key: np.array(parts, np.float64) for key, parts in event.get("changed", {}).items()
            },
        )

    def worst(self, ready: Ready) -> dict[str, int]:
        """Return the number of samples that count as lost for want of a label, by candidate.

        Args:
            ready: Model and data of the run.
        """
        missing = missing_labels(ready.promise.metric, ready.parts.sealed.labels)
        if missing is None:
            return {}
        still = missing.copy()
        still[self.rows[self.told]] = False
        counts = {
            key: int(((self.original > score) & still).sum())
            for key, score in self.scores.items()
            if not isinstance(score, str)
        }
        return {key: count for key, count in counts.items() if count}

    def labelled(self, metric: Metric, labels: Array, known: Array) -> Reading:
        """Return the scores with those of the samples that were labelled since.

        Args:
            metric: Metric that is scored.
            labels: Labels of `rows`, `(k, ...)`; what stands where none is known is of no account.
            known: Which of them are known, bool `(k,)`.

        Raises:
            InputError: a label isn't of the form that the metric reads.
        """
        places = np.flatnonzero(known)
        if not len(places):
            return self
        own, told = rows_of(self.answers[""], places), labels[places]
        original = self.original.copy()
        original[self.rows[places]] = _scores(metric, own, own, told)
        scores: dict[str, Array | str] = {}
        for key, before in self.scores.items():
            if isinstance(before, str) or key not in self.answers:
                scores[key] = before
                continue
            after = before.copy()
            try:
                mine = _scores(metric, rows_of(self.answers[key], places), own, told)
            except CandidateError as error:
                scores[key] = str(error)
                continue
            after[self.rows[places]] = mine
            scores[key] = after
        return replace(self, original=original, scores=scores, told=places)


def _scores(metric: Metric, outputs: Tensors, exact: Tensors, labels: Array) -> Array:
    """Score answers to labelled samples.

    Raises:
        InputError: the original's answers can't be scored by these labels.
        CandidateError: a candidate's can't.
    """
    try:
        return metric.checked(metric.score(outputs, exact, labels), len(labels))
    except InputError as error:
        if outputs is exact:
            raise InputError(f"the labels can't be used: {error}") from error
        raise CandidateError(f"its answers can't be scored: {error}") from error
