"""An .npz archive, read sample by sample."""

from __future__ import annotations

import io
import math
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.raw import RawArray
from hasten.inputs.data.samples import (
    RESERVED,
    check_counts,
    check_finite,
    holds_numbers,
    tensors_hash,
)

LOCAL_HEADER_BYTES = 30  # APPNOTE.TXT 4.3.7: name and extra field follow it.
ENCRYPTED = 1  # APPNOTE.TXT 4.4.4: bit 0 of the flags.
COPY_BYTES = 2**20
ARRAY_HEADER_BYTES = 10_000
"""As numpy's own limit, which it applies only after reading."""
ROW_BYTES = {"labels": 2**20, "groups": 2**12}
"""What one sample may hold of each, as all of it is in memory: a mask of a megapixel, a long name."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError)


class NpzDataset(Dataset):
    """Arrays of an archive that stay on disk. Made by `open_npz`."""

    def __init__(
        self, arrays: dict[str, RawArray], labels: Array | None, groups: Array | None, source: str
    ) -> None:
        """Check that the counts agree.

        Raises:
            InputError: no samples, or counts that differ.
        """
        self._arrays = arrays
        self.names = tuple(arrays)
        self.labels, self.groups = labels, groups
        counts = {name: len(array) for name, array in arrays.items()}
        self._count = check_counts(counts, labels, groups, source)

    def __len__(self) -> int:
        return self._count

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        read = {name: array.rows(indices) for name, array in self._arrays.items()}
        for name, samples in read.items():
            check_finite(name, samples, indices)
        return read

    def content_hash(self, index: int) -> bytes:
        return tensors_hash({name: rows[0] for name, rows in self.inputs([index]).items()})


def open_npz(path: Path, names: Sequence[str] | None = None, spool: Path | None = None) -> Dataset:
    """Open an .npz archive: an array of shape `(n, ...)` per input, `labels`, `groups`.

    Only labels and groups are read into memory. An array that is stored as it is, as `np.savez`
    does, is read where it lies; one that is compressed, or in Fortran order, is copied once to
    `spool`.

    Args:
        path: The archive.
        names: The model's inputs. Where there is one, and one array beside labels and groups,
            their names needn't match. An input may itself be called "labels" or "groups".
            None or empty where the model doesn't say: then the arrays' own names count.
        spool: Where to copy to; by default a temporary folder that goes with the data set.

    Raises:
        InputError: no such file, no archive, cut short, damaged or encrypted, other arrays than
            the model's inputs, no samples, counts that differ, labels or groups of absurd size,
            arrays of Python objects, or a full disk.
    """
    if not path.exists():
        raise InputError(f"no such file: {path}")
    owned = Path(tempfile.mkdtemp(prefix="hasten-npz-")) if spool is None else None
    folder = spool or owned
    assert folder is not None
    try:
        dataset = _open(path, names, folder)
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
    """Delete a temporary folder, if there is one."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _open(path: Path, names: Sequence[str] | None, spool: Path) -> NpzDataset:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        reserved = [role for role in RESERVED if role in members and role not in (names or ())]
        wanted = _match(path, [name for name in members if name not in reserved], names)
        arrays = {
            name: _member(archive, members[stored], name, path, spool / f"array{i}.raw")
            for i, (name, stored) in enumerate(wanted.items())
        }
        counts = {name: len(array) for name, array in arrays.items()}
        count = check_counts(counts, None, None, str(path))
        if not any(array.row_bytes for array in arrays.values()):
            raise InputError(f"{path}: a sample holds no numbers; give arrays of shape (n, ...)")
        rows = {role: _whole(archive, members[role], role, count) for role in reserved}
    return NpzDataset(arrays, rows.get("labels"), rows.get("groups"), str(path))


def _match(path: Path, stored: list[str], names: Sequence[str] | None) -> dict[str, str]:
    """Return which array is which input: the input's name -> the array's."""
    if not names:
        return {name: name for name in stored}
    if len(names) == len(stored) == 1:
        return {names[0]: stored[0]}
    if set(names) != set(stored):
        raise InputError(
            f"the model takes the inputs {', '.join(names)}; {path} has the arrays "
            f"{', '.join(stored) or 'none'} beside labels and groups"
        )
    return {name: name for name in names}


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member that is stored or deflated; zipfile unpacks other kinds without a bound."""
    if info.flag_bits & ENCRYPTED:
        raise InputError(f"{archive.filename} is encrypted; save it with np.savez")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile
    return archive.open(info)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Read what stands before an array's bytes: its shape, whether in Fortran order, its dtype."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise InputError(f"{name}: an array of format {version}; save it with np.savez")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        length = file.read(2 if first else 4)
        header = file.read(min(int.from_bytes(length, "little"), ARRAY_HEADER_BYTES))
        shape, fortran, dtype = read(io.BytesIO(length + header))
        if any(side < 0 for side in shape) or not dtype.itemsize:
            raise ValueError
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        raise InputError(f"{name} is not an array: save it with np.savez") from error
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects; save plain arrays of numbers")
    return shape, fortran, dtype


def _size_bytes(
    file: IO[bytes],
    info: zipfile.ZipInfo,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
) -> int:
    """Return the size of an array whose header was read; it is what the archive says of it."""
    size_bytes, stored_bytes = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
    if size_bytes != stored_bytes:
        raise InputError(f"{name} is damaged: {stored_bytes} bytes for {list(shape)} of {dtype}")
    return size_bytes


def _whole(archive: zipfile.ZipFile, info: zipfile.ZipInfo, role: str, count: int) -> Array:
    """Read the labels or groups of so many samples whole."""
    with _opened(archive, info) as file:
        shape, fortran, dtype = _header(file, role)
        size_bytes = _size_bytes(file, info, role, shape, dtype)
        if size_bytes > count * ROW_BYTES[role]:
            raise InputError(
                f"{role}: {size_bytes} bytes for {count} samples; give at most {ROW_BYTES[role]} "
                "bytes for each, as in a smaller dtype"
            )
        data = file.read(size_bytes + 1)
    if len(data) != size_bytes:
        raise zipfile.BadZipFile
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, path: Path, spool: Path
) -> RawArray:
    """Return where an array's rows can be read."""
    with _opened(archive, info) as file:
        shape, fortran, dtype = _header(file, f"input {name!r}")
        header_bytes = file.tell()
        if not holds_numbers(dtype):
            raise InputError(f"input {name!r} is an array of {dtype}; give numbers")
        if not shape:
            raise InputError(f"input {name!r} is a single number; give an array of samples")
        size_bytes = _size_bytes(file, info, f"input {name!r}", shape, dtype)
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
    """Return where a member's bytes begin: its local header may be longer than the central one."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    return info.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes


def _copy(file: IO[bytes], size_bytes: int, spool: Path) -> None:
    """Unpack a member to disk, where there is room for what it claims to hold."""
    spool.parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(spool.parent).free
    if size_bytes > free_bytes:
        raise InputError(
            f"can't unpack {size_bytes} bytes to {spool.parent}: {free_bytes} are free; "
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
    """Rewrite an array from Fortran order to C order, row by row."""
    turned = spool.with_suffix(".turned")
    try:
        with turned.open("wb") as out:
            if 0 not in shape:
                for row in np.memmap(spool, dtype, "r", shape=shape, order="F"):
                    out.write(np.ascontiguousarray(row).tobytes())
        turned.replace(spool)
    except OSError as error:
        raise InputError(f"can't write {turned}: {error.strerror or error}") from error
