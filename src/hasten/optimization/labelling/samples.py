"""The samples that are to be labelled, in an order and a form that show no model's answer."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.table import reads_rows
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import class_scores, decided_classes
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.text import Tokenize
from hasten.optimization.labelling.answers import Form
from hasten.optimization.labelling.reading import Reading
from hasten.optimization.labelling.wanted import Relabelled
from hasten.optimization.ready import Ready

_SIDES = ((500, 640), (3000, 320))
"""Longest sides of pictures on a page, in pixels, for up to so many samples; of more it is 160."""
_SMALLEST, _LARGEST = 6, 4096
"""Sides of an array that is shown as a picture, in pixels."""
_FEW = 24
"""Numbers that are shown of an array that is neither a picture nor a row."""


@dataclass(frozen=True)
class Sample:
    """One sample that is to be labelled, as a function that labels receives it.

    Attributes:
        id: Identifier, by the content.
        row: Position in the data, from 0.
        inputs: The model's inputs by name, without an axis for samples.
        file: Image file; None where samples come from elsewhere.
        values: Values by column, where samples are rows of a table; else empty.
        text: Text that the model's tokens stand for; empty where none does.
    """

    id: str
    row: int
    inputs: Mapping[str, Array]
    file: Path | None = None
    values: Mapping[str, Any] | None = None
    text: str = ""


@dataclass(frozen=True)
class Questions:
    """The samples on which answers differ and which have no label, each content once.

    Attributes:
        places: Identifier -> places of its samples in `rows` of the reading; in shuffled order.
        form: Form of a label.
        dataset: Data that the samples come from.
        rows: Position in the data of each place.
        pipeline: Steps before the model; None where there are none.
        sealed: Number of sealed samples.
    """

    places: Mapping[str, tuple[int, ...]]
    form: Form
    dataset: Dataset
    rows: Array
    pipeline: Pipeline | None
    sealed: int

    @classmethod
    def of(cls, ready: Ready, reading: Reading, seed: int) -> Questions:
        """Return the questions of a run.

        Args:
            ready: Model and data of the run.
            reading: Result on the sealed data.
            seed: Seed of the order, which is that of no model's answers.
        """
        parts = ready.parts
        places: dict[str, list[int]] = {}
        for place, row in enumerate(reading.rows.tolist()):
            places.setdefault(f"s{parts.sealed_hashes[row][:16]}", []).append(place)
        ids = sorted(places)
        shuffled = np.random.default_rng(seed).permutation(len(ids))
        dataset = _unwrapped(parts.sealed)
        return cls(
            places={ids[i]: tuple(places[ids[i]]) for i in shuffled},
            form=form_of(
                ready.promise.metric, reading.answers[""], _names_of_classes(ready, dataset)
            ),
            dataset=dataset,
            rows=parts.sealed.indices[reading.rows],
            pipeline=ready.pipeline,
            sealed=len(parts.sealed),
        )

    def __len__(self) -> int:
        return len(self.places)

    def samples(self) -> Iterator[Sample]:
        """Read the samples one at a time, in the order of the questions.

        Raises:
            InputError: a sample can't be read any more.
        """
        row_step = reads_rows(self.pipeline)
        for key, places in self.places.items():
            row = int(self.rows[places[0]])
            inputs = {name: array[0] for name, array in self.dataset.inputs([row]).items()}
            file = self.dataset.files[row] if isinstance(self.dataset, ImageFolder) else None
            values = None
            if row_step is not None:
                words = dict(row_step.words)
                numbers = next(iter(inputs.values())).reshape(-1)
                values = {
                    name: _value(float(number), words.get(name))
                    for name, number in zip(row_step.columns, numbers, strict=True)
                }
            yield Sample(key, row, inputs, file, values, self._text(inputs))

    def _text(self, inputs: Mapping[str, Array]) -> str:
        step = self._tokenize
        if step is None or step.ids not in inputs:
            return ""
        ids = inputs[step.ids].reshape(-1)
        if step.mask in inputs:
            ids = ids[inputs[step.mask].reshape(-1) > 0]
        try:
            return step.read_back(ids)
        except InputError:
            return ""  # the numbers are shown instead

    @cached_property
    def _tokenize(self) -> Tokenize | None:
        steps = () if self.pipeline is None else self.pipeline.steps
        return next((step for step in steps if isinstance(step, Tokenize)), None)


def _unwrapped(sealed: Subset) -> Dataset:
    """Return the data that sealed samples lie in, as it was opened."""
    dataset = sealed.whole
    return dataset.whole if isinstance(dataset, Relabelled) else dataset


def _value(number: float, words: tuple[str | float, ...] | None) -> Any:
    """Return a value of a row as its table has it: a word, a number, or None for none."""
    if np.isnan(number):
        return None
    if words is not None and number % 1 == 0 and 0 <= number < len(words):
        return words[int(number)]
    return number


def _names_of_classes(ready: Ready, dataset: Dataset) -> tuple[str, ...]:
    """Return the names of classes that the data or the pipeline states; empty where neither does."""
    if isinstance(dataset, ClassFiles) and dataset.classes:
        return dataset.classes
    every = () if ready.pipeline is None else (step.labels for step in ready.pipeline.after)
    return next((tuple(map(str, own)) for own in every if own), ())


def form_of(metric: Metric, answers: Tensors, names: tuple[str, ...] = ()) -> Form:
    """Return the form of a label, from the metric and the model's answers.

    Args:
        metric: Metric that reads the labels.
        answers: Outputs of the model by name, each of shape `(n, ...)`.
        names: Names of classes, in order, if they are known.
    """
    if not metric.reads_classes:
        return Form()
    if metric.answers == "classes" and decided_classes(answers, metric.output) is not None:
        return Form(
            len(names), _distinct(names)
        )  # the model chooses the class, and nothing else counts them
    try:
        count = class_scores(answers, metric.output, "the labels").shape[1]
    except InputError:
        count = 2  # one score of the class 1
    return Form(count, _distinct(names) if len(names) == count else ())


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of classes, with its number behind each that several classes have."""
    counts = Counter(names)
    return tuple(
        f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names)
    )


def shown(sample: Sample, count: int) -> dict[str, Any]:
    """Return what a page shows of a sample, for JSON: a picture, a text, a table, or numbers.

    Args:
        sample: The sample.
        count: Number of samples on the page; of many, pictures are smaller.
    """
    side = next((side for most, side in _SIDES if count <= most), 160)
    head = {"id": sample.id, "row": sample.row + 1}
    if sample.file is not None:
        return {**head, "picture": _file(sample.file, side)}
    if sample.text:
        return {**head, "text": sample.text}
    if sample.values is not None:
        return {**head, "table": [[name, _told(value)] for name, value in sample.values.items()]}
    pictures = [_picture(array, side) for array in sample.inputs.values()]
    if any(pictures):
        return {**head, "picture": next(one for one in pictures if one)}
    return {**head, "table": [[name, _numbers(array)] for name, array in sample.inputs.items()]}


def _told(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _numbers(array: Array) -> str:
    flat = array.reshape(-1)
    more = "" if len(flat) <= _FEW else f" ... ({array.dtype} {list(array.shape)})"
    return " ".join(f"{number:.6g}" for number in flat[:_FEW].tolist()) + more


def _file(file: Path, side: int) -> str:
    """Return a picture from a file, made smaller, as a data URL.

    Raises:
        InputError: it can't be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"can't show {file}: {error}") from error
    image.thumbnail((side, side))
    return _url(image, "JPEG")


def _picture(array: Array, side: int) -> str:
    """Return an array as a picture, as a data URL; empty where it has no form of one.

    Its smallest number is black and its largest white: how it was normalized isn't known.
    """
    from PIL import Image

    if array.dtype.kind not in "biuf":
        return ""
    if array.ndim == 3 and array.shape[0] in (1, 3) and min(array.shape[1:]) >= _SMALLEST:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    fits = array.ndim == 3 and array.shape[2] in (1, 3)
    if not fits or not all(_SMALLEST <= side_ <= _LARGEST for side_ in array.shape[:2]):
        return ""
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    pixels = np.round(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.thumbnail((side, side))
    return _url(image, "PNG")


def _url(image: Any, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
