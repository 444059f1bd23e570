"""Samples that are written to disk as raw bytes, for worker processes to read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hasten.core.records import read_json, write_json
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError
from hasten.inputs.data.dataset import Dataset, like_shaped
from hasten.inputs.data.ragged import RaggedArray
from hasten.inputs.data.raw import RawArray
from hasten.inputs.data.samples import (
    RESERVED,
    check_counts,
    check_finite,
    check_rank,
    check_shape,
    native,
)

INDEX = "index.json"
HASHES = "hashes.raw"
SCHEMA = 1
CHUNK_BYTES = 64 * 2**20
"""Largest part of a data set that `write_spool` holds in memory, but at least one sample."""


class Spool(Dataset):
    """Data set in a folder, with one raw file per input; `write_spool` makes it.

    The folder holds `input0.raw`, ... with the samples in C order, `hashes.raw` with 32 bytes each,
    `labels.npy` and `groups.npy` where the data has them, and `index.json`, which is written last.
    Where samples of an input differ in shape, `shapes0.npy`, ... holds their shapes, `(n, axes)`.
    """

    def __init__(self, folder: Path) -> None:
        """Open a spool, as `Spool.open` does.

        Raises:
            IntegrityError: the folder holds no complete spool.
        """
        self.folder = folder
        index = read_json(folder / INDEX)
        try:
            if index["schema"] != SCHEMA:
                raise IntegrityError(f"{folder} was written by another version; delete it")
            self._count = int(index["count"])
            self._inputs = {
                str(entry["name"]): self._input(i, entry) for i, entry in enumerate(index["inputs"])
            }
            self._hashes = RawArray(folder / HASHES, np.dtype(np.uint8), (self._count, 32))
            rows = {
                role: np.load(folder / f"{role}.npy", allow_pickle=False) if index[role] else None
                for role in RESERVED
            }
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise IntegrityError(f"{folder} is not a complete spool: {error}; delete it") from error
        self.names = tuple(self._inputs)
        self.labels, self.groups = rows["labels"], rows["groups"]
        self.missing = bool(index.get("missing"))
        self.ragged = any(isinstance(array, RaggedArray) for array in self._inputs.values())

    def _input(self, number: int, entry: Mapping[str, Any]) -> RawArray | RaggedArray:
        """Return an input's samples by its entry of the index."""
        path, dtype = self.folder / f"input{number}.raw", np.dtype(str(entry["dtype"]))
        if entry.get("ragged"):
            shapes = np.load(self.folder / f"shapes{number}.npy", allow_pickle=False)
            if len(shapes) != self._count:
                raise ValueError(f"{len(shapes)} shapes for {self._count} samples")
            return RaggedArray(path, dtype, shapes)
        return RawArray(path, dtype, (self._count, *map(int, entry["shape"])))

    @classmethod
    def open(cls, folder: Path) -> Spool:
        """Open a folder that `write_spool` wrote."""
        return cls(folder)

    def __len__(self) -> int:
        return self._count

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return {name: array.rows(indices) for name, array in self._inputs.items()}

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return {name: array.shape_of(index) for name, array in self._inputs.items()}

    def content_hash(self, index: int) -> bytes:
        return self._hashes.rows([index]).tobytes()


def write_spool(dataset: Dataset, folder: Path, chunk: int = 64) -> Spool:
    """Copy a data set to disk, up to `chunk` samples at a time within 64 MiB (or one sample).

    Args:
        dataset: Data set to copy; its content hashes are kept.
        folder: Folder to write to, empty or not yet there.
        chunk: Largest number of samples to read at once.

    Raises:
        InputError: a sample can't be read, isn't finite, or has another shape than the first though
            the data set isn't ragged; or the disk is full.
    """
    common = {"missing": dataset.missing, "ragged": dataset.ragged}
    with SpoolWriter(folder, dataset.names, **common) as writer:
        start, step = 0, 1
        while start < len(dataset):
            indices = range(start, min(start + step, len(dataset)))
            for alike in like_shaped(dataset, indices):
                hashes = [dataset.content_hash(i) for i in alike]
                writer.append(dataset.inputs(alike), hashes)
            start = indices.stop
            step = max(1, min(chunk, CHUNK_BYTES // max(1, writer.sample_bytes)))
        return writer.finish(dataset.labels, dataset.groups)


class SpoolWriter:
    """Writer of a spool, a few samples at a time; the folder is no spool until `finish`."""

    def __init__(
        self, folder: Path, names: Sequence[str], *, missing: bool = False, ragged: bool = True
    ) -> None:
        """Make the folder and its files.

        Args:
            folder: Folder to write to, empty or not yet there.
            names: Names of the inputs.
            missing: Whether NaN stands for a value that isn't there.
            ragged: Whether samples may differ in shape.

        Raises:
            InputError: the folder isn't empty, or can't be written.
        """
        self._folder = folder
        self._names = tuple(names)
        self._missing = missing
        self._check = check_rank if ragged else check_shape
        self._first: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._shapes: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        self._count = 0
        self._open = ExitStack()
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} isn't empty: give a new folder to write samples to")
        try:
            self._files = {n: self._create(f"input{i}.raw") for i, n in enumerate(self._names)}
            self._hashes = self._create(HASHES)
        except BaseException:
            self._open.close()
            raise

    def _create(self, name: str) -> BinaryIO:
        path = self._folder / name
        with _writing(path):
            return self._open.enter_context(path.open("wb", buffering=0))

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def sample_bytes(self) -> int:
        """Size of the first sample in bytes, over all inputs; 0 before it is written."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            for dtype, shape in self._first.values()
        )

    def append(self, samples: Mapping[str, Array], hashes: Iterable[bytes]) -> None:
        """Write some samples.

        Args:
            samples: Arrays of shape `(k, ...)` by input name.
            hashes: Content hashes, one per sample.

        Raises:
            InputError: a sample isn't finite, its dtype or number of axes isn't that of the first,
                or the disk is full.
        """
        count = len(next(iter(samples.values())))
        indices = range(self._count, self._count + count)
        for name in self._names:
            if name not in samples:
                raise InputError(f"sample {indices[0]} has no input {name!r}, but the first has")
            array = np.ascontiguousarray(native(samples[name]))  # the index has no byte order
            dtype, shape = self._first.setdefault(name, (array.dtype, array.shape[1:]))
            self._check(name, array[0], shape, indices[0])
            self._shapes.setdefault(name, []).append((count, array.shape[1:]))
            if array.dtype != dtype:
                raise InputError(
                    f"input {name!r}: sample {indices[0]} is {array.dtype}, but the first is "
                    f"{dtype}"
                )
            check_finite(name, array, indices, missing=self._missing)
            self._write(self._files[name], array.reshape(-1).view(np.uint8).data)
        self._write(self._hashes, memoryview(b"".join(hashes)))
        self._count += count

    def _write(self, file: BinaryIO, data: memoryview) -> None:
        """Write all the data; a single write may take only part of it."""
        with _writing(self._folder):
            while data:
                data = data[file.write(data) :]

    def finish(self, labels: Array | None, groups: Array | None) -> Spool:
        """Write labels, groups and, last, the index; then open the spool.

        Raises:
            InputError: there are no samples, or labels or groups have another length.
        """
        check_counts(dict.fromkeys(self._names, self._count), labels, groups)
        with _writing(self._folder):
            for role, rows in zip(RESERVED, (labels, groups), strict=True):
                if rows is not None:
                    np.save(self._folder / f"{role}.npy", rows, allow_pickle=False)
            for file in (*self._files.values(), self._hashes):
                os.fsync(file.fileno())
        inputs = [self._entry(number, name) for number, name in enumerate(self._names)]
        index = {
            "schema": SCHEMA,
            "count": self._count,
            "inputs": inputs,
            "labels": labels is not None,
            "groups": groups is not None,
            "missing": self._missing,
        }
        write_json(self._folder / INDEX, index)
        return Spool(self._folder)

    def _entry(self, number: int, name: str) -> dict[str, Any]:
        """Return an input's entry of the index; write its shapes where they differ."""
        dtype, first = self._first[name]
        entry: dict[str, Any] = {"name": name, "dtype": dtype.name, "shape": first}
        if any(shape != first for _, shape in self._shapes[name]):
            counts = [count for count, _ in self._shapes[name]]
            shapes = np.repeat([shape for _, shape in self._shapes[name]], counts, axis=0)
            with _writing(self._folder):
                np.save(self._folder / f"shapes{number}.npy", shapes.astype(np.int64))
            entry["ragged"] = True
        return entry


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failure to write inside the block into an InputError, as the caller must make room."""
    try:
        yield
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
