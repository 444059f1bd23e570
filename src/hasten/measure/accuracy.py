"""Scores of candidates, chunk by chunk, so that neither data nor outputs need fit in memory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.core.varying import Summarized, in_words, uneven, with_summaries
from hasten.errors import CandidateError, InputError, OutOfTime, Uneven, named
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.unlabelled import scored_where_known
from hasten.measure.steps import over_steps
from hasten.measure.workbench import Bench, OpenWorker

_EXPORT = (
    "if the model removes overlapping boxes itself, export it up to its raw boxes and give the steps yolo_boxes and nms "
    "after the model in a pipeline; else fill the output up to a fixed size in the graph"
)


def unscored(error: InputError, varying: Sequence[str]) -> InputError:
    """Return the error of a metric that can't score the original without outputs of varying size."""
    return InputError(
        f"{error}; it can't read {in_words(varying)}: choose a metric that reads another output, as in agreement@NAME; {_EXPORT}"
    )


def unanswered(error: CandidateError) -> InputError:
    """Return the error that says why the original's answers can't be compared, with a step."""
    if isinstance(error, Uneven):
        return InputError(
            f"the original model's {error}, and hasten compares answers of one shape only: {_EXPORT}, or leave it out"
        )
    return InputError(f"the original model can't answer the data: {error}")


class ExactAnswers:
    """The exact model's outputs on a spool, kept on disk to score every candidate by.

    Args:
        bench: Workbench that runs the model.
        exact: The exact model, open.
        samples: Samples to answer.
        folder: Folder that keeps the outputs; any older one is replaced.

    Raises:
        InputError: the exact model's own answers aren't finite.
        Uneven: the size of an output depends on the samples' values, and the bench doesn't call it varying.
    """

    def __init__(self, bench: Bench, exact: OpenWorker, samples: Spool, folder: Path) -> None:
        self.samples = samples
        self._folder = folder
        self._sequences = bench.sequences
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._names: list[str] = []
        self._summed: list[str] = []
        self._shapes: dict[str, dict[tuple[tuple[int, ...], ...], tuple[int, ...]]] = {}
        self._counts: list[int] = []
        try:
            for number, outputs in enumerate(bench.predict(exact, samples)):
                self._check_even(outputs, sum(self._counts))
                arrays = with_summaries(outputs)
                self._names, self._summed = list(outputs), [n for n in arrays if n not in outputs]
                self._counts.append(len(next(iter(outputs.values()))))
                for i, array in enumerate(arrays.values()):
                    np.save(folder / f"{number}-{i}.npy", array)
            self._check_rows()
        except (OutOfTime, Uneven):
            raise
        except CandidateError as error:
            raise unanswered(error) from error
        except OSError as error:
            raise InputError(f"can't write {folder}: {error.strerror or error}") from error

    def __iter__(self) -> Iterator[tuple[Tensors, Array | None]]:
        """Yield the outputs and labels of each chunk."""
        labels = self.samples.labels
        end = 0
        for number, count in enumerate(self._counts):
            rows = slice(end, end + count)
            end += count
            kept = [
                {
                    name: np.load(self._folder / f"{number}-{i}.npy")
                    for i, name in enumerate(names, first)
                }
                for names, first in ((self._names, 0), (self._summed, len(self._names)))
            ]
            outputs = Summarized(*kept) if self._summed else kept[0]
            yield outputs, None if labels is None else labels[rows]

    def _check_even(self, outputs: Tensors, first: int) -> None:
        """Check that samples of one shape got answers of one shape, whichever samples are between.

        Args:
            outputs: Answers to samples of one shape.
            first: Number of the first of them.

        Raises:
            Uneven: they didn't.
        """
        asked = tuple(self.samples.shapes(first).values())
        for name, array in outputs.items():
            shape = self._shapes.setdefault(name, {}).setdefault(asked, array.shape[1:])
            if array.shape[1:] != shape:
                raise uneven(name, *_whole([shape, array.shape[1:]]))

    def _check_rows(self) -> None:
        """Check that answers of one row and of several are explained by the samples' shapes.

        They are if no sample got fewer rows than another one that is no larger in any axis. Then the rows may be those of
        a text's tokens, for example. Where no answer has one row, or each has, rows aren't compared between samples of
        different shapes: a picture's may have fewer rows because it is wider.

        Raises:
            Uneven: the rows depend on values.
        """
        for name, answers in self._shapes.items():
            whole = _whole([*answers.values()])
            if whole == [*answers.values()]:
                continue
            sizes = np.array([[n for shape in asked for n in shape] for asked in answers])
            rows = np.array([shape[0] for shape in whole])
            for place, shape in enumerate(whole):
                more = (sizes <= sizes[place]).all(axis=1) & (rows > rows[place])
                if more.any():
                    raise uneven(name, whole[int(more.argmax())], shape)

    def scores(self, metric: Metric) -> Array:
        """Return the exact model's own scores, shape `(n,)`."""
        judged_by = over_steps(metric, self._sequences)
        ends = np.cumsum([0, *self._counts]).tolist()
        return np.concatenate(
            [_own_scores(judged_by, *one, first) for one, first in zip(self, ends, strict=False)]
        )


def _whole(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return an output's shapes with a first axis of 1 that the worker took for the batch's."""
    axes = max(map(len, shapes))
    return [shape if len(shape) == axes else (1, *shape) for shape in shapes]


def scored(
    bench: Bench,
    opened: OpenWorker,
    exact: ExactAnswers,
    metric: Metric,
    samples: Spool | None = None,
) -> Iterator[Array]:
    """Yield a candidate's scores chunk by chunk, so that a hopeless candidate can be dropped early.

    Args:
        bench: Workbench that runs the candidate.
        opened: The candidate, open.
        exact: The exact model's answers.
        metric: Metric that is scored.
        samples: The same samples as this candidate takes them; by default those of the exact model.

    Raises:
        CandidateError: the candidate failed, or the metric can't read its outputs.
    """
    return (scores for scores, _, _ in answered(bench, opened, exact, metric, samples))


def answered(
    bench: Bench,
    opened: OpenWorker,
    exact: ExactAnswers,
    metric: Metric,
    samples: Spool | None = None,
) -> Iterator[tuple[Array, Tensors, Tensors]]:
    """Yield a candidate's scores and outputs, and the exact model's outputs, chunk by chunk.

    Args:
        bench: Workbench that runs the candidate.
        opened: The candidate, open.
        exact: The exact model's answers.
        metric: Metric that is scored.
        samples: The same samples as this candidate takes them; by default those of the exact model.

    Raises:
        CandidateError: the candidate failed, or the metric can't read its outputs.
    """
    metric = over_steps(metric, bench.sequences)
    for outputs, own, labels in beside(bench, opened, exact, samples):
        yield _score(metric, outputs, own, labels), outputs, own


def beside(
    bench: Bench, opened: OpenWorker, exact: ExactAnswers, samples: Spool | None = None
) -> Iterator[tuple[Tensors, Tensors, Array | None]]:
    """Yield a candidate's outputs, the exact model's and the labels, chunk by chunk.

    Args:
        bench: Workbench that runs the candidate.
        opened: The candidate, open.
        exact: The exact model's answers.
        samples: The same samples as this candidate takes them; by default those of the exact model.

    Raises:
        CandidateError: the candidate failed.
    """
    taken = exact.samples if samples is None else samples
    with contextlib.closing(bench.predict(opened, taken)) as answers:
        for outputs, (own, labels) in zip(answers, exact, strict=True):
            yield outputs, own, labels


def _score(metric: Metric, outputs: Tensors, own: Tensors, labels: Array | None) -> Array:
    """Score a candidate's answers; the original's were scored, so a failure is the candidate's."""
    check_infinite(outputs, own)
    try:
        return _checked(metric, outputs, own, labels)
    except InputError as error:
        raise CandidateError(f"its answers can't be scored: {error}") from error
    except Exception as error:  # a user's own function may not expect such answers
        raise CandidateError(f"its answers can't be scored: {named(error)}") from error


def check_infinite(outputs: Tensors, own: Tensors) -> None:
    """Check that a candidate's answers are infinite only where the original's are too.

    Raises:
        CandidateError: they aren't.
    """
    for name, array in outputs.items():
        if array.dtype.kind != "f" or not (found := np.isinf(array)).any():
            continue
        theirs = own.get(name)
        same = theirs is not None and theirs.shape == array.shape
        if not same or (found & (array != theirs)).any():
            raise CandidateError(f"output {name!r} has Inf where the original has another number")


def _own_scores(metric: Metric, own: Tensors, labels: Array | None, first: int) -> Array:
    """Score the original's own answers, of which the first one is to the sample `first`.

    Raises:
        InputError: they can't be scored, or hold infinite numbers that the metric doesn't read.
    """
    for name, array in own.items():
        if array.dtype.kind not in "fc" or metric.takes_infinite(name):
            continue
        found = np.flatnonzero(np.isinf(array).reshape(len(array), -1).any(axis=1))
        if len(found):
            raise InputError(
                f"the original model's output {name!r} has Inf for sample {first + found[0]}, which "
                "this metric can't read: choose a metric of classes, regression, a metric that reads "
                "another output, or your own function, as in my.py:score"
            )
    return _checked(metric, own, own, labels)


def _checked(metric: Metric, outputs: Tensors, own: Tensors, labels: Array | None) -> Array:
    """Score answers, and hold the metric to one number in [0, 1] for each sample.

    A sample without a label scores 1 where its answer is the exact model's, and else 0.

    Raises:
        InputError: the answers can't be scored, or a score isn't one.
    """
    count = len(next(iter(outputs.values())))
    return metric.checked(scored_where_known(metric, outputs, own, labels), count)


def sealed_scores(
    bench: Bench,
    exact: OpenWorker,
    rungs: Mapping[str, OpenWorker],
    sealed: Dataset,
    metric: Metric,
    listen: Callable[[int], None] = lambda done: None,
    *,
    units: Array | None = None,
    watch: Callable[[str, Tensors], None] = lambda key, outputs: None,
    exact_takes: Callable[[Dataset], Dataset] | None = None,
    apart: Mapping[str, Dataset] = MappingProxyType({}),
) -> tuple[Array, dict[str, Array | str]]:
    """Score the exact model and every rung on the sealed data, in one pass over it.

    Args:
        bench: Workbench that runs the models.
        exact: The exact model, open.
        rungs: Key -> open candidate.
        sealed: Sealed data, read once, in chunks.
        metric: Metric that is scored.
        listen: Callback that receives the number of samples scored so far.
        units: Number of each sample's group, `(n,)`; by default every sample stands alone.
        watch: Callback that receives the outputs of each model on each chunk; the exact model's key
            is "".
        exact_takes: Function of a chunk that returns it as the exact model takes it; by default all
            models take the same.
        apart: Key -> the same samples, in the same order, as a rung takes them that takes others.

    Returns:
        Scores of the exact model, `(n,)`; and of each rung, or the reason why it failed.
    """
    own: list[Array] = []
    theirs: dict[str, list[Array]] = {key: [] for key in rungs}
    failed: dict[str, str] = {}
    for part, scores in score_once(bench, exact, rungs, sealed, metric, watch, exact_takes, apart):
        own.append(part)
        for key, score in scores.items():
            if isinstance(score, str):
                failed[key] = score
            else:
                theirs[key].append(score)
        listen(sum(map(len, own)))
    groups = np.arange(len(sealed)) if units is None else units

    def over(parts: Sequence[Array]) -> Array:
        return metric.over(np.concatenate(parts), sealed.labels, groups)

    whole: dict[str, Array | str] = {
        key: failed[key] if key in failed else over(parts) for key, parts in theirs.items()
    }
    return over(own), whole


def score_once(
    bench: Bench,
    exact: OpenWorker,
    others: Mapping[str, OpenWorker],
    samples: Dataset,
    metric: Metric,
    watch: Callable[[str, Tensors], None] = lambda key, outputs: None,
    exact_takes: Callable[[Dataset], Dataset] | None = None,
    apart: Mapping[str, Dataset] = MappingProxyType({}),
) -> Iterator[tuple[Array, dict[str, Array | str]]]:
    """Read samples once, chunk by chunk, and score every model on each chunk.

    Args:
        bench: Workbench that runs the models.
        exact: The exact model, open.
        others: Key -> open candidate.
        samples: Samples to read in order; none of them stays on disk.
        metric: Metric that is scored.
        watch: Callback that receives the outputs of each model on each chunk; the exact model's key
            is "".
        exact_takes: Function of a chunk that returns it as the exact model takes it; by default all
            models take the same.
        apart: Key -> the same samples, in the same order, as a candidate takes them that takes others.

    Yields:
        Scores of the exact model on a chunk, `(k,)`; and of each candidate, or why it failed.

    Raises:
        InputError: the exact model can't answer a sample, its answer can't be scored, or a sample
            can't be read.
    """
    failed: dict[str, str] = {}
    metric = over_steps(metric, bench.sequences)
    for start in range(0, len(samples), bench.chunk):
        rows = np.arange(start, min(start + bench.chunk, len(samples)))
        folder = bench.folder / "sealed-chunk"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            chunk = write_spool(Subset(samples, rows), folder / "samples")
            taken = chunk
            if exact_takes is not None:
                taken = write_spool(exact_takes(chunk), folder / "exact")
            try:
                own = _answers(bench, exact, taken, start)
            except OutOfTime:
                raise
            except CandidateError as error:
                raise unanswered(error) from error
            answers: dict[str, list[Tensors]] = {}
            chunks: dict[int, Spool] = {}
            for key, opened in others.items():
                if key not in failed:
                    try:
                        data = apart.get(key)
                        if data is not None and id(data) not in chunks:
                            place = folder / f"apart{len(chunks)}"
                            chunks[id(data)] = _spooled_apart(data, rows, place)
                        part = chunk if data is None else chunks[id(data)]
                        answers[key] = _answers(bench, opened, part, start)
                    except OutOfTime:
                        raise
                    except CandidateError as error:
                        failed[key] = str(error)
            original, parts = _scored_parts(
                metric, own, answers, chunk.labels, failed, watch, start
            )
            scores: dict[str, Array | str] = {
                key: failed[key] if key in failed else np.concatenate(parts[key]) for key in others
            }
            yield original, scores
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _spooled_apart(samples: Dataset, rows: Array, folder: Path) -> Spool:
    """Write samples as a candidate takes them; what can't be read so is the candidate's failure.

    Raises:
        CandidateError: a sample can't be read, or the disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return write_spool(Subset(samples, rows), folder)
    except InputError as error:
        raise CandidateError(str(error)) from error


def _scored_parts(
    metric: Metric,
    own: Sequence[Tensors],
    answers: Mapping[str, Sequence[Tensors]],
    labels: Array | None,
    failed: dict[str, str],
    watch: Callable[[str, Tensors], None],
    first: int,
) -> tuple[Array, dict[str, list[Array]]]:
    """Score the answers to a chunk part by part; the parts are of like shapes.

    Args:
        metric: Metric that is scored.
        own: Answers of the exact model to each part.
        answers: Key -> answers of a candidate to each part.
        labels: Labels of the chunk; None if there are none.
        failed: Key -> why a candidate failed; added to here.
        watch: Callback that receives the answers of each model to each part, the exact model's first.
        first: Number of the chunk's first sample in error messages.

    Returns:
        Scores of the exact model on the chunk, `(k,)`, and of each candidate on each part.
    """
    original: list[Array] = []
    scores: dict[str, list[Array]] = {key: [] for key in answers}
    end = 0
    for number, exact in enumerate(own):
        begin, end = end, end + len(next(iter(exact.values())))
        told = None if labels is None else labels[begin:end]
        original.append(_own_scores(metric, exact, told, first + begin))
        watch("", exact)
        for key, parts in answers.items():
            if key not in failed:
                try:
                    scores[key].append(_score(metric, parts[number], exact, told))
                    watch(key, parts[number])
                except CandidateError as error:
                    failed[key] = str(error)
    return np.concatenate(original), scores


def _answers(bench: Bench, opened: OpenWorker, chunk: Spool, start: int) -> list[Tensors]:
    return list(bench.predict(opened, chunk, number_from=start))
