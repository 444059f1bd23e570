"""Near copies of training samples among the samples to judge on: see design/near-copies.md.

Samples are reduced to short signatures. A judged sample that lies far closer to a training sample than
the data's own neighbours lie to each other is a near copy of it; of token ids, one that shares most of
its runs of three tokens with it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset, Subset, like_shaped
from hasten.inputs.data.moved import nearest_moved
from hasten.inputs.data.neighbours import chance, coincidences, nearest
from hasten.inputs.data.texts import alike

Kind: TypeAlias = Literal["images", "texts", "rows"]
Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]

REFUSED = 0.05
"""Share of the judged samples that may be near copies of training samples, before all is refused."""
SURE = 1e-5
"""Chance below which a sample that isn't a copy would lie so close to a training sample."""
COMMON, COMMON_SHARE = 1e-3, 0.03
"""A weaker chance, which counts for images where so large a share has it: thirty times as many as by chance."""
MOVED = 1e-6
"""Chance below which so well a fit counts, after a picture was laid over others in a hundred ways."""
_SIDE, _FINE = 16, 32
"""Largest sides of the picture that stands for an image, and of the one that shows how it was moved."""
_WIDTH, _PROJECTED = 256, 128
"""Longest row that is compared as it is, and the length to which longer ones are projected."""
_LEAST = 8
"""Fewest training samples whose distances say how far apart samples are."""
_CHUNK_BYTES = 32 * 2**20
_EXAMPLES = 3
_REMEMBERED = 4096
"""Fewest samples whose signatures are kept while they are read, where there are so many."""
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class NearCopies:
    """Judged samples that are near copies of training samples.

    Attributes:
        judged: Positions of the judged samples, `(k,)`, surest first.
        training: Position of the training sample that each is a near copy of, `(k,)`.
        samples: Number of judged samples in all.
        examples: A few pairs in words, by file name or position.
    """

    judged: Indices
    training: Indices
    samples: int
    examples: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the judged samples that are near copies."""
        return len(self.judged) / self.samples

    @property
    def many(self) -> bool:
        """Whether they are so many that what was judged says little."""
        return self.share > REFUSED

    def note(self) -> str:
        """Return a note for people on what was found."""
        return f"{self.in_words()}; {self.reservation() or 'remove them if they are copies'}"

    def reservation(self) -> str:
        """Return what a certificate must say of them; empty where they are few."""
        if not self.many:
            return ""
        return (
            f"{100 * self.share:.2g}% of the samples to judge on look like near copies of "
            "training samples, which was allowed: the certificate holds for new data only if "
            "they aren't copies"
        )

    def in_words(self) -> str:
        """Return what was found, with examples, in one line."""
        count, more = len(self.judged), len(self.judged) - len(self.examples)
        verb = "is a near copy" if count == 1 else "are near copies"
        shown = "; ".join(self.examples) + (f"; and {more:,} more" if more else "")
        return (
            f"{count:,} of {self.samples:,} samples to judge on ({100 * self.share:.2g}%) {verb} of training "
            f"samples, whatever their types and scales: {shown}"
        )


def check_near_copies(
    training: Dataset, judged: Dataset, allowed: bool = False
) -> NearCopies | None:
    """Look for near copies of training samples among samples to judge on.

    Args:
        training: Data that models are trained on or calibrated from.
        judged: Data to judge on, which should be new to them.
        allowed: Whether any share of near copies is let through.

    Returns:
        The near copies; None where there are none.

    Raises:
        InputError: more than 5% of the samples to judge on are near copies.
    """
    found = near_copies(training, judged)
    if found.many and not allowed:
        raise InputError(
            f"{found.in_words()}: training data can't judge a model; remove the samples from one "
            "of the two, or add allow_near_copies=True if you know that they aren't copies"
        )
    return found if len(found.judged) else None


def near_copies(training: Dataset, judged: Dataset) -> NearCopies:
    """Find the judged samples that are near copies of training samples.

    Of images, other types, scales, brightness, contrast and some noise make no difference, nor a mirror, and
    mostly a shift by a few pixels or, where they are large enough, a slight cut; of rows, other
    types, units and a little noise; of texts, as token ids, some words that were changed. Samples of
    another size aren't compared, but images of more than 16 pixels.

    Raises:
        InputError: a sample can't be read.
    """
    kind, names = _kind(training, judged)
    if kind == "texts":
        found = alike(*(_tokens(data, names) for data in (judged, training)))
    elif names and len(training) >= _LEAST:
        ragged = training.ragged or judged.ragged
        found = _close(
            kind, *(_signatures(data, kind, names, ragged=ragged) for data in (judged, training))
        )
    else:
        found = _NONE, _NONE
    return NearCopies(
        *found, len(judged), _examples(judged, training, "judged", "training", *found)
    )


class Remembered(Dataset):
    """Another data set whose samples' signatures are kept while they are read.

    Args:
        whole: Data set to read.
        known: Samples of the same kind that `near_known` compares with.
    """

    def __init__(self, whole: Dataset, known: Dataset) -> None:
        self.whole, self._known = whole, known
        self.names, self.missing = whole.names, whole.missing
        self.labels, self.groups = whole.labels, whole.groups
        self.ragged = whole.ragged
        self._kind, self._names = _kind(known, known)
        self._kept: list[_Signatures] = []
        self._tokens: list[Array] = []
        self._places: list[int] = []

    def __len__(self) -> int:
        return len(self.whole)

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return self.whole.shapes(index)

    def content_hash(self, index: int) -> bytes:
        return self.whole.content_hash(index)

    def has_former_hashes(self) -> bool:
        return self.whole.has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return self.whole.former_hash(index)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        read = self.whole.inputs(indices)
        if self._names and len(self._places) < _REMEMBERED:
            self._keep([read[name] for name in self._names], indices)
        return read

    def _keep(self, arrays: Sequence[Array], indices: Sequence[int]) -> None:
        """Keep what stands for some samples, unless they are unlike those that `_kind` has seen."""
        ragged = self._known.ragged or self.ragged
        if self._kind == "texts":
            self._tokens.append(_joined(arrays))
        elif _comparable(self._kind, arrays, ragged=ragged):
            self._kept.append(_reduced(self._kind, arrays, ragged=ragged))
        else:
            return
        self._places.extend(indices)

    def near_known(self) -> NearCopies:
        """Return which of the samples that were read are near copies of known ones."""
        found = _NONE, _NONE
        if self._tokens:
            found = alike(iter(self._tokens), _tokens(self._known, self._names))
        elif self._kept and len(self._known) >= _LEAST:
            ragged = self._known.ragged or self.ragged
            theirs = _signatures(self._known, self._kind, self._names, ragged=ragged)
            ours = _together(self._kept, len(self._places))
            found = _close(self._kind, ours, theirs)
        places = np.array(self._places, np.int64)[found[0]]
        shown = _examples(self.whole, self._known, "sealed", "search", places, found[1])
        return NearCopies(places, found[1], max(1, len(self._places)), shown)


def _examples(
    one: Dataset, other: Dataset, mine: str, theirs: str, places: Indices, partners: Indices
) -> tuple[str, ...]:
    """Return the first few pairs in words."""
    pairs = zip(places[:_EXAMPLES].tolist(), partners[:_EXAMPLES].tolist(), strict=True)
    return tuple(f"{_named(one, i, mine)} and {_named(other, j, theirs)}" for i, j in pairs)


@dataclass(frozen=True)
class _Signatures:
    """Signatures that stand for samples when they are compared.

    Attributes:
        rows: Short row of numbers for each sample, `(n, width)`.
        sides: Sides of the small picture that a row is; None where it isn't one picture.
        fine: Pictures in more detail, `(n, height, width)`, by which moved ones are seen; None where the
            small ones are all there is.
    """

    rows: Floats
    sides: tuple[int, int] | None = None
    fine: npt.NDArray[np.float16] | None = None

    @property
    def small(self) -> Floats:
        """Small pictures, a view of the rows, `(n, height, width)`."""
        assert self.sides is not None
        return self.rows.reshape(-1, *self.sides)


def _together(parts: Iterable[_Signatures], count: int) -> _Signatures:
    """Return the signatures of `count` samples, each part copied before the next one is made."""
    whole: _Signatures | None = None
    start = 0
    for part in parts:
        if whole is None:
            fine = None if part.fine is None else _room(part.fine, count)
            whole = _Signatures(_room(part.rows, count), part.sides, fine)
        stop = start + len(part.rows)
        whole.rows[start:stop] = part.rows
        if whole.fine is not None and part.fine is not None:
            whole.fine[start:stop] = part.fine
        start = stop
    assert whole is not None
    assert start == count
    return whole


def _room(first: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    return np.empty((count, *first.shape[1:]), first.dtype)


def _close(kind: Kind, judged: _Signatures, training: _Signatures) -> tuple[Indices, Indices]:
    """Return judged samples that lie unexpectedly close to training samples, and these."""
    rows, others = judged.rows, training.rows
    if rows.shape[1] != others.shape[1]:
        return _NONE, _NONE
    if kind == "rows":
        rows, others = _standardized(rows, others)
    distances, places = nearest(rows, others)
    odds, partners = chance(distances), places[:, 0]
    bar = SURE
    if kind == "images":
        odds[~rows.any(axis=1)] = 1.0  # pictures of one color are all alike
        bar = COMMON if (odds < COMMON).mean() > COMMON_SHARE else SURE
    near = odds < bar
    if kind == "rows":
        candidates = np.flatnonzero(near)
        by_chance = coincidences(rows[candidates], others[partners[candidates]], others)
        near[candidates] = by_chance < bar
    if judged.sides is not None and judged.sides == training.sides:
        rest = np.flatnonzero(~near & rows.any(axis=1))
        moved, others_of = _moved(judged, training, distances, rest)
        again = rest[moved < MOVED]
        near[again] = True
        odds[again], partners[again] = moved[moved < MOVED], others_of[moved < MOVED]
    found = np.flatnonzero(near)
    found = found[np.argsort(odds[found], kind="stable")]
    return found, partners[found]


def _moved(
    judged: _Signatures, training: _Signatures, distances: npt.NDArray[np.float64], rows: Indices
) -> tuple[npt.NDArray[np.float64], Indices]:
    """Return how surely some pictures are moved copies of training pictures, and of which.

    Args:
        judged: Signatures of the judged pictures.
        training: Signatures of the training pictures.
        distances: Distances of the judged pictures' neighbors, `(n, k)`.
        rows: Judged pictures to look at.

    Returns:
        Chance that a picture that is no copy fits so well, and the training picture that fits, one each per row.
    """
    small, others = judged.small[rows], training.small
    fine, fine_others = judged.fine, training.fine
    alike = fine is not None and fine_others is not None and fine.shape[1:] == fine_others.shape[1:]
    fits, partners = nearest_moved(
        small,
        others,
        fine[rows] if alike and fine is not None else small,
        fine_others if alike and fine_others is not None else others,
        distances[rows, -1],
    )
    laid_over = distances.copy()
    laid_over[rows, 0] = np.minimum(fits, distances[rows, -1])
    odds = chance(laid_over)[rows]
    return np.where(np.isfinite(fits), odds, 1.0), partners


def _kind(training: Dataset, judged: Dataset) -> tuple[Kind, list[str]]:
    """Return what the samples are, and the inputs to compare: images before texts before rows."""
    sample = judged.inputs([0])
    there = {n: a[0] for n, a in sample.items() if n in training.names and a[0].size > 1}
    pictures = [name for name, array in there.items() if _channels(array) is not None]
    ragged = training.ragged or judged.ragged
    if pictures and not (ragged and _least_side(training, judged, pictures) < _SIDE):
        return "images", pictures
    texts = [n for n, a in there.items() if a.ndim == 1 and a.dtype.kind in "iu" and len(a) >= 8]
    texts = [name for name in texts if _varied(judged, name)]
    if texts:
        return "texts", texts
    if ragged:  # rows of unlike lengths aren't compared
        return "rows", []
    return "rows", [name for name, array in there.items() if array.dtype.kind in "biuf"]


def _varied(dataset: Dataset, name: str) -> bool:
    """Whether an input of whole numbers has so many values that they are token ids, and no mask."""
    groups = like_shaped(dataset, range(min(len(dataset), 64)))
    rows = [dataset.inputs(alike)[name].reshape(-1) for alike in groups]
    return len(np.unique(np.concatenate(rows))) > 32


def _least_side(training: Dataset, judged: Dataset, names: list[str]) -> int:
    """Return the least side of any image; with fewer than 16 pixels, pictures aren't of one size."""
    return min(
        _side(data.shapes(i)[name])
        for data in (training, judged)
        for i in range(len(data))
        for name in names
    )


def _channels(sample: Array) -> int | None:
    """Return the axis of an image's channels, -1 where it has none; None for what is no image."""
    if sample.dtype.kind not in "uif" or _side(sample.shape) < 8:
        return None
    return _channel_axis(sample.shape)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of channels in the shape of an image, -1 where it has none; None for no image's shape."""
    if len(shape) == 3:
        return next((axis for axis in (0, 2) if shape[axis] in (1, 3, 4)), None)
    return -1 if len(shape) == 2 else None


def _side(shape: tuple[int, ...]) -> int:
    """Return the least side of an image of a shape; 0 where no image has that shape."""
    channels = _channel_axis(shape)
    if channels is None:
        return 0
    return min(size for place, size in enumerate(shape) if place != channels)


def _comparable(kind: Kind, inputs: Sequence[Array], *, ragged: bool) -> bool:
    """Whether samples have signatures that can be compared with those of samples of other shapes.

    Where shapes differ, rows have none, nor have images with a side of fewer than 16 pixels.
    """
    if kind == "images" and any(_channels(array[0]) is None for array in inputs):
        return False
    if not ragged:
        return True
    return kind == "images" and all(_side(array.shape[1:]) >= _SIDE for array in inputs)


def _chunks(dataset: Dataset, names: list[str]) -> Iterator[list[Array]]:
    """Yield the inputs of all samples, as many at a time as fit into 32 MiB."""
    first = dataset.inputs([0])
    each = sum(first[name].nbytes for name in dataset.names)
    step = max(1, min(4096, _CHUNK_BYTES // max(1, each)))
    for start in range(0, len(dataset), step):
        for together in like_shaped(dataset, range(start, min(start + step, len(dataset)))):
            read = dataset.inputs(together)
            yield [read[name] for name in names]


def _signatures(dataset: Dataset, kind: Kind, names: list[str], *, ragged: bool) -> _Signatures:
    """Return what stands for each sample."""
    parts = (_reduced(kind, chunk, ragged=ragged) for chunk in _chunks(dataset, names))
    return _together(parts, len(dataset))


def _reduced(kind: Kind, inputs: Sequence[Array], *, ragged: bool) -> _Signatures:
    """Return what stands for some samples; pictures of unlike sizes are small alone."""
    if kind == "rows":
        return _Signatures(np.concatenate([_row(array) for array in inputs], axis=1))
    shrunk = [_shrunk(_gray(array), _FINE) for array in inputs]
    small = [_normal(_shrunk(pictures, _SIDE)) for pictures in shrunk]
    rows = np.concatenate([pictures.reshape(len(pictures), -1) for pictures in small], axis=1)
    if len(small) > 1:
        return _Signatures(rows)
    sides = small[0].shape[1:]
    whole = ragged or shrunk[0].shape[1:] == sides
    return _Signatures(rows, sides, None if whole else _normal(shrunk[0]).astype(np.float16))


def _tokens(dataset: Dataset, names: list[str]) -> Iterator[Array]:
    """Yield the token ids of some samples at a time, `(k, length)`."""
    return map(_joined, _chunks(dataset, names))


def _joined(inputs: Sequence[Array]) -> Array:
    return np.concatenate([array.astype(np.int64) for array in inputs], axis=1)


def _gray(samples: Array) -> Floats:
    """Return pictures without colors, `(n, height, width)`."""
    axis = _channels(samples[0])
    gray = samples.astype(np.float32)
    return np.asarray(gray if axis in (None, -1) else gray.mean(axis=axis + 1))


def _shrunk(pictures: Floats, most: int) -> Floats:
    """Return pictures whose sides are at most `most`, each pixel the mean of those that it covers."""
    down, across = (_covering(side, most) for side in pictures.shape[1:])
    return np.asarray(np.matmul(down.T, pictures @ across), np.float32)


def _normal(pictures: Floats) -> Floats:
    """Return pictures with the mean 0 and the length 1; those of one color are 0."""
    mean = pictures.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(pictures - mean, axis=(1, 2), keepdims=True)
    flat = length <= 1e-4 * (1 + np.abs(pictures).max(axis=(1, 2), keepdims=True))
    return np.asarray(np.where(flat, 0, (pictures - mean) / np.where(flat, 1, length)), np.float32)


@functools.lru_cache(maxsize=64)
def _covering(side: int, most: int) -> Floats:
    """Return the share of each pixel of a side in each of at most `most` new ones, `(side, new)`.

    A pixel on an edge counts in part for both sides, so that a mirror image becomes the mirror image.
    """
    if side <= most:
        return np.eye(side, dtype=np.float32)
    pixels, edges = np.arange(side), np.linspace(0, side, most + 1)
    highs = np.minimum(pixels[:, np.newaxis] + 1, edges[1:])
    lows = np.maximum(pixels[:, np.newaxis], edges[:-1])
    return np.asarray(np.maximum(highs - lows, 0) * (most / side), np.float32)


def _row(samples: Array) -> Floats:
    """Return samples as rows, projected at random where they are long; NaN stays."""
    rows = samples.reshape(len(samples), -1).astype(np.float32)
    if rows.shape[1] <= _WIDTH:
        return rows
    rng = np.random.default_rng(0)
    onto = rng.standard_normal((rows.shape[1], _PROJECTED), np.float32)
    return np.asarray(np.nan_to_num(rows) @ onto / np.sqrt(_PROJECTED), np.float32)


def _standardized(judged: Floats, training: Floats) -> tuple[Floats, Floats]:
    """Return rows in standard deviations of each column; a missing value stands at -4.

    Where the two sets are in other units, each is put into its own.
    """
    with np.errstate(all="ignore"):
        spreads = [np.nanstd(rows.astype(np.float64), axis=0) for rows in (judged, training)]
        apart = np.nanmedian(np.abs(np.log2(spreads[0] / spreads[1])))
    alike = not apart > 1
    pooled = np.concatenate([judged, training])
    return tuple(  # type: ignore[return-value]
        _in_deviations(rows, pooled if alike else rows) for rows in (judged, training)
    )


def _in_deviations(rows: Floats, of: Floats) -> Floats:
    whole = of.astype(np.float64)
    mean, spread = np.nanmean(whole, axis=0), np.nanstd(whole, axis=0)
    put = (rows - mean) / np.where(spread > 0, spread, 1)
    return np.asarray(np.nan_to_num(put, nan=-4.0), np.float32)


def _named(dataset: Dataset, place: int, which: str) -> str:
    """Name a sample: by its file, else by its position."""
    whole: Any = dataset
    while isinstance(whole, Subset):
        place, whole = int(whole.indices[place]), whole.whole
    files: list[Path] | None = getattr(whole, "files", None)
    return f"{which} sample {place}" if files is None else str(files[place])
