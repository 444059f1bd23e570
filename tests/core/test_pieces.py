"""Hashes by pieces: one for one content, however it is read, on however many threads."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.core.pieces import PIECE_BYTES, hash_of, hash_of_file, read_hashed

SIZES = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 9 * PIECE_BYTES, 13 * PIECE_BYTES + 7]


def hashes(data: bytes, path: Path) -> set[bytes]:
    """Return the hashes that each way of reading finds."""
    path.write_bytes(b"before" + data)
    room = bytearray(len(data))
    with path.open("rb") as file:
        found = {hash_of(data), read_hashed(file.fileno(), 6, memoryview(room))}
    assert room == data
    path.write_bytes(data)
    with path.open("rb") as file:
        return found | {hash_of_file(file.fileno())}


def none_starts(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "sched_getaffinity", lambda _: {0})


def refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    patch.setattr(threading.Thread, "start", none_starts)


def many(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.mark.parametrize("size", SIZES)
def test_each_way_of_reading_and_each_number_of_threads_gives_one_hash(
    size: int, tmp_path: Path
) -> None:
    data, found = os.urandom(size), set[bytes]()
    ways: list[Callable[[pytest.MonkeyPatch], None]] = [alone, refused, many]
    for way in ways:
        with pytest.MonkeyPatch.context() as patch:
            way(patch)
            found |= hashes(data, tmp_path / "file")
    assert len(found) == 1


def test_each_byte_each_place_and_the_length_count() -> None:
    data = bytearray(os.urandom(9 * PIECE_BYTES))
    found = {hash_of(bytes(data)), hash_of(bytes(data[:-1])), hash_of(bytes(data) + b"\0")}
    for place in range(0, len(data), PIECE_BYTES):
        changed = data.copy()
        changed[place + PIECE_BYTES - 1] ^= 1
        found.add(hash_of(bytes(changed)))
    found.add(
        hash_of(
            bytes(
                data[PIECE_BYTES : 2 * PIECE_BYTES] + data[:PIECE_BYTES] + data[2 * PIECE_BYTES :]
            )
        )
    )
    assert len(found) == 3 + 9 + 1


def test_a_file_that_ends_early_has_another_hash(tmp_path: Path) -> None:
    data = os.urandom(9 * PIECE_BYTES)
    (tmp_path / "file").write_bytes(data[: -PIECE_BYTES - 5])
    with (tmp_path / "file").open("rb") as file:
        found = read_hashed(file.fileno(), 0, memoryview(bytearray(len(data))))
    assert found not in (hash_of(data), hash_of(data[: -PIECE_BYTES - 5]))
