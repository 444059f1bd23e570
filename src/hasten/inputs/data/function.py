"""Samples that the user's own Python code returns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.objects import load_object
from hasten.core.tensors import Array
from hasten.errors import HastenError, InputError, at_fault
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.groups import group_array
from hasten.inputs.data.labels_by_output import joined, named_output
from hasten.inputs.data.missing import filled, stacked, unlabelled
from hasten.inputs.data.ragged import RaggedDataset, is_ragged
from hasten.inputs.data.rereading import Rereading
from hasten.inputs.data.samples import RESERVED, complete, holds_numbers, tensors_hash, unmasked
from hasten.inputs.data.spool import SpoolWriter

_LISTS = (list, tuple, np.ma.MaskedArray)
"""Types of labels of which some may be missing whatever their kind: as None, as NaN, or masked."""


def call_function(
    source: str, names: Sequence[str], folder: Path, *, reread: bool = False
) -> Dataset:
    """Call "module:function" or "file.py:function", and read the data that it returns.

    Args:
        source: Import path of a function without arguments, or of a value.
        names: Names of the model's inputs.
        folder: Folder to write samples to that come one at a time; empty or not yet there.
        reread: Read samples again each time; see `from_python`.

    Raises:
        InputError: there is no such function, or it returns no data.
    """
    return from_python(called(source), names, folder, source, reread=reread)


def called(source: str) -> Any:
    """Return what "module:function" or "file.py:function" returns, or the value of that name.

    Raises:
        InputError: there is no such function, or it raises.
    """
    found = load_object(source)
    if not callable(found) or isinstance(found, Dataset):
        return found
    with _own_code(source):
        return found()


@contextmanager
def _own_code(source: str) -> Iterator[None]:
    """Turn what the user's own code raises into one line that names its place.

    Raises:
        InputError: it raised anything.
    """
    try:
        yield
    except HastenError:
        raise
    except Exception as error:
        name = source.rpartition(":")[2]
        see = f"; call {name}() in Python to see the whole traceback" if ":" in source else ""
        raise InputError(f"{source} failed: {at_fault(error)}{see}") from error


def from_python(
    given: Any,
    names: Sequence[str],
    folder: Path,
    source: str = "the data",
    *,
    reread: bool = False,
) -> Dataset:
    """Turn data that Python code returns into a data set.

    Args:
        given: Data in one of these forms:
            - a `Dataset`;
            - a mapping of arrays of shape `(n, ...)`, or of lists of one array for each sample where
              samples differ in shape; it may include `labels` and `groups`, or `labels@OUTPUT` for
              labels of several outputs;
            - an array of shape `(n, ...)`, for a model with one input;
            - a tuple `(inputs, labels)` or `(inputs, labels, groups)`, where inputs are such a
              mapping or array, and the others are arrays (labels may be None, or a mapping of
              output names to arrays, as `labels@OUTPUT` may be in a mapping of arrays);
            - a list, a sequence (a torch `Dataset`) or an iterable of samples. A sample is
              `(inputs, label)`, `(inputs, label, group)` or `inputs`, where inputs is an array
              without an axis for samples, or a mapping of such arrays. Samples are written to
              `folder` one at a time.
        names: Names of the model's inputs; empty where the model doesn't name them, so that the
            data's own names are used.
        folder: Folder to write samples to; empty or not yet there.
        source: Name of the data in messages.
        reread: Read the samples of a sequence again on every access instead of writing them once, so
            that training sees random augmentation.

    Raises:
        InputError: the data has none of these forms, or its parts don't fit together.
    """
    if isinstance(given, Dataset):
        return given
    inputs = given[0] if isinstance(given, tuple) and given else given
    whole = not isinstance(inputs, Mapping)
    given_inputs = (inputs,) if whole else _inputs_of(inputs, names)
    if any(_is_frame(one, whole=whole) for one in given_inputs):
        raise InputError(
            f"{source} gave a data frame, but nothing states in which order the model takes its columns: give a "
            "pipeline that begins with the step row, or an array, as frame[columns].to_numpy()"
        )
    if isinstance(given, (Mapping, np.ndarray)):
        return _whole(given, None, None, names, source)
    if isinstance(given, tuple):
        if len(given) not in (2, 3) or not isinstance(given[0], (Mapping, np.ndarray)):
            raise InputError(
                f"{source}: a tuple is (inputs, labels) or (inputs, labels, groups) of whole "
                "arrays; give samples as a list"
            )
        return _whole(given[0], given[1], given[2] if len(given) == 3 else None, names, source)
    if getattr(given, "batch_sampler", None) is not None:
        raise InputError(
            f"{source}: a DataLoader gives batches; give its dataset, or batch_size=None"
        )
    if isinstance(given, (str, bytes)) or not _iterable(given):
        raise InputError(
            f"{source} gave a {type(given).__name__}; give a Dataset, arrays, or an iterable of samples"
        )
    if reread and hasattr(given, "iloc"):
        given = list(given)
    if reread and _indexed(given):
        return Rereading(len(given), lambda i: _reread(given[i], i, names, source), source)
    return _spooled(_each(given, source), names, folder, source)


def _inputs_of(given: Mapping[Any, Any], names: Sequence[str]) -> list[Any]:
    """Return the values of a mapping that aren't labels or groups."""
    return [
        value
        for name, value in given.items()
        if name in names or not (name in RESERVED or named_output(str(name)))
    ]


def _is_frame(given: Any, *, whole: bool) -> bool:
    """Whether data is a data frame or a table of Arrow; as one of several inputs, of at least two columns."""
    reads = hasattr(given, "to_numpy") or hasattr(given, "to_pydict")
    return reads and hasattr(given, "columns") and (whole or len(given.columns) > 1)


def _iterable(given: Any) -> bool:
    return isinstance(given, Iterable) or _indexed(given)


def _each(given: Any, source: str) -> Iterator[Any]:
    """Yield the samples; by position where there is a length, as torch's data sets require.

    An index of a `Series` of pandas is no position.

    Raises:
        InputError: the user's code that gives a sample raises.
    """
    with _own_code(source):
        if not hasattr(given, "iloc") and _indexed(given):
            samples = (given[i] for i in range(len(given)))
        else:
            samples = iter(given)
    while True:
        with _own_code(source):
            try:
                sample = next(samples)
            except StopIteration:
                return
        yield sample


def _indexed(given: Any) -> bool:
    return hasattr(given, "__len__") and hasattr(given, "__getitem__")


def _array(value: Any) -> Array:
    """Turn numbers, lists and torch tensors into an array.

    Raises:
        InputError: a value is masked, or is NaN beside texts.
    """
    return complete(_on_host(value))


def _on_host(value: Any) -> Any:
    """Return a tensor of torch as one in the host's memory; anything else as it is."""
    return value.detach().cpu() if hasattr(value, "detach") else value


def _whole(inputs: Any, labels: Any, groups: Any, names: Sequence[str], source: str) -> Dataset:
    """Make a data set of whole arrays, or of lists of arrays, without copying them."""
    rows = {"labels": labels, "groups": groups}
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
        for role in RESERVED:
            if role not in names and role in inputs:
                rows[role] = inputs.pop(role)
        each = {
            name: inputs.pop(name)
            for name in [*inputs]
            if str(name) not in names and named_output(str(name))
        }
        if each:
            rows["labels"] = {named_output(str(name)): array for name, array in each.items()}
    if isinstance(rows["labels"], Mapping):
        rows["labels"] = joined({name: _array(one) for name, one in rows["labels"].items()})
    arrays = _named(inputs, names, source)
    if isinstance(rows["labels"], _LISTS):
        rows["labels"] = filled(rows["labels"])
    told = None if rows["labels"] is None else _array(rows["labels"])
    together = _on_host(rows["groups"])
    if any(isinstance(samples, list) for samples in arrays.values()):
        return RaggedDataset(arrays, told, together)
    return ArrayDataset(arrays, told, together)


def _samples(value: Any) -> Any:
    """Return an input as an array, or as a list of arrays where samples differ in shape."""
    return [_array(each) for each in value] if is_ragged(value) else _array(value)


def _named(inputs: Any, names: Sequence[str], source: str) -> dict[str, Any]:
    """Return the inputs by the model's names."""
    if isinstance(inputs, Mapping):
        arrays = {str(name): _samples(value) for name, value in inputs.items()}
        if not names:
            return arrays
        if len(arrays) == len(names) == 1:
            return dict(zip(names, arrays.values(), strict=True))
        if set(arrays) != set(names):
            raise InputError(
                f"the model takes the inputs {', '.join(names)}; {source} has "
                f"{', '.join(arrays) or 'none'}"
            )
        return {name: arrays[name] for name in names}
    if not names:
        raise InputError(
            f"the model doesn't name its inputs, and {source} has one array without a name: give "
            "a mapping"
        )
    if len(names) != 1:
        raise InputError(
            f"the model takes the inputs {', '.join(names)}; {source} has one array without a name: "
            "give a mapping"
        )
    return {names[0]: _array(inputs)}


def _spooled(samples: Iterator[Any], names: Sequence[str], folder: Path, source: str) -> Dataset:
    """Write samples to disk one at a time, keeping only labels and groups in memory."""
    read = (_parts(sample, index, names, source) for index, sample in enumerate(samples))
    first = next(read, None)
    if first is None:
        raise InputError(f"{source} has no samples")
    width = len(first)
    labels: list[Array | None] = []
    known: Array | None = None
    groups: list[Any] = []
    with SpoolWriter(folder, names or list(first[0])) as writer:
        for index, parts in enumerate(itertools.chain([first], read)):
            if len(parts) != width:
                raise InputError(
                    f"{source}: sample {index} has {len(parts)} parts, but the first has {width}"
                )
            tensors: dict[str, Array] = parts[0]
            writer.append({n: a[np.newaxis] for n, a in tensors.items()}, [tensors_hash(tensors)])
            if width > 1:
                labels.append(_label(parts[1], known, index, source))
                known = labels[-1] if known is None else known
            if width > 2:
                groups.append(np.asarray(_on_host(parts[2]))[()])
        return writer.finish(
            stacked(labels) if width > 1 else None, group_array(groups) if width > 2 else None
        )


def _parts(sample: Any, index: int, names: Sequence[str], source: str) -> tuple[Any, ...]:
    """Return a sample as a tuple of its inputs by name, then its label and group if it has them."""
    parts = tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)
    if len(parts) not in (1, 2, 3):
        raise InputError(
            f"{source}: sample {index} has {len(parts)} parts; "
            "give inputs, (inputs, label) or (inputs, label, group)"
        )
    tensors = _named(parts[0], names, source)
    for name, array in tensors.items():
        if not holds_numbers(array.dtype):
            raise InputError(
                f"input {name!r}: sample {index} is an array of {array.dtype}; give numbers"
            )
    if len(parts) == 3:
        parts = (*parts[:2], _unmasked(parts[2], "group", index, source))
    return (tensors, *parts[1:])


def _reread(sample: Any, index: int, names: Sequence[str], source: str) -> tuple[Any, ...]:
    """Return the parts of a sample that is read again each time, whose label can't be missing."""
    tensors, *rest = _parts(sample, index, names, source)
    return (tensors, *(_unmasked(value, "label", index, source) for value in rest[:1]), *rest[1:])


def _unmasked(value: Any, role: str, index: int, source: str) -> Any:
    """Return a sample's label or group, checked to have nothing masked."""
    try:
        return unmasked(value)
    except InputError as error:
        raise InputError(f"{source}: the {role} of sample {index}: {error}") from error


def _label(value: Any, first: Array | None, index: int, source: str) -> Array | None:
    """Return one label as an array, checked to have the same shape as the first one."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        each = {n: _unmasked(one, "label", index, source) for n, one in value.items()}
        value = joined({name: _array(one)[np.newaxis] for name, one in each.items()})[0]
    listed = isinstance(value, _LISTS)
    label = filled(value) if listed else _array(value)
    if listed and unlabelled(label[np.newaxis], classes=False).all():
        return None
    if first is not None and label.shape != first.shape:
        raise InputError(
            f"{source}: the label of sample {index} has the shape {list(label.shape)}, but the "
            f"first has {list(first.shape)}; pad labels to one shape"
        )
    return label
