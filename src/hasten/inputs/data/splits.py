"""Split of a data set into parts for calibration, for the search and for the sealed test."""

from __future__ import annotations

import datetime
import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.samples import check_counts

Indices = npt.NDArray[np.int64]
_MIDNIGHT = " 00:00:00"
_DATE = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?)?")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
"""Text of a whole number."""
KNOWN_BYTES = 16
"""Bytes of a content hash by which samples of earlier runs are known."""


@dataclass(frozen=True)
class Earlier:
    """Record of what earlier runs did with samples, by the first bytes of their content hashes.

    Attributes:
        seen: Samples that a run searched or calibrated on. They are never sealed again.
        tested: Sample that was sealed, and on which a run then tested candidates -> its worth in
            fresh samples: 1 where it can be tested on again as if it were fresh, else less.
        former: Tested sample -> the same for the hash that it had while types counted, where a look
            knows it by that.
    """

    seen: frozenset[bytes] = frozenset()
    tested: Mapping[bytes, float] = field(default_factory=dict)
    former: Mapping[bytes, bytes] = field(default_factory=dict)

    def among(self, hashes: Iterable[bytes], former_hashes: Sequence[bytes | None] = ()) -> Earlier:
        """Return what was done with some samples, given by their whole hashes.

        Args:
            hashes: Content hash of each sample.
            former_hashes: Result of `former_hashes`, by which samples are looked up too.
        """
        now = [one[:KNOWN_BYTES] for one in hashes]
        seen = {one for one in now if one in self.seen}
        tested = {one: self.tested[one] for one in now if one in self.tested}
        former = {one: self.former[one] for one in now if one in self.former}
        for one, other in zip(now, former_hashes, strict=False):
            before = b"" if other is None else other[:KNOWN_BYTES]
            if before in self.seen:
                seen.add(one)
            if before in self.tested:
                tested[one] = min(self.tested[before], tested.get(one, 1.0))
                former[one] = before
        return Earlier(frozenset(seen), tested, former)

    def with_former(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Return the hashes of samples, and the first bytes of those by which an older look knows them."""
        known = list(hashes)
        short = (one[:KNOWN_BYTES] for one in known)
        return [*known, *(self.former[one] for one in short if one in self.former)]


@dataclass(frozen=True)
class Splits:
    """Three parts of the data that share no sample, no content and no group.

    Attributes:
        calibration: Samples that set the ranges of quantizers.
        search: Samples on which candidates are judged during the search.
        sealed: Samples for the certificate, read once, after the ladder is frozen.
        sealed_hashes: Content hashes of the sealed samples, in hex, in order.
        sealed_units: Unit numbers of the sealed samples, integers of shape `(len(sealed),)`.
            Samples with one number were drawn together, since they share a group or their content;
            all differ where every sample stands alone.
        search_units: Unit numbers of the search samples, integers of shape `(len(search),)`.
        unit_sizes: Number of samples in each unit of all the data to judge on, shape `(units,)`.
        withheld: Number of samples for the search that would have been sealed but for earlier runs.
        earlier: Record of what earlier runs did with samples of this data.
    """

    calibration: Dataset
    search: Subset
    sealed: Subset
    sealed_hashes: tuple[str, ...]
    sealed_units: Indices
    search_units: Indices
    unit_sizes: Indices
    withheld: int = 0
    earlier: Earlier = field(default_factory=Earlier)


def split(
    dataset: Dataset,
    *,
    calibration: int = 300,
    search: float = 0.3,
    seed: int = 0,
    training: Dataset | None = None,
    earlier: Earlier | None = None,
) -> Splits:
    """Split a data set by content and by group.

    The split draws units: samples that share a group or their content form one unit, which is never
    divided. Units are ordered by SHA-256(seed, least content hash in the unit), so the split
    depends on the seed and on what the samples hold, not on their order or names. Of `u` units with
    `n` samples, the first `min(u * calibration / n, u / 3)` calibrate (samples past the number
    asked for go unused). Of the rest, the share `search` is for the search and the remainder is
    sealed. A unit's size has no influence on where it lands, as that would bias the sealed part.
    With training data, calibration draws from it, and all of `dataset` is left to judge on.

    A unit with a sample that an earlier run searched or calibrated on is never sealed: such units come
    first in the order, then those that were tested on, then fresh ones, each by the hash. Where the
    fresh units alone tell more than all that can be sealed, those tested on are for the search.

    Sealed units come in the order of their content hashes, whatever the seed: the same samples are judged
    in the same order by each run.

    Args:
        dataset: Data to judge on. Its samples are hashed, and so checked, one at a time.
        calibration: Largest number of samples that calibrate.
        search: Share of the remaining units that the search sees, in (0, 1).
        seed: Seed of the order, any integer.
        training: Data that the model was trained on; None if it isn't given.
        earlier: Record of what earlier runs did with samples; None where nothing is known.

    Raises:
        InputError: there are too few samples, a sample can't be used, a setting is out of range,
            training data shares content or a group with the data to judge on, or earlier runs
            searched on all of it.
    """
    if calibration < 1:
        raise InputError(f"calibration={calibration}: give at least 1 sample to calibrate with")
    if not 0 < search < 1:
        raise InputError(f"search={search}: give a share between 0 and 1, such as 0.3")
    check_counts(dict.fromkeys(dataset.names, len(dataset)), dataset.labels, dataset.groups)
    hashes = _hashes(dataset)
    units = _units(hashes, dataset)
    order = _order(units, hashes, seed)
    known = earlier or Earlier()
    former = former_hashes(dataset) if known.seen or known.tested else []
    found = known.among((row.tobytes() for row in hashes), former)
    order, seen, tested = _earlier_first(order, hashes, found)
    least = 3 if training is None else 2
    if len(order) < least:
        raise InputError(_too_few(len(dataset), len(order), least, dataset.groups is not None))
    if training is None:
        share = round(len(order) * calibration / len(dataset))
        first = max(1, min(share, len(order) // 3))
        chosen = np.concatenate(order[:first])[:calibration]
        calibrating: Dataset = Subset(dataset, chosen)
    else:
        first = 0
        calibrating = _from_training(training, dataset, hashes, calibration, seed)
    rest = order[first:]
    share = max(1, min(round(len(rest) * search), len(rest) - 1))
    middle = max(share, seen - first)
    without = max(share, seen + tested - first)
    worth = min(found.tested.values(), default=1.0)
    if worth < 1 and len(rest) - without >= worth * (len(rest) - middle):
        middle = without
    if middle >= len(rest):
        raise InputError(_all_seen(len(dataset)))
    # Bets depend on the order of the draws, so that must depend on the samples alone, and not on the seed.
    kept = sorted(rest[middle:], key=lambda unit: hashes[unit[0]].tobytes())
    searched, sealed = np.concatenate(rest[:middle]), np.concatenate(kept)
    return Splits(
        calibration=calibrating,
        search=Subset(dataset, searched),
        sealed=Subset(dataset, sealed),
        sealed_hashes=tuple(hashes[i].tobytes().hex() for i in sealed),
        sealed_units=_as_they_appear(units[sealed]),
        search_units=_as_they_appear(units[searched]),
        unit_sizes=np.unique(units, return_counts=True)[1],
        withheld=sum(len(unit) for unit in rest[share:middle]),
        earlier=found,
    )


def held_out(dataset: Dataset, count: int, seed: int = 0) -> tuple[Subset, Subset]:
    """Divide training data into a part to train on and a part that tells how training goes.

    Args:
        dataset: Training data; whole units are drawn, as in `split`.
        count: Approximate number of samples to hold out, at most a fifth of the data.
        seed: Seed of the draw, any integer.

    Returns:
        Samples to train on, then samples held out.

    Raises:
        InputError: there are too few samples, or a sample can't be used.
    """
    check_counts(dict.fromkeys(dataset.names, len(dataset)), dataset.labels, dataset.groups)
    hashes = _hashes(dataset)
    order = _order(_units(hashes, dataset), hashes, seed)
    if len(order) < 2:
        raise InputError(
            f"the training data has {len(dataset)} samples that are all identical or in one group; "
            "give at least two that differ"
        )
    share = min(count / len(dataset), 0.2)
    out = max(1, round(share * len(order)))
    chosen, rest = np.concatenate(order[:out]), np.concatenate(order[out:])
    return Subset(dataset, np.sort(rest)), Subset(dataset, np.sort(chosen))


def units_of(dataset: Dataset, hashes: Sequence[bytes] | None = None) -> Indices:
    """Return the number of each sample's unit, `(n,)`: those that share a group or their content have one.

    Args:
        dataset: Samples to number.
        hashes: Content hash of each sample; by default they are read.

    Returns:
        Numbers in the order in which the units appear.
    """
    if hashes is None:
        return _as_they_appear(_units(_hashes(dataset), dataset))
    known = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)
    return _as_they_appear(_units(known, dataset))


def former_hashes(dataset: Dataset) -> list[bytes | None]:
    """Return the hash by which records of older versions know each sample, None where it is the same.

    Returns:
        One for each sample; none at all where the data set says that nothing is different.
    """
    if not dataset.has_former_hashes():
        return []
    return [dataset.former_hash(i) for i in range(len(dataset))]


def _as_they_appear(units: Indices) -> Indices:
    """Number units in the order in which each appears first, so that no name of a group decides on it."""
    _, first, places = np.unique(units, return_index=True, return_inverse=True)
    numbers: Indices = np.argsort(np.argsort(first))[places]
    return numbers


def _hashes(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Return every sample's content hash, as bytes of shape `(n, 32)`, read one at a time."""
    hashes = np.empty((len(dataset), 32), np.uint8)
    for i in range(len(dataset)):
        hashes[i] = np.frombuffer(dataset.content_hash(i), np.uint8)
    return hashes


def _units(hashes: npt.NDArray[np.uint8], dataset: Dataset) -> Indices:
    """Return unit numbers `(n,)`; sharing a group or content, in any chain, makes a unit."""
    _, contents = np.unique(hashes, axis=0, return_inverse=True)
    contents = contents.reshape(-1).astype(np.int64)
    if dataset.groups is None:
        return contents
    numbers: dict[str, int] = {}
    names = map(group_name, dataset.groups)  # 7 and "7.0" of two files are one group
    groups = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    groups += contents.max(initial=-1) + 1
    parent = list(range(int(groups.max(initial=-1)) + 1))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for content, group in zip(contents.tolist(), groups.tolist(), strict=True):
        parent[root(content)] = root(group)
    return np.array([root(content) for content in contents.tolist()], np.int64)


def _order(units: Indices, hashes: npt.NDArray[np.uint8], seed: int) -> list[Indices]:
    """Return the positions of each unit's samples by content hash; the seed orders the units."""
    by_content = np.lexsort(hashes.T[::-1])
    members: dict[int, list[int]] = {}
    for index in by_content.tolist():
        members.setdefault(int(units[index]), []).append(index)
    # Samples are visited in the order of their hashes, so each unit's first one has the least.
    keyed = sorted((_key(seed, hashes[m[0]].tobytes()), m) for m in members.values())
    return [np.array(m, np.int64) for _, m in keyed]


def _earlier_first(
    order: list[Indices], hashes: npt.NDArray[np.uint8], earlier: Earlier
) -> tuple[list[Indices], int, int]:
    """Return units with those searched on first, then those tested on; and the number of each."""
    known: tuple[list[Indices], list[Indices], list[Indices]] = ([], [], [])
    for unit in order:
        contents = {hashes[i, :KNOWN_BYTES].tobytes() for i in unit}
        place = 0 if contents & earlier.seen else 1 if contents & earlier.tested.keys() else 2
        known[place].append(unit)
    return [unit for part in known for unit in part], len(known[0]), len(known[1])


def _key(seed: int, content: bytes) -> bytes:
    """Return a hash to sort by, which is as good as random but repeatable."""
    return hashlib.sha256(f"{seed}:".encode() + content).digest()


def _from_training(
    training: Dataset,
    dataset: Dataset,
    hashes: npt.NDArray[np.uint8],
    calibration: int,
    seed: int,
) -> Subset:
    """Choose training samples for calibration, after checking that none is also judged on."""
    if set(training.names) != set(dataset.names):
        raise InputError(
            f"the training data has the inputs {', '.join(training.names)}; "
            f"the data to judge on has {', '.join(dataset.names)}"
        )
    judged = {row.tobytes() for row in hashes}
    shared: list[int] = []

    def keys() -> Iterator[tuple[bytes, int]]:
        for index in range(len(training)):
            content = training.content_hash(index)
            if content in judged:
                shared.append(index)
            yield _key(seed, content), index

    chosen = heapq.nsmallest(calibration, keys())
    if shared:
        raise InputError(
            f"{len(shared)} of {len(training)} training samples are also in the data to judge on "
            f"(training sample {shared[0]} is the first); remove them from one of the two"
        )
    if training.groups is not None and dataset.groups is not None:
        both_groups = (training.groups, dataset.groups)
        own, others = ({*map(group_name, np.unique(groups))} for groups in both_groups)
        if both := sorted(own & others):
            raise InputError(
                f"{len(both)} groups are in the training data and in the data to judge on "
                f"({both[0]} is the first); remove them from one of the two"
            )
    return Subset(training, np.array([index for _, index in chosen], np.int64))


def group_name(group: object) -> str:
    """Return a group's name as a text: 7, 7.0, "7" and b"7" are one group, since forms of data differ in type."""
    if isinstance(group, (datetime.date, np.datetime64)):
        return dated(group)
    text = group.decode("utf-8", "replace") if isinstance(group, bytes) else str(group)
    if _DATE.fullmatch(text):
        return text.removesuffix(_MIDNIGHT)
    return text[:-2] if text.endswith(".0") and _WHOLE.fullmatch(text[:-2]) else text


def spellings(name: str) -> tuple[str, ...]:
    """Return a group's name, and those of older bundles: 7 was "7.0" as a float, and "b'7'" as bytes."""
    as_bytes = str(name.encode())
    if _WHOLE.fullmatch(name):
        return name, f"{name}.0", as_bytes
    if not _DATE.fullmatch(name):
        return name, as_bytes
    whole = name if " " in name else name + _MIDNIGHT
    written = whole.replace(" ", "T")
    try:
        moments = [str(np.datetime64(written, unit)) for unit in ("h", "m", "s", "ms", "us", "ns")]
    except ValueError:  # no date, though it looks like one
        moments = []
    # A unit that is too coarse cuts more than zeros off: that is another group.
    cut = written.rstrip("0:.")
    return name, as_bytes, whole, *(one for one in moments if one.rstrip("0:.") == cut)


def dated(one: datetime.date | np.datetime64) -> str:
    """Return a date or a timestamp as a text, which is the same in an array, in a column and in a CSV file."""
    if isinstance(one, np.datetime64) and isinstance(one.item(), int):  # nanoseconds
        whole = one.astype("datetime64[us]")
        text = str(whole.item() if whole == one else one)
    else:
        text = str(one.item() if isinstance(one, np.datetime64) else one)
    return text.removesuffix(_MIDNIGHT)


def _all_seen(samples: int) -> str:
    return (
        f"earlier runs searched or calibrated on all {samples:,} samples of the data, so none is "
        "left to certify with: add samples that none of those runs has read (hasten ledger shows "
        "what it remembers)"
    )


def _too_few(samples: int, units: int, least: int, grouped: bool) -> str:
    """Return the message that says how many samples or groups there are and how many are needed."""
    uses = (
        "one each to calibrate, to search and to certify"
        if least == 3
        else "one each to search and to certify"
    )
    if samples < least:
        return f"the data has {samples} samples; give at least {least}: {uses}"
    what = "groups" if grouped else "different samples"
    return f"the data has {units} {what} in {samples} samples; give at least {least} {what}: {uses}"
