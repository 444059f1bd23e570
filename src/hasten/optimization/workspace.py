"""A run's work folder: the journal, the samples that the run may see, and the check on resuming."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hasten.core.records import canonical, digest
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.near_copies import check_near_copies
from hasten.inputs.data.splits import Earlier, Splits, split
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.metrics.base import Metric
from hasten.measure.journal import Journal
from hasten.measure.worker import request_of
from hasten.optimization.shapes import kept_places

JOURNAL = "journal.jsonl"
_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.1
_BEGIN = b'{"kind": "begin"'
"""First bytes of every run's journal: see `check_same_run`."""
SEARCH_VERSION = 7
"""Version of the search, raised where an older candidate would have another key or speed, or the sealed samples
another order, though nothing in its description shows it: then an older journal no longer counts."""


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
        earlier: What earlier runs did with samples of this data.
        reservation: What a certificate on this data must say of it; empty where there is nothing.
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


def requests_from(
    samples: Dataset, count: int, request: Sequence[TensorSpec]
) -> list[dict[str, Array]]:
    """Return samples as requests to a model, for a bundle to keep.

    Args:
        samples: Samples of single requests that certify nothing.
        count: Largest number of requests to return; they are spread evenly, in case the data is
            ordered. Of samples that differ in shape, they are the typical one, the smallest, a
            large and the largest one.
        request: Inputs of one request, with every size settled.
    """
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)), dtype=np.int64)
    if samples.ragged:
        places = np.array(kept_places(samples, count), np.int64)
    return [request_of(samples.inputs([int(place)]), request) for place in places]


@contextlib.contextmanager
def claimed_folder(folder: Path, *, resume: bool) -> Iterator[Journal]:
    """Make a run's work folder, or take up one that a stopped run left, and lock it.

    Raises:
        InputError: there is an unfinished run and `resume` is False; there is nothing to resume;
            the folder is of another kind; or another run is at work in it.
    """
    path = folder / JOURNAL
    nothing = f"nothing to resume: there is no {path}; run without resume=True"
    if resume and not path.exists():
        raise InputError(nothing)
    if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is needed as a work folder, but contains something else; move it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"can't write {folder}: {error.strerror or error}") from error
    with file:
        if not _locked_soon(file):
            raise InputError(f"another run is using {folder}: wait for it, or stop it")
        begun = path.stat().st_size > 0
        if begun and not resume:
            raise InputError(
                f"{folder} contains an unfinished run: continue it with resume=True, or remove "
                "that folder"
            )
        if resume and not begun:
            raise InputError(nothing)
        yield Journal(path)


def begun(folder: Path) -> bool:
    """Whether a run that can be resumed lies in a work folder."""
    path = folder / JOURNAL
    return path.is_file() and path.stat().st_size > 0


def discard(folder: Path) -> None:
    """Remove the work folder of a stopped run; keep a live run's, and any other folder."""
    with contextlib.suppress(OSError), (folder / JOURNAL).open("rb") as file:
        if _locked(file) and file.read(len(_BEGIN)) == _BEGIN:
            shutil.rmtree(folder)


def _locked_soon(file: BinaryIO) -> bool:
    """Lock a journal, retrying: a child of a killed run may hold it for a moment more."""
    for _ in range(_LOCK_TRIES):
        if _locked(file):
            return True
        time.sleep(_LOCK_PAUSE_S)
    return False


def _locked(file: BinaryIO) -> bool:
    """Lock a journal; return whether this run alone holds it, and no other has just removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(file.fileno()).st_nlink > 0


def check_same_run(journal: Journal, facts: dict[str, Any]) -> None:
    """Record the facts about a run, or check that a resumed run agrees with them.

    Raises:
        InputError: a fact, named in the message, differs.
    """
    begun = journal.last("begin")
    if begun is None:
        journal.append("begin", facts=facts)
        return
    for name, fact in facts.items():
        if canonical(begun["facts"].get(name)) != canonical(fact):
            raise InputError(
                f"can't resume: the stopped run had another {name}; give the same value, or remove "
                f"{journal.path.parent}"
            )


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
        unit_sizes=splits.sizes,
        notes=notes,
        earlier=splits.earlier,
        reservation="" if found is None else found.reservation(),
        read_s=(time.monotonic() - began) / max(1, len(dataset)),
        searched=splits.search,
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
    return tuple(hashlib.sha256(str(group).encode()).hexdigest() for group in groups)


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
