"""Parts of the data to judge on, split and laid out on disk for the processes that run candidates."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hasten.core.records import digest
from hasten.core.tensors import Array
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.groups import group_name, spellings
from hasten.inputs.data.near_copies import Remembered, check_near_copies
from hasten.inputs.data.splits import Earlier, Splits, split
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.metrics.base import Metric


@dataclass(frozen=True)
class Parts:
    """The data of a run, split and laid out for the worker processes.

    Attributes:
        calibration: Samples that passes may see, on disk.
        calibration_hash: Digest of the calibration samples.
        search: Samples that candidates are tried on, on disk.
        search_units: Number of each search sample's group; equal numbers were drawn together.
        sealed: Samples that aren't read until the ladder is frozen.
        sealed_units: Number of each sealed sample's group; equal numbers were drawn together.
        sealed_hashes: Content hashes of the sealed samples, in hex.
        unit_sizes: Number of samples in each group of all the data to judge on, equal ones together.
        notes: Notes on samples that were left out, with the reasons, and on near copies.
        earlier: Record of what earlier runs did with samples of this data.
        reservation: Reservation that a certificate on this data must state; empty where there is none.
        read_s: Time to read a sample, at most, in seconds.
        searched: Samples that candidates are tried on, where they come from; None where nothing is to be read
            there again.
    """

    calibration: Spool
    calibration_hash: str
    search: Spool
    search_units: Array
    sealed: Subset
    sealed_units: Array
    sealed_hashes: tuple[str, ...]
    unit_sizes: Array
    notes: tuple[str, ...]
    earlier: Earlier = field(default_factory=Earlier)
    reservation: str = ""
    read_s: float = 0.0
    searched: Dataset | None = None

    def sealed_to_read(self) -> Remembered:
        """Return the sealed samples for the one reading of them, which finds near copies of search samples."""
        return Remembered(self.sealed, self.search)

    @property
    def seen_hashes(self) -> tuple[str, ...]:
        """Return the content hashes, in hex, of the calibration and search samples."""
        return tuple(h.hex() for part in (self.calibration, self.search) for h in _hashes(part))

    @property
    def group_hashes(self) -> tuple[str, ...]:
        """Return the hashes of the groups in all parts of the data."""
        parts = (self.calibration, self.search, self.sealed)
        groups = [part.groups for part in parts if part.groups is not None]
        return tuple(dict.fromkeys(name for some in groups for name in hashed_groups(some)))

    def search_draws(self, metric: Metric) -> Array:
        """Return the number of each search sample's draw, as a metric draws them, `(n,)`.

        Raises:
            InputError: the labels aren't of the form that the metric reads.
        """
        return metric.draws(self.search.labels, self.search_units)

    def sealed_draws(self, metric: Metric) -> Array:
        """Return the number of each sealed sample's draw, as a metric draws them, `(n,)`.

        Raises:
            InputError: the labels aren't of the form that the metric reads.
        """
        return metric.draws(self.sealed.labels, self.sealed_units)


def lay_out(
    dataset: Dataset,
    folder: Path,
    *,
    calibration: int,
    seed: int,
    training: Dataset | None,
    earlier: Earlier | None = None,
    allow_near_copies: bool = False,
) -> Parts:
    """Split the data, and write what the search may see.

    Raises:
        InputError: there are too few samples, some can't be read, earlier runs searched on all, or too many
            are near copies of training samples.
    """
    began = time.monotonic()
    splits = split(dataset, calibration=calibration, seed=seed, training=training, earlier=earlier)
    notes = _repeats(splits) if dataset.groups is None else ()
    notes += groups_on_one_side(training, dataset)
    if splits.withheld:
        notes += (
            f"{splits.withheld:,} more samples than usual are in the search split instead of the "
            "sealed data, because earlier runs used them",
        )
    found = None if training is None else check_near_copies(training, dataset, allow_near_copies)
    if found is not None:
        notes = (*notes, found.note())
    return Parts(
        calibration=_spooled(splits.calibration, folder / "calibration"),
        calibration_hash=digest([h.hex() for h in _hashes(splits.calibration)]),
        search=_spooled(splits.search, folder / "search"),
        search_units=splits.search_units,
        sealed=splits.sealed,
        sealed_units=splits.sealed_units,
        sealed_hashes=splits.sealed_hashes,
        unit_sizes=splits.unit_sizes,
        notes=notes,
        earlier=splits.earlier,
        reservation="" if found is None else found.reservation(),
        read_s=(time.monotonic() - began) / max(1, len(dataset)),
        searched=splits.search,
    )


def groups_on_one_side(training: Dataset | None, judged: Dataset) -> tuple[str, ...]:
    """Return a note if only one of training data and data to judge on has groups, so that none can be found in both."""
    if training is None or (training.groups is None) == (judged.groups is None):
        return ()
    names = ("the training data", "the data to judge on")
    having, lacking = names if judged.groups is None else names[::-1]
    return (
        f"{having} has groups, but {lacking} has none, so nothing shows whether both have samples of one group: give "
        f"groups with {lacking} too",
    )


def data_digest(parts: Parts) -> str:
    """Return a digest that tells one data set and its labels from another."""
    return digest(
        [
            parts.calibration_hash,
            [h.hex() for h in _hashes(parts.search)],
            parts.sealed_hashes,
            [_rows_digest(part.labels) for part in (parts.search, parts.sealed)],
        ]
    )


def _rows_digest(rows: Array | None) -> tuple[str, tuple[int, ...], str] | None:
    """Return an array's type, its shape, and the SHA-256 of its bytes in hex."""
    if rows is None:
        return None
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    return str(rows.dtype), rows.shape, hashlib.sha256(data.data).hexdigest()


def hashed_groups(groups: Array) -> tuple[str, ...]:
    """Return each sample's group as a SHA-256 in hex, since a bundle names no group."""
    return tuple(_hashed(group_name(group)) for group in groups)


def groups_seen(groups: Array, seen: Set[str]) -> list[bool]:
    """Return which samples' groups a bundle knows, by their hashes.

    Args:
        groups: Group of each sample, `(n,)`.
        seen: Hashes of the groups that a bundle was made with, in hex.
    """
    names = list(map(group_name, groups))
    known = {name: not seen.isdisjoint(map(_hashed, spellings(name))) for name in {*names}}
    return [known[name] for name in names]


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _hashes(dataset: Dataset) -> list[bytes]:
    return [dataset.content_hash(i) for i in range(len(dataset))]


def _spooled(dataset: Dataset, folder: Path) -> Spool:
    """Write samples again, since a run killed while writing leaves half a spool."""
    shutil.rmtree(folder, ignore_errors=True)
    return write_spool(dataset, folder)


def _repeats(splits: Splits) -> tuple[str, ...]:
    """Return a note on sealed samples that repeat others, where there are no groups."""
    samples, different = len(splits.sealed_units), len(np.unique(splits.sealed_units))
    if samples == different:
        return ()
    return (
        f"{samples - different:,} of {samples:,} sealed samples repeat another sample's content: "
        "equal samples count as one draw",
    )
