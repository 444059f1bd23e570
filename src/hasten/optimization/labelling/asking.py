"""The labels of a run: asked for once, kept as they come, and never asked for again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.objects import load_object
from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import InputError, LabelsWanted
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.optimization.job import Job
from hasten.optimization.labelling.answers import read_labels
from hasten.optimization.labelling.folder import LABELS, PAGE, write_folder
from hasten.optimization.labelling.oracle import AT_ONCE, labels_of
from hasten.optimization.labelling.reading import Reading
from hasten.optimization.labelling.samples import Questions
from hasten.optimization.order import is_function
from hasten.optimization.ready import Ready

TOLD = "labels"
"""Kind of the journal's event with labels that a function gave."""
_PAUSE_S = 0.5
_ORACLE_S = 600.0


@dataclass(frozen=True)
class Labels:
    """Labels of the samples on which answers differ.

    Attributes:
        known: Identifier -> label, as an array; a sample that nobody can tell has none.
        unsure: Number of samples that nobody can tell.
        left: Number of samples that are still to be labelled.
    """

    known: Mapping[str, Array]
    unsure: int
    left: int

    def rows(self, questions: Questions, count: int) -> tuple[Array, Array]:
        """Return labels by place, `(count, ...)`, and which of them are known, bool `(count,)`.

        Raises:
            InputError: labels have different shapes.
        """
        shapes = {label.shape for label in self.known.values()}
        if len(shapes) > 1:
            one, other = sorted(map(list, shapes))[:2]
            raise InputError(f"labels have the shapes {one} and {other}; pad them to one shape")
        shape = next(iter(shapes), ())
        whole = bool(questions.form.classes) and not shape
        labels = np.zeros((count, *shape), np.int64 if whole else np.float64)
        known = np.zeros(count, bool)
        for key, label in self.known.items():
            places = list(questions.places[key])
            labels[places] = label
            known[places] = True
        return labels, known


def folder_of(out: Path) -> Path:
    """Return the folder, beside a bundle, with the samples to label."""
    return out.with_name(f"{out.name}.labels")


def collected(
    job: Job, ready: Ready, reading: Reading, enough: Callable[[Reading], bool]
) -> tuple[Reading, list[str]]:
    """Return what the sealed data says with its labels, and notes on them.

    Labels are asked for in the way that was ordered, until no further label could matter. A run that
    was resumed without asking goes on with the labels that there are: each of the others counts as
    lost.

    Args:
        job: The run at work.
        ready: Model and data of the run.
        reading: Result on the sealed data without labels.
        enough: Whether the limit holds by such a reading, whatever the labels are that it lacks.

    Raises:
        LabelsWanted: samples are still to be labelled.
        InputError: labels can't be used, or a function that labels failed; what was labelled is kept.
    """
    if not len(reading.rows):
        return reading, []
    questions = Questions.of(ready, reading, job.order.seed)
    if enough(reading):
        return reading, [
            f"no label was needed: answers differ on {len(questions):,} of {questions.sealed:,} "
            "sealed samples, and the limit holds for any labels of those"
        ]
    missing = missing_labels(ready.promise.metric, ready.parts.sealed.labels)
    ask = _Asking(job, questions, reading, ready, enough)
    found, settled = ask.answered()
    return settled, _notes(questions, found, labelled=missing is None or not missing.all())


@dataclass(frozen=True)
class _Asking:
    """One run's questions, and the way in which they are asked."""

    job: Job
    questions: Questions
    reading: Reading
    ready: Ready
    enough: Callable[[Reading], bool]

    def answered(self) -> tuple[Labels, Reading]:
        """Return the labels, and what the sealed data says with them.

        Raises:
            LabelsWanted: samples are still to be labelled.
            InputError: labels can't be used.
        """
        how, folder = self.job.order.ask_labels, folder_of(self.job.order.out)
        table = folder / LABELS
        if how is None:
            found = _from_file(table, self.questions)
            found = found if found.known else _from_journal(self.job, self.questions)
            return found, self._settled(found)
        if is_function(how):
            found = _from_function(self.job, self.questions, how)
            return found, self._settled(found)
        known: dict[str, str] = {}
        if how.endswith(".csv"):
            if not Path(how).is_file():
                raise InputError(f"no such file: {how}")
            known = _texts(Path(how), self.questions)
            found = _labels(known, self.questions)
            settled = self._settled(found)
            if not found.left or self.enough(settled):
                return found, settled
        write_folder(folder, self.questions, page=how != "csv", known=known)
        if how == "wait":
            return self._waited(folder)
        found = _from_file(table, self.questions)
        settled = self._settled(found)
        if found.left and not self.enough(settled):
            raise _wanted(found, self.questions, folder, table if how == "csv" else folder / PAGE)
        return found, settled

    def _settled(self, found: Labels) -> Reading:
        labels, known = found.rows(self.questions, len(self.reading.rows))
        return self.reading.labelled(self.ready.promise.metric, labels, known)

    def _waited(self, folder: Path) -> tuple[Labels, Reading]:
        """Serve the page, and wait until no further label could matter."""
        from hasten.optimization.labelling.served import served

        before = -1
        with served(folder) as url:
            while True:
                found = _from_file(folder / LABELS, self.questions)
                done = len(self.questions) - found.left
                if done != before:
                    place = f"label on {url}"
                    news = place if before < 0 else None  # which a screen of plain lines prints
                    self.job.tell("label", place, done, len(self.questions), news=news)
                    settled = self._settled(found)
                    if not found.left or self.enough(settled):
                        return found, settled
                before = done
                time.sleep(_PAUSE_S)


def _notes(questions: Questions, found: Labels, *, labelled: bool) -> list[str]:
    """Return notes on the labels that were asked for.

    Args:
        questions: Samples that were to be labelled.
        found: Their labels.
        labelled: Whether some sealed samples had a label from the beginning.
    """
    asked = len(questions)
    before = " or had a label from the beginning" if labelled else ""
    notes = [
        f"{amount(len(found.known), 'label')} for {amount(questions.sealed, 'sealed sample')}: on all but {asked:,} every "
        f"candidate answers as the original does{before}"
    ]
    if found.unsure:
        notes.append(
            f"{found.unsure:,} of {asked:,} samples that got no certain label count as lost"
        )
    if found.left:
        notes.append(
            f"{found.left:,} of {asked:,} samples to label got no label: each counts as lost, "
            "which is the worst case"
        )
    return notes


def _labels(texts: Mapping[str, str], questions: Questions) -> Labels:
    known, unsure = {}, 0
    for key, text in texts.items():
        value = questions.form.read(text)
        if value is None:
            unsure += 1
        else:
            known[key] = np.asarray(value)
    return Labels(known, unsure, len(questions) - len(known) - unsure)


def _from_file(path: Path, questions: Questions) -> Labels:
    return _labels(read_labels(path, list(questions.places), questions.form), questions)


def _wanted(found: Labels, questions: Questions, folder: Path, place: Path) -> LabelsWanted:
    done = len(questions) - found.left
    before = f", {done:,} {'is' if done == 1 else 'are'} labelled" if done else ""
    return LabelsWanted(
        f"{found.left:,} of {questions.sealed:,} to label{before}: label them in {place} (or by hasten label "
        f"{folder}), and continue with resume=True",
        folder,
        found.left,
    )


def _texts(path: Path, questions: Questions) -> dict[str, str]:
    return read_labels(path, list(questions.places), questions.form)


def _from_journal(job: Job, questions: Questions) -> Labels:
    """Return the labels that a function gave before the run was stopped."""
    known: dict[str, Array] = {}
    unsure = 0
    for event in job.journal.events(TOLD):
        for key, label in zip(event["ids"], event["labels"], strict=True):
            if label is None:
                unsure += 1
            else:
                known[key] = np.asarray(label)
    return Labels(known, unsure, len(questions) - len(known) - unsure)


def _from_function(job: Job, questions: Questions, name: str) -> Labels:
    """Ask a function for the labels that the journal lacks; each call's labels are kept at once."""
    function: Callable[..., Any] = load_object(name)
    told = {key for event in job.journal.events(TOLD) for key in event["ids"]}
    limit_s = job.order.trial_limit_s or _ORACLE_S
    left = (sample for sample in questions.samples() if sample.id not in told)
    for samples in _chunks(left):
        job.tell("label", f"asking {name}", len(told), len(questions))
        labels = labels_of(function, name, samples, questions.form, limit_s)
        ids = [sample.id for sample in samples]
        rows = [None if label is None else label.tolist() for label in labels]
        job.journal.append(TOLD, ids=ids, labels=rows)
        told.update(ids)
    return _from_journal(job, questions)


def _chunks(samples: Iterator[Any]) -> Iterator[Sequence[Any]]:
    while chunk := list(itertools.islice(samples, AT_ONCE)):
        yield chunk
