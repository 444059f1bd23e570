"""Hashes of large contents by pieces, so that several threads can read and hash them at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PIECE_BYTES = 256 << 10
"""Size of all pieces but the last one: it stays in a core's own cache between reading and hashing."""
_LEAST_PIECES = 4
"""Pieces for each thread from which one more pays."""
_MOST_THREADS = 4


def hash_of(content: bytes | memoryview) -> bytes:
    """Return the hash of bytes: the SHA-256 of the SHA-256s of their pieces, one behind the other."""
    whole = memoryview(content)

    def one(start: int) -> bytes:
        return hashlib.sha256(whole[start : start + PIECE_BYTES]).digest()

    return _joined(len(whole), one)


def hash_of_file(file: int) -> bytes:
    """Return the hash of a file's bytes, as `hash_of` gives it.

    Args:
        file: Descriptor of the file.

    Raises:
        OSError: it can't be read.
    """

    size = os.fstat(file).st_size

    def one(start: int) -> bytes:
        piece = memoryview(bytearray(min(PIECE_BYTES, size - start)))
        return hashlib.sha256(_filled(file, start, piece)).digest()

    return _joined(size, one)


def read_hashed(file: int, start: int, room: memoryview) -> bytes:
    """Fill memory from a file; return the hash of what was read, as `hash_of` gives it.

    Args:
        file: Descriptor of the file.
        start: Byte of the file from which on it is read.
        room: Memory. If the file ends before, the hash is another one than that of all its bytes.

    Raises:
        OSError: it can't be read.
    """

    def one(begin: int) -> bytes:
        piece = room[begin : begin + PIECE_BYTES]
        return hashlib.sha256(_filled(file, start + begin, piece)).digest()

    return _joined(len(room), one)


def _filled(file: int, start: int, piece: memoryview) -> memoryview:
    """Fill memory from a file; return the part of it for which the file had bytes."""
    size = 0
    while size < len(piece) and (read := os.preadv(file, [piece[size:]], start + size)):
        size += read
    return piece[:size]


def _joined(size: int, one: Callable[[int], bytes]) -> bytes:
    """Return the SHA-256 of the hashes of pieces, which a function makes of where they start."""
    starts = range(0, size, PIECE_BYTES)
    hashes = [b""] * len(starts)
    threads = min(_MOST_THREADS, len(starts) // _LEAST_PIECES, len(os.sched_getaffinity(0)))

    def some(first: int) -> None:
        for number in range(first, len(starts), max(1, threads)):
            hashes[number] = one(starts[number])

    if threads < 2:
        some(0)
    else:
        with ThreadPoolExecutor(threads - 1, "hasten-hash") as others:
            begun = []
            for first in range(1, threads):
                try:
                    begun.append(others.submit(some, first))
                except RuntimeError:  # the system has no more threads for this process
                    some(first)
            some(0)
            for each in begun:
                each.result()
    return hashlib.sha256(b"".join(hashes)).digest()
