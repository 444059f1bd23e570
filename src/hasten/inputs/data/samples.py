"""Checks that every data set passes: counts agree, samples are finite and of one shape."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.data.missing import array_of, is_masked, unlabelled

RESERVED = ("labels", "groups")
SAME_HASH = frozenset(map(np.dtype, ("bool", "float32", "uint8")))
"""Types in which a sample's hash is what it was while types counted."""
_UNSIGNED = {bits: np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)}
_SIGNED = {bits: np.dtype(f"int{bits}") for bits in _UNSIGNED}


def check_counts(
    counts: Mapping[str, int], labels: Array | None, groups: Array | None, source: str = "the data"
) -> int:
    """Check that inputs, labels and groups have equally many rows, and that labels are finite.

    A label that is NaN as a whole is missing, and may be. What is missing among whole numbers is below 0, as padding is:
    whether it may be, a metric decides.

    Args:
        counts: Number of samples by input name.
        labels: Labels, one row per sample, or None.
        groups: Groups of shape `(n,)`, or None.
        source: Name of the data in messages.

    Returns:
        Number of samples.

    Raises:
        InputError: there are no samples, the counts differ, or a label isn't finite.
    """
    if not counts:
        raise InputError(f"{source} has no inputs: give an array for each input of the model")
    first, count = next(iter(counts.items()))
    for name, other in counts.items():
        if other != count:
            raise InputError(f"input {name!r}: {other} samples, but {first!r} has {count}")
    if count == 0:
        raise InputError(f"{source} has no samples")
    for role, rows in (("labels", labels), ("groups", groups)):
        if rows is None:
            continue
        if rows.dtype.hasobject:
            raise InputError(f"{role} are Python objects; give an array of numbers or strings")
        if rows.ndim == 0:
            raise InputError(
                f"{role}: a single value for {amount(count, 'sample')}; give one for each"
            )
        if len(rows) != count:
            raise InputError(
                f"{role}: {len(rows)} for {amount(count, 'sample')}; give one for each"
            )
    if groups is not None and groups.ndim != 1:
        raise InputError(
            f"groups: {list(groups.shape)} for {amount(count, 'sample')}; give one value each"
        )
    bad = None if labels is None else _first_unusable(labels)
    if bad is not None:
        raise InputError(f"labels: sample {bad} has NaN or Inf; repair it or leave it out")
    return count


def check_finite(
    name: str, samples: Array, indices: Sequence[int], *, missing: bool = False
) -> None:
    """Check that no number is NaN or infinite.

    Args:
        name: Name of the input.
        samples: Samples of shape `(len(indices), ...)`.
        indices: Positions of the samples in the data.
        missing: Whether NaN stands for a value that isn't there, and is let through.

    Raises:
        InputError: a sample isn't finite; the message names the first one.
    """
    if missing:
        samples = np.nan_to_num(samples, posinf=np.inf, neginf=-np.inf)
    bad = _first_not_finite(samples)
    if bad is not None:
        found = "Inf" if missing else "NaN or Inf"
        raise InputError(
            f"input {name!r}: sample {indices[bad]} has {found}; repair it or leave it out"
        )


def single_number(name: str, array: Array) -> str:
    """Say in words that an input is one number for all samples, and how to give one for each.

    Args:
        name: Name of the input.
        array: The number, of shape `()` or `(1,)`.
    """
    (number,) = array.reshape(-1).tolist()
    return (
        f"input {name!r} is a single number; give an array of samples, as "
        f'np.full(n, {number}, "{array.dtype.name}")'
    )


def holds_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of numbers; bfloat16 and similar types, of kind V, count as such."""
    return dtype.kind in "biufcV" and dtype.type is not np.void


def unmasked(array: Array) -> Array:
    """Return an array without numpy's mask, under which there are numbers that mean nothing.

    Args:
        array: An array; or a list, which stays as it is.

    Raises:
        InputError: a value is masked, also in an array in a list.
    """
    if is_masked(array):
        raise InputError(
            "an array of the data has masked values: fill them in, as by x.filled(0), or leave out the samples that "
            "have some"
        )
    return array.data if isinstance(array, np.ma.MaskedArray) else array


def complete(values: Any) -> Array:
    """Return an array, or a list as one, in which nothing is missing: a list's NaN would become the text "nan".

    Args:
        values: One value for each sample: an array, or a list or a tuple.

    Raises:
        InputError: a value is masked, or is NaN beside texts.
    """
    found = array_of(unmasked(values))
    if found.dtype.kind == "U" and isinstance(values, (list, tuple)):
        for index, one in enumerate(values):
            if isinstance(one, (float, np.floating)) and one != one:
                raise InputError(
                    f"a list of labels has texts, but NaN for sample {index}: name what it is, or leave the "
                    "sample out"
                )
    return found


def native(array: Array) -> Array:
    """Return an array in the machine's byte order; an array that is in it already is returned itself."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _first_not_finite(rows: Array) -> int | None:
    """Return the position of the first row with NaN or Inf; None where all are finite."""
    if rows.dtype.kind not in "fcV" or not holds_numbers(rows.dtype) or _all_finite(rows):
        return None
    return next(i for i, row in enumerate(rows) if not np.isfinite(row).all())


def _all_finite(rows: Array) -> bool:
    if rows.dtype == np.float16:  # by its exponent, ten times as fast as `isfinite`
        return int((rows.view(np.uint16) & 0x7C00).max(initial=0)) < 0x7C00
    return bool(np.isfinite(rows).all())


def _first_unusable(labels: Array) -> int | None:
    """Return the position of the first label that isn't finite, and isn't missing as a whole."""
    if _first_not_finite(labels) is None:
        return None
    given = ~unlabelled(labels, classes=False)
    bad = _first_not_finite(labels[given])
    return None if bad is None else int(np.flatnonzero(given)[bad])


def check_shape(name: str, sample: Array, first: tuple[int, ...], index: int) -> None:
    """Check that a sample has the shape of the first one.

    Raises:
        InputError: it hasn't; the message says which dimension the data leaves open.
    """
    if sample.shape == first:
        return
    check_rank(name, sample, first, index)
    axis = next(i for i, (a, b) in enumerate(zip(sample.shape, first, strict=True)) if a != b)
    raise InputError(
        f"input {name!r}: sample {index} is {list(sample.shape)}, but the first is "
        f"{list(first)}, so dimension {axis} of a sample isn't fixed by the data; pad, crop or "
        "resize all to one shape"
    )


def check_rank(name: str, sample: Array, first: tuple[int, ...], index: int) -> None:
    """Check that a sample has as many dimensions as the first one.

    Raises:
        InputError: it hasn't.
    """
    if sample.ndim != len(first):
        raise InputError(
            f"input {name!r}: sample {index} has {sample.ndim} dimensions {list(sample.shape)}, "
            f"but the first has {len(first)} {list(first)}"
        )


def stack(name: str, samples: Sequence[Array], indices: Sequence[int]) -> Array:
    """Stack samples of one shape, and check that they are finite.

    Returns:
        Array of shape `(len(samples), ...)`.

    Raises:
        InputError: shapes differ, or a sample isn't finite.
    """
    for index, sample in zip(indices, samples, strict=True):
        check_shape(name, sample, samples[0].shape, index)
    stacked = np.stack(samples)
    check_finite(name, stacked, indices)
    return stacked


def tensors_hash(sample: Mapping[str, Array]) -> bytes:
    """Return the SHA-256 of a sample's names, shapes and numbers, sorted by name.

    Equal numbers have equal hashes in every type of one kind: floats count as float32 where that holds
    all of them exactly, integers as the narrowest type that does, unsigned where none is negative.
    """
    return _digest({name: _canonical(array) for name, array in sample.items()})


def former_hash(sample: Mapping[str, Array]) -> bytes | None:
    """Return the hash that a sample had while types counted, by which old records know it.

    Returns:
        The hash; None where it is that of `tensors_hash`.
    """
    if all(_canonical(array).dtype == array.dtype for array in sample.values()):
        return None
    return _digest(sample)


def _digest(sample: Mapping[str, Array]) -> bytes:
    whole = hashlib.sha256()
    for name in sorted(sample):
        array = np.ascontiguousarray(sample[name])
        whole.update(f"{name}\0{_name(array.dtype)}\0{list(sample[name].shape)}\0".encode())
        whole.update(array.reshape(-1).view(np.uint8).data)
    return whole.digest()


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name  # computed at each call, which takes as long as hashing a small sample


def _canonical(array: Array) -> Array:
    """Return the same numbers in the type in which they are hashed."""
    if array.dtype.kind == "f":
        return _canonical_floats(array)
    if array.dtype.kind not in "iu" or array.dtype == np.uint8:
        return array
    return _canonical_integers(array)


def _canonical_integers(array: Array) -> Array:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    bits = 8 * array.dtype.itemsize
    high = int(array.view(_UNSIGNED[bits]).max()) if array.size else 0
    types = _UNSIGNED
    if array.dtype.kind == "i" and high >> (bits - 1):  # the sign of one that is below 0
        types, high = _SIGNED, max(int(array.max()), -1 - int(array.min())) << 1
    return array.astype(next(types[n] for n in types if high >> n == 0), copy=False)


def _canonical_floats(array: Array) -> Array:
    if array.dtype == np.float32:
        return array
    if array.dtype == np.float16:
        return _halves().take(array.view(np.uint16))
    # Most numbers that float32 doesn't hold are found among the first few.
    few = array.ravel()[:16] if array.flags.c_contiguous else array
    for part in (few, array):
        with np.errstate(all="ignore"):
            narrow = part.astype(np.float32)
        same = narrow == part
        if not same.all() and not (same | np.isnan(part)).all():
            return array.astype(array.dtype.newbyteorder("="), copy=False)
    return narrow


@functools.cache
def _halves() -> Array:
    """Return all numbers of float16 as float32, by their bits: twice as fast as `astype`."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
