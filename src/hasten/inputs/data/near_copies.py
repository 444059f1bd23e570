"""Near copies of training samples among the samples to judge on: see design/near-copies.md.

Samples are reduced to short signatures. A judged sample that lies far closer to a training sample than
the data's own neighbours lie to each other is a near copy of it; of token ids, one that shares most of
its runs of three tokens with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset, Subset, like_shaped
from hasten.inputs.data.neighbours import chance, nearest
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
_SIDE = 16
"""Largest side of the picture that stands for an image, in pixels."""
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

    Of images, other types, scales, brightness, contrast and some noise make no difference; of rows, other
    types, units and a little noise; of texts, as token ids, some words that were changed. Samples of
    another size aren't compared, but images of more than 16 pixels.

    Raises:
        InputError: a sample can't be read.
    """
    kind, names = _kind(training, judged)
    if kind == "texts":
        found = alike(*(_tokens(data, names) for data in (judged, training)))
    elif names and len(training) >= _LEAST:
        found = _close(kind, *(_signatures(data, kind, names) for data in (judged, training)))
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
        self._kept: list[Array] = []
        self._places: list[int] = []

    def __len__(self) -> int:
        return len(self.whole)

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return self.whole.shapes(index)

    def content_hash(self, index: int) -> bytes:
        return self.whole.content_hash(index)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        read = self.whole.inputs(indices)
        if self._names and len(self._places) < _REMEMBERED:
            reduce = _joined if self._kind == "texts" else _REDUCED[self._kind]
            self._kept.append(reduce([read[name] for name in self._names]))
            self._places.extend(indices)
        return read

    def near_known(self) -> NearCopies:
        """Return which of the samples that were read are near copies of known ones."""
        found = _NONE, _NONE
        if self._kept and self._kind == "texts":
            found = alike(iter(self._kept), _tokens(self._known, self._names))
        elif self._kept and len(self._known) >= _LEAST:
            theirs = _signatures(self._known, self._kind, self._names)
            found = _close(self._kind, np.concatenate(self._kept), theirs)
        places = np.array(self._places, np.int64)[found[0]]
        shown = _examples(self.whole, self._known, "sealed", "search", places, found[1])
        return NearCopies(places, found[1], max(1, len(self._places)), shown)


def _examples(
    one: Dataset, other: Dataset, mine: str, theirs: str, places: Indices, partners: Indices
) -> tuple[str, ...]:
    """Return the first few pairs in words."""
    pairs = zip(places[:_EXAMPLES].tolist(), partners[:_EXAMPLES].tolist(), strict=True)
    return tuple(f"{_named(one, i, mine)} and {_named(other, j, theirs)}" for i, j in pairs)


def _close(kind: Kind, judged: Floats, training: Floats) -> tuple[Indices, Indices]:
    """Return judged samples that lie unexpectedly close to training samples, and these."""
    if judged.shape[1] != training.shape[1]:
        return _NONE, _NONE
    if kind == "rows":
        judged, training = _standardized(judged, training)
    distances, places = nearest(judged, training)
    odds = chance(distances)
    bar = SURE
    if kind == "images":
        odds[~judged.any(axis=1)] = 1.0  # pictures of one colour are all alike
        bar = COMMON if (odds < COMMON).mean() > COMMON_SHARE else SURE
    found = np.flatnonzero(odds < bar)
    found = found[np.argsort(odds[found], kind="stable")]
    return found, places[found, 0]


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
        min((size for size in data.shapes(i)[name] if size not in (1, 3, 4)), default=0)
        for data in (training, judged)
        for i in range(len(data))
        for name in names
    )


def _channels(sample: Array) -> int | None:
    """Return the axis of an image's channels, -1 where it has none; None for what is no image."""
    if sample.dtype.kind not in "uif" or sample.ndim not in (2, 3):
        return None
    axis = -1
    if sample.ndim == 3:
        axes = [axis for axis in (0, 2) if sample.shape[axis] in (1, 3, 4)]
        if not axes:
            return None
        axis = axes[0]
    sides = [size for place, size in enumerate(sample.shape) if place != axis]
    return axis if min(sides) >= 8 else None


def _chunks(dataset: Dataset, names: list[str]) -> Iterator[list[Array]]:
    """Yield the inputs of all samples, as many at a time as fit into 32 MiB."""
    first = dataset.inputs([0])
    each = sum(first[name].nbytes for name in dataset.names)
    step = max(1, min(4096, _CHUNK_BYTES // max(1, each)))
    for start in range(0, len(dataset), step):
        for together in like_shaped(dataset, range(start, min(start + step, len(dataset)))):
            read = dataset.inputs(together)
            yield [read[name] for name in names]


def _signatures(dataset: Dataset, kind: Kind, names: list[str]) -> Floats:
    """Return a short row of numbers for each sample, `(n, width)`."""
    return np.concatenate([_REDUCED[kind](chunk) for chunk in _chunks(dataset, names)])


def _tokens(dataset: Dataset, names: list[str]) -> Iterator[Array]:
    """Yield the token ids of some samples at a time, `(k, length)`."""
    return map(_joined, _chunks(dataset, names))


def _joined(inputs: Sequence[Array]) -> Array:
    return np.concatenate([array.astype(np.int64) for array in inputs], axis=1)


def _pictures(inputs: Sequence[Array]) -> Floats:
    return np.concatenate([_picture(array) for array in inputs], axis=1)


def _rows(inputs: Sequence[Array]) -> Floats:
    return np.concatenate([_row(array) for array in inputs], axis=1)


_REDUCED: dict[str, Callable[[Sequence[Array]], Floats]] = {"images": _pictures, "rows": _rows}


def _picture(samples: Array) -> Floats:
    """Return grey pictures of at most 16 x 16 pixels with the mean 0 and the length 1, `(n, pixels)`."""
    axis = _channels(samples[0])
    grey = samples.astype(np.float32)
    if axis is not None and axis >= 0:
        grey = grey.mean(axis=axis + 1)
    small = _shrunk(_shrunk(grey, 1), 2).reshape(len(samples), -1)
    small -= small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    flat = length <= 1e-4 * (1 + np.abs(grey).max(axis=(1, 2), keepdims=True)[:, 0])
    return np.asarray(np.where(flat, 0, small / np.where(flat, 1, length)), np.float32)


def _shrunk(pictures: Array, axis: int) -> Array:
    """Return pictures whose side is at most 16 pixels, each the mean of those that it covers."""
    size = pictures.shape[axis]
    if size <= _SIDE:
        return pictures
    edges = np.linspace(0, size, _SIDE + 1).astype(np.int64)
    shape = [-1 if place == axis else 1 for place in range(pictures.ndim)]
    sums = np.add.reduceat(pictures, edges[:-1], axis=axis)
    return np.asarray(sums / np.diff(edges).reshape(shape))


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
