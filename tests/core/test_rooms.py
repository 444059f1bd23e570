"""Rooms that several threads fill in any order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.bundle.packing import reader
from hasten.core.rooms import FileRoom, HashedRoom


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


@given(
    st.lists(st.integers(0, 300_000), max_size=6).flatmap(
        lambda sizes: st.permutations(list(enumerate(sizes)))
    )
)
def test_bytes_are_hashed_whatever_order_they_come_in(pieces: list[tuple[int, int]]) -> None:
    begins = np.cumsum([0, *(size for _, size in sorted(pieces))])
    data = np.random.default_rng(0).integers(0, 256, begins[-1], np.uint8)
    with tempfile.TemporaryFile() as file:
        room = HashedRoom(file.fileno(), len(data))
        goal = reader._File("file", room)
        for number, size in pieces:
            begin = int(begins[number])
            goal.put(begin, data[begin : begin + size])
            goal.reached(begin, size)
        assert room.sha256() == hashlib.sha256(data.tobytes()).hexdigest()
        np.testing.assert_array_equal(room.get(0, len(data)), data)


def test_a_room_takes_all_bytes_where_the_system_writes_some_at_a_time(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda at, data, offset: real(at, data[:7], offset))
    data = np.arange(100, dtype=np.uint8)
    room = FileRoom(descriptor, 100)
    room.put(0, data)
    np.testing.assert_array_equal(room.get(0, 100), data)


def test_a_file_that_is_cut_off_meanwhile_is_an_error(descriptor: int) -> None:
    room = FileRoom(descriptor, 100, reserved=True)
    os.truncate(descriptor, 50)
    with pytest.raises(OSError, match="cut off"):
        room.get(0, 100)


def test_rooms_of_many_files_keep_no_memory_for_their_hashes() -> None:
    data = np.ones(1 << 20, np.uint8)
    expected = hashlib.sha256(data.tobytes()).hexdigest()
    with contextlib.ExitStack() as closing:
        files = [closing.enter_context(tempfile.TemporaryFile()) for _ in range(40)]
        tracemalloc.start()
        closing.callback(tracemalloc.stop)
        rooms = [HashedRoom(file.fileno(), len(data)) for file in files]
        for room in rooms:
            room.put(0, data)
            room.reached(len(data))
        assert {room.sha256() for room in rooms} == {expected}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
