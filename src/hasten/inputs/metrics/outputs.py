"""Selection of the output that a metric reads, and checks of its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError


def one_output(outputs: Tensors, name: str | None, metric: str) -> Array:
    """Return the output of this name; without a name, the model's only output.

    Raises:
        InputError: there is no such output, or no name is given and there are several outputs.
    """
    if name is not None:
        if name not in outputs:
            raise InputError(
                f"{metric} reads the output {name!r}; the model has {', '.join(outputs)}"
            )
        return outputs[name]
    if len(outputs) != 1:
        likely = [key for key, array in outputs.items() if array.dtype.kind == "f"] or [*outputs]
        raise InputError(
            f"{metric} reads one output; the model has {', '.join(outputs)}: name one, "
            f"as in {metric}@{likely[0]}, or all, as in {metric}@all"
        )
    return next(iter(outputs.values()))


def swapped(metric: str, output: str, names: Sequence[str]) -> str:
    """Return the words on a setting that stands behind an output's name, or nothing where none does.

    Args:
        metric: Name of the metric.
        output: Text behind the @, which is no output.
        names: Names of the model's outputs.
    """
    name, _, setting = output.rpartition(":")
    if name not in (*names, "all"):
        return ""
    return f"; settings stand before the @: write {metric}:{setting}@{name}"


def decided_classes(outputs: Tensors, name: str | None) -> Array | None:
    """Return the classes `(n,)` that a model has chosen itself; None where it gives class scores.

    They are the output of this name, else the only output that fits, if it holds one integer or truth
    value for each sample. An output of class scores goes first.

    Args:
        outputs: Outputs by name, each of shape `(n, ...)`.
        name: Name of the output; None for the only one that fits.
    """
    if name is not None:
        fitting = [outputs[name]] if name in outputs else []
    elif any(array.ndim == 2 and array.shape[1] > 1 for array in outputs.values()):
        return None
    else:
        fitting = list(outputs.values())
    fitting = [a for a in fitting if a.dtype.kind in "biu" and _one_each(a)]
    return fitting[0].reshape(-1) if len(fitting) == 1 else None


def _one_each(array: Array) -> bool:
    """Whether an array has one value for each sample: `(n,)` or `(n, 1)`."""
    return array.shape in ((len(array),), (len(array), 1)) if array.ndim else False


def class_scores(outputs: Tensors, name: str | None, metric: str) -> Array:
    """Return class scores `(n, classes)`: the output of this name, else the only 2-D output.

    Raises:
        InputError: there is no such output.
    """
    if name is not None:
        scores = one_output(outputs, name, metric)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise InputError(
                f"{metric} reads class scores (n, classes); output {name!r} is {of_samples(scores)}"
            )
        return scores
    fitting = [key for key, array in outputs.items() if array.ndim == 2 and array.shape[1] > 1]
    if len(fitting) == 1:
        return outputs[fitting[0]]
    shapes = ", ".join(f"{key} {of_samples(array)}" for key, array in outputs.items())
    if not fitting:
        raise InputError(f"{metric} reads class scores (n, classes); the model gives {shapes}")
    raise InputError(
        f"{metric} reads one output of class scores; the model gives {shapes}: name one, "
        f"as in {metric}@{fitting[0]}"
    )


def class_specs(outputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the outputs that may hold class scores."""
    return [
        spec
        for spec in outputs
        if len(spec.shape) == 2 and spec.shape[1] != 1 and "float" in spec.dtype
    ]


def class_output(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the only output that may hold class scores; None if there are several or none."""
    fitting = class_specs(outputs)
    return fitting[0] if len(fitting) == 1 else None


def decided_output(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the model's only output, if it is the class of each sample; None where it is another or one of several.

    Beside others, a whole number for each sample may be a length or a count.
    """
    if len(outputs) != 1:
        return None
    (spec,) = outputs
    one_each = bool(spec.shape) and spec.shape[1:] in ((), (1,))
    return spec if one_each and spec.dtype.startswith(("int", "uint")) else None


def over_samples(
    outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec], request: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Return outputs as they are scored: with an axis for the samples, which a model without batches lacks.

    Args:
        outputs: Outputs of the model.
        inputs: Inputs of the model; open dimensions have names.
        request: Inputs of one request, in the same order, with every size settled.
    """
    sizes = {
        name: size
        for spec, one in zip(inputs, request, strict=True)
        for name, size in zip(spec.shape, one.shape, strict=True)
    }
    lone = all(spec.shape[:1] == (1,) for spec in request)

    def scored(spec: TensorSpec) -> TensorSpec:
        first = sizes.get(spec.shape[0], spec.shape[0]) if spec.shape else 0
        if first == 1 or (lone and isinstance(first, str)):
            return spec
        return replace(spec, shape=("n", *spec.shape))

    return tuple(scored(spec) for spec in outputs)


def of_samples(array: Array, count: int | None = None) -> str:
    """Return an array's shape in words, with n for the number of samples: "(n,)" or "(n, 3)".

    Args:
        array: Array of shape `(n, ...)`.
        count: Number of samples, where an array of another length shows its own.
    """
    if not array.ndim:
        return "()"
    first = "n" if count in (None, len(array)) else str(len(array))
    return f"({first}, {', '.join(map(str, array.shape[1:]))})" if array.ndim > 1 else f"({first},)"


def whole(numbers: Array) -> bool:
    """Whether all numbers are whole; NaN stands for a missing one."""
    return bool(((numbers == np.floor(numbers)) | (numbers != numbers)).all())


def words_said(labels: Array) -> str:
    """Say in words that labels are words, and how to make numbers of them."""
    word = next((str(one) for one in labels.reshape(-1) if str(one)), "")
    return (
        f"the labels are words, such as {word!r:.60}, and nothing says which class each is: give the classes' "
        "numbers in the model's order, as np.unique(labels, return_inverse=True)[1] where that is alphabetical"
    )


def last_is_least(output: Array) -> bool:
    """Whether the last of four axes is shorter than the two before it, as of channels last."""
    if output.ndim != 4 or output.shape[1] == 1:
        return False
    return bool(output.shape[3] < min(output.shape[1:3]))


def equal_bits(outputs: Tensors, others: Tensors) -> Array:
    """Return where all outputs of two models are equal bit for bit, bool of shape `(n,)`.

    Args:
        outputs: Outputs of a model by name, each of shape `(n, ...)`.
        others: Outputs of another model for these samples.
    """
    count = len(next(iter(outputs.values())))
    if outputs.keys() != others.keys():
        return np.zeros(count, bool)
    equal = np.ones(count, bool)
    for name, one in outputs.items():
        other = others[name]
        if one.dtype != other.dtype or one.shape != other.shape:
            return np.zeros(count, bool)
        if one.size:
            bits = [np.ascontiguousarray(a).reshape(count, -1).view(np.uint8) for a in (one, other)]
            equal &= (bits[0] == bits[1]).all(axis=1)
    return equal


def equal_numbers(one: Array, other: Array) -> Array:
    """Return where two arrays `(n, ...)` hold the same numbers, bool of shape `(n,)`; NaN is NaN."""
    count = len(one)
    if one.shape != other.shape:
        return np.zeros(count, bool)
    pair = [array.reshape(count, -1).astype(np.float64) for array in (one, other)]
    same = (pair[0] == pair[1]) | (np.isnan(pair[0]) & np.isnan(pair[1]))
    return np.asarray(same.all(axis=1))


def equal_highest(one: Array, other: Array, k: int) -> Array:
    """Return where the same `k` classes score highest, bool of shape `(n,)`.

    Of classes with equal scores, the one with the lower number comes first. Where a score is NaN, only
    equal numbers count.

    Args:
        one: Class scores `(n, classes)`.
        other: Another model's class scores for these samples.
        k: Number of classes, at least 1.
    """
    if one.shape != other.shape:
        return np.zeros(len(one), bool)
    if k == 1:
        same = one.argmax(axis=1) == other.argmax(axis=1)
    else:
        highest = [np.sort(np.argsort(-a, axis=1, kind="stable")[:, :k]) for a in (one, other)]
        same = (highest[0] == highest[1]).all(axis=1)
    unsure = np.isnan(one).any(axis=1) | np.isnan(other).any(axis=1)
    return np.where(unsure, equal_numbers(one, other), same) if unsure.any() else np.asarray(same)


def number(text: str, setting: str) -> float:
    """Read a number in a metric's setting.

    Args:
        text: Whole text of the metric, for messages.
        setting: Text of the number.

    Raises:
        InputError: the setting is no number.
    """
    try:
        return float(setting)
    except ValueError as error:
        raise InputError(f"metric {text!r}: {setting!r} isn't a number") from error


def class_labels(labels: Array | None, scores: Array, metric: str) -> Array:
    """Return labels as class numbers `(n,)`, from numbers `(n,)` or `(n, 1)` or one-hot rows.

    Args:
        labels: Integers, or floats with integer values; or rows with a single 1 among zeros.
        scores: Class scores `(n, classes)`.

    Raises:
        InputError: there are no labels, or they aren't classes of these scores.
    """
    if labels is None:
        raise InputError(f"{metric} needs labels; the data has none")
    count, classes = scores.shape
    if labels.shape == (count, classes) and ((labels == 0) | (labels == 1)).all():
        if not (labels.sum(axis=1) == 1).all():
            raise InputError(
                f"{metric}: a one-hot label must have exactly one class; for several use recall"
            )
        return np.asarray(labels.argmax(axis=1))
    return _numbers(labels, count, classes, metric)


def decided_labels(labels: Array | None, count: int, metric: str) -> Array:
    """Return labels as class numbers `(n,)` for a model that chooses classes itself, of any number.

    Args:
        labels: Integers, or floats with integer values, `(n,)` or `(n, 1)`; or one-hot rows.
        count: Number of samples.
        metric: Name of the metric, for messages.

    Raises:
        InputError: there are no labels, or they aren't classes.
    """
    if labels is not None and labels.ndim == 2 and labels.shape[1] > 1:
        return class_labels(labels, np.empty((count, labels.shape[1])), metric)
    if labels is None:
        raise InputError(f"{metric} needs labels; the data has none")
    return _numbers(labels, count, None, metric)


def _numbers(labels: Array, count: int, classes: int | None, metric: str) -> Array:
    """Return labels `(n,)` or `(n, 1)` as class numbers `(n,)`.

    Args:
        labels: Integers, or floats with integer values.
        count: Number of samples.
        classes: Number of classes; None where it isn't known.
        metric: Name of the metric, for messages.

    Raises:
        InputError: they aren't classes.
    """
    if labels.dtype.kind in "USO":
        raise InputError(f"{metric}: {words_said(labels)}")
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "biuf":
        raise InputError(
            f"{metric} reads labels (n,) or one-hot (n, {classes or 'classes'}); "
            f"got {labels.dtype} {of_samples(labels, count)}"
        )
    numbers = labels.reshape(-1)
    outside = (numbers < 0) | (numbers != np.floor(numbers))
    if classes is None:
        if outside.any():
            raise InputError(
                f"{metric}: label {numbers[outside][0]} is no class: classes are 0, 1, 2, ..."
            )
        return np.asarray(numbers, np.int64)
    wrong = np.flatnonzero(outside | (numbers >= classes))
    if len(wrong):
        from_one = not outside.any() and numbers.min() >= 1 and numbers.max() == classes
        raise InputError(
            f"{metric}: label {numbers[wrong[0]]} is none of the {classes} classes 0 to {classes - 1}"
            + ("; if the labels count from 1, give labels - 1" if from_one else "")
        )
    return np.asarray(numbers, np.int64)
