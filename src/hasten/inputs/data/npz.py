"""Data set in an .npz archive, read one sample at a time."""

from __future__ import annotations

import io
import math
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from hasten.core.free_space import free_bytes
from hasten.core.presence import is_there
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data import labels_by_output
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.groups import group_array
from hasten.inputs.data.ragged import SHAPES, RaggedArray, checked_shapes
from hasten.inputs.data.raw import RawArray, is_possible
from hasten.inputs.data.samples import (
    RESERVED,
    check_counts,
    check_finite,
    holds_numbers,
    single_number,
    tensors_hash,
)

LOCAL_HEADER_BYTES = 30  # APPNOTE.TXT 4.3.7: the name and the extra field follow it.
ENCRYPTED = 1  # APPNOTE.TXT 4.4.4: bit 0 of the flags.
COPY_BYTES = 2**20
ARRAY_HEADER_BYTES = 10_000
"""Limit on an array's header, as in numpy, which checks it only after reading."""
ROW_BYTES = {"labels": 2**20, "groups": 2**12}
"""Largest label (a megapixel mask) and group (a long name) of a sample; all stay in memory."""
_UNASKED_BYTES, _MOST_TIMES = 1 << 30, 100
"""Bytes that compressed arrays may unpack to in any case, and the most times the archive's own size."""
_READ_BYTES = 16 << 20
"""Bytes that compressed shapes, labels or groups, which are read into memory, may unpack to in any case."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError)


class NpzDataset(Dataset):
    """Arrays of an archive that stay on disk; `open_npz` makes it."""

    def __init__(
        self,
        arrays: Mapping[str, RawArray | RaggedArray],
        labels: Array | None,
        groups: Array | None,
        source: str,
        *,
        missing: bool = False,
    ) -> None:
        """Check that the counts agree.

        Raises:
            InputError: there are no samples, or counts differ.
        """
        self._arrays = arrays
        self.names = tuple(arrays)
        self.labels, self.groups = labels, groups
        self.missing = missing
        counts = {name: len(array) for name, array in arrays.items()}
        self._count = check_counts(counts, labels, groups, source)
        self.ragged = any(isinstance(array, RaggedArray) for array in arrays.values())

    def __len__(self) -> int:
        return self._count

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        read = {name: array.rows(indices) for name, array in self._arrays.items()}
        for name, samples in read.items():
            check_finite(name, samples, indices, missing=self.missing)
        return read

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return {name: array.shape_of(index) for name, array in self._arrays.items()}

    def content_hash(self, index: int) -> bytes:
        return tensors_hash({name: rows[0] for name, rows in self.inputs([index]).items()})


def open_npz(
    path: Path,
    names: Sequence[str] | None = None,
    spool: Path | None = None,
    *,
    missing: bool = False,
) -> Dataset:
    """Open an .npz archive of `labels`, `groups` and an array of shape `(n, ...)` per input.

    Samples of an input x that differ in shape lie in two arrays: x holds all their values one after
    another, each in C order, and x.shapes their shapes, `(n, axes)`; see `save_ragged`.

    Only labels and groups are read into memory. An uncompressed array, as `np.savez` writes it, is
    read in place; one that is compressed or in Fortran order is copied once to `spool`. Labels of
    several outputs are arrays `labels@OUTPUT`.

    Args:
        path: Path of the archive.
        names: Names of the model's inputs; None or empty where the model doesn't name them, so that
            the arrays' own names are used. A single array in addition to labels and groups may have any
            name if the model has a single input. An input may itself be called "labels" or
            "groups".
        spool: Folder to copy arrays to; by default a temporary one, deleted with the data set.
        missing: Whether NaN stands for a value that isn't there.

    Raises:
        InputError: there is no such file; it is no archive, cut short, damaged or encrypted; its
            arrays aren't the model's inputs; it has no samples; counts differ; labels or groups are
            absurdly large; compressed arrays would unpack to more than 1 GiB and 100 times the archive;
            an array holds Python objects; or the disk is full.
    """
    if not is_there(path):
        raise InputError(f"no such file: {path}")
    owned = Path(tempfile.mkdtemp(prefix="hasten-npz-")) if spool is None else None
    folder = spool or owned
    assert folder is not None
    try:
        dataset = _open(path, names, folder, missing=missing)
    except _DAMAGED as error:
        _remove(owned)
        raise InputError(f"{path} is not an .npz archive, or it is cut short or damaged") from error
    except OSError as error:
        _remove(owned)
        raise InputError(f"can't read {path}: {error.strerror or error}") from error
    except BaseException:
        _remove(owned)
        raise
    if owned is not None:
        weakref.finalize(dataset, _remove, owned)
    return dataset


def _remove(folder: Path | None) -> None:
    """Delete a temporary folder; does nothing for None."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _open(path: Path, names: Sequence[str] | None, spool: Path, *, missing: bool) -> NpzDataset:
    with zipfile.ZipFile(path) as archive:
        _check_unpacked(archive, path)
        members, by_output = _members(archive, names or ())
        reserved = [role for role in RESERVED if role in members and role not in (names or ())]
        own = [name for name in members if name not in reserved]
        shapes = {
            name: members[name + SHAPES]
            for name in own
            if name + SHAPES in members and name + SHAPES not in (names or ())
        }
        others = {name + SHAPES for name in shapes}
        wanted = _match(path, [name for name in own if name not in others], names)
        arrays: dict[str, RawArray | RaggedArray] = {}
        for i, (name, stored) in enumerate(wanted.items()):
            array = _member(archive, members[stored], name, path, spool / f"array{i}.raw")
            told = shapes.get(stored)
            arrays[name] = array if told is None else _ragged(archive, told, array, name)
        counts = {name: len(array) for name, array in arrays.items()}
        count = check_counts(counts, None, None, str(path))
        if not any(array.holds_numbers for array in arrays.values()):
            raise InputError(f"{path}: a sample contains no numbers; give arrays of shape (n, ...)")
        rows = {role: _whole(archive, members[role], role, count) for role in reserved}
        if by_output:
            each = {n: _whole(archive, info, "labels", count) for n, info in by_output.items()}
            rows["labels"] = labels_by_output.joined(each)
    together = group_array(rows["groups"]) if "groups" in rows else None
    return NpzDataset(arrays, rows.get("labels"), together, str(path), missing=missing)


def _check_unpacked(archive: zipfile.ZipFile, path: Path) -> None:
    """Check, before anything is unpacked, that compressed arrays don't claim to be absurdly large."""
    packed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    size_bytes, claimed_bytes = path.stat().st_size, sum(info.file_size for info in packed)
    if claimed_bytes > max(_UNASKED_BYTES, _MOST_TIMES * size_bytes):
        raise InputError(
            f"{path} has {size_bytes:,} bytes and would unpack to {claimed_bytes:,}, more than "
            f"{_MOST_TIMES} times as many: if that is right, save it with np.savez, which "
            "doesn't compress"
        )


def _ragged(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, values: RawArray, name: str
) -> RaggedArray | RawArray:
    """Return the samples of an input whose values lie one after another, by their shapes."""
    with _opened(archive, info) as file:
        shape, fortran, dtype = _header(file, f"{name}{SHAPES}")
        if dtype.kind not in "iu" or len(shape) != 2:
            raise InputError(
                f"{name}{SHAPES} must be whole numbers of shape (n, axes): got {dtype} "
                f"{list(shape)}; see "
                "hasten.save_ragged"
            )
        size_bytes = _size_bytes(file, info, f"{name}{SHAPES}", shape, dtype)
        _check_read(archive, info, f"{name}{SHAPES}", size_bytes)
        data = file.read(size_bytes + 1)
    if len(data) != size_bytes:
        raise zipfile.BadZipFile
    shapes = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    checked_shapes(name, shapes, values.shape)
    return RaggedArray(values.path, values.dtype, shapes.astype(np.int64), values.offset_bytes)


def _match(path: Path, stored: list[str], names: Sequence[str] | None) -> dict[str, str]:
    """Return the name of the stored array for each input, by the input's name."""
    if not names:
        return {name: name for name in stored}
    if len(names) == len(stored) == 1:
        return {names[0]: stored[0]}
    if set(names) != set(stored):
        raise InputError(
            f"the model takes the inputs {', '.join(names)}; {path} has the arrays "
            f"{', '.join(stored) or 'none'} in addition to labels and groups"
        )
    return {name: name for name in names}


def _members(
    archive: zipfile.ZipFile, names: Sequence[str]
) -> tuple[dict[str, zipfile.ZipInfo], dict[str, zipfile.ZipInfo]]:
    """Return the arrays of an archive by name, and apart from them labels by the output's name.

    Raises:
        InputError: a name has characters that a terminal can't show.
    """
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    for name in members:
        if not name.isprintable():
            raise InputError(
                f"{archive.filename}: the name {name!r:.100} of an array has characters that can't be "
                "shown; give it another"
            )
    by_output = {}
    for name in [*members]:
        output = labels_by_output.named_output(name)
        if output is not None and name not in names:
            by_output[output] = members.pop(name)
    return members, by_output


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a stored or deflated member; zipfile has no bound on unpacking other kinds."""
    if info.flag_bits & ENCRYPTED:
        raise InputError(f"{archive.filename} is encrypted; save it with np.savez")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile
    return archive.open(info)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Read an array's header: its shape, whether it is in Fortran order, its dtype."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise InputError(f"{name}: an array of format {version}; save it with np.savez")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        length = file.read(2 if first else 4)
        header = file.read(min(int.from_bytes(length, "little"), ARRAY_HEADER_BYTES))
        shape, fortran, dtype = read(io.BytesIO(length + header))
        if not dtype.itemsize or not is_possible(shape, dtype):
            raise ValueError
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        raise InputError(f"{name} is not an array: save it with np.savez") from error
    if dtype.hasobject:
        raise InputError(f"{name} contains Python objects; save plain arrays of numbers")
    return shape, fortran, dtype


def _size_bytes(
    file: IO[bytes],
    info: zipfile.ZipInfo,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
) -> int:
    """Return the size of an array in bytes, checked against what the archive says of its member."""
    size_bytes, stored_bytes = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
    if size_bytes != stored_bytes:
        raise InputError(f"{name} is damaged: {stored_bytes} bytes for {list(shape)} of {dtype}")
    return size_bytes


def _check_read(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, size_bytes: int
) -> None:
    """Check that an array that is read into memory isn't absurdly large for the archive that it comes from."""
    most_bytes = max(_READ_BYTES, _MOST_TIMES * Path(archive.filename or "").stat().st_size)
    if size_bytes > most_bytes and info.compress_type != zipfile.ZIP_STORED:
        raise InputError(
            f"{name} would unpack to {size_bytes:,} bytes, more than {_MOST_TIMES} times as many as the "
            "archive has: if that is right, save it with np.savez, which doesn't compress"
        )


def _whole(archive: zipfile.ZipFile, info: zipfile.ZipInfo, role: str, count: int) -> Array:
    """Read all labels or groups, of `count` samples, into memory."""
    with _opened(archive, info) as file:
        shape, fortran, dtype = _header(file, role)
        size_bytes = _size_bytes(file, info, role, shape, dtype)
        if size_bytes > count * ROW_BYTES[role]:
            raise InputError(
                f"{role}: {size_bytes} bytes for {count} samples; give at most {ROW_BYTES[role]} "
                "bytes for each, for example in a smaller dtype"
            )
        _check_read(archive, info, role, size_bytes)
        data = file.read(size_bytes + 1)
    if len(data) != size_bytes:
        raise zipfile.BadZipFile
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, path: Path, spool: Path
) -> RawArray:
    """Return an array whose rows can be read, after copying it to `spool` where it must be."""
    with _opened(archive, info) as file:
        shape, fortran, dtype = _header(file, f"input {name!r}")
        header_bytes = file.tell()
        if not holds_numbers(dtype):
            raise InputError(f"input {name!r} is an array of {dtype}; give numbers")
        size_bytes = _size_bytes(file, info, f"input {name!r}", shape, dtype)
        if not shape:
            held = file.read(size_bytes).ljust(size_bytes, b"\0")
            raise InputError(single_number(name, np.frombuffer(held, dtype)))
        if info.compress_type == zipfile.ZIP_STORED and not fortran:
            offset = _data_offset(path, info) + header_bytes
            if offset + size_bytes > path.stat().st_size:
                raise zipfile.BadZipFile
            return RawArray(path, dtype, shape, offset)
        _copy(file, size_bytes, spool)
    if fortran:
        _turn(spool, dtype, shape)
    return RawArray(spool, dtype, shape)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return the offset of a member's bytes, past its local header, whose length varies."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    return info.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes


def _copy(file: IO[bytes], size_bytes: int, spool: Path) -> None:
    """Unpack a member to disk, if there is room for the size that it claims."""
    spool.parent.mkdir(parents=True, exist_ok=True)
    free = free_bytes(spool.parent)
    if size_bytes > free:
        raise InputError(
            f"can't unpack {size_bytes} bytes to {spool.parent}: only {free} are free; "
            "save with np.savez, which doesn't compress, or free some space"
        )
    try:
        with spool.open("wb") as out:
            shutil.copyfileobj(file, out, COPY_BYTES)
    except zipfile.BadZipFile:
        raise
    except OSError as error:
        raise InputError(f"can't write {spool}: {error.strerror or error}") from error


def _turn(spool: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    """Rewrite an array from Fortran order to C order, some rows at a time."""
    turned = spool.with_suffix(".turned")
    rows = max(1, COPY_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    try:
        with turned.open("wb") as out:
            if 0 not in shape:
                whole = np.memmap(spool, dtype, "r", shape=shape, order="F")
                for start in range(0, shape[0], rows):
                    out.write(whole[start : start + rows].tobytes())
        turned.replace(spool)
    except OSError as error:
        raise InputError(f"can't write {turned}: {error.strerror or error}") from error
