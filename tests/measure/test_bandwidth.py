"""Caches as the system describes them, and bytes as they are counted."""

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.measure import bandwidth
from hasten.measure.bandwidth import (
    Bandwidth,
    CacheLevel,
    Level,
    bytes_per_s,
    caches,
    copy_of,
    read_of,
    room_of,
    sum_of,
)


@pytest.fixture
def target() -> Target:
    """Four processors, two to a core, of which four threads may run."""
    return dataclasses.replace(Target.host(), cpus=(0, 1, 2, 3), threads=4)


def describe(system: Path, cpu: int, *described: tuple[str, str, str, str]) -> None:
    for i, facts in enumerate(described):
        folder = system / f"cpu{cpu}" / "cache" / f"index{i}"
        folder.mkdir(parents=True)
        for name, text in zip(("level", "type", "size", "shared_cpu_list"), facts, strict=True):
            (folder / name).write_text(text + "\n")


@pytest.fixture
def system(tmp_path: Path) -> Path:
    for cpu, core in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        describe(
            tmp_path,
            cpu,
            ("1", "Data", "32K", core),
            ("1", "Instruction", "64K", core),
            ("2", "Unified", "512K", core),
            ("3", "Unified", "16M", "0-3"),
        )
    return tmp_path


def test_caches_are_counted_once_for_all_that_share_them(target: Target, system: Path) -> None:
    found = caches(target, system)
    assert found == (
        CacheLevel("L1", 32 << 10, 2),
        CacheLevel("L2", 512 << 10, 2),
        CacheLevel("L3", 16 << 20, 1),
    )
    assert [cache.total_bytes for cache in found] == [64 << 10, 1 << 20, 16 << 20]


def test_one_thread_fills_the_caches_of_one_core(target: Target, system: Path) -> None:
    assert [cache.instances for cache in caches(target.with_threads(1), system)] == [1, 1, 1]


@pytest.mark.parametrize("size", ["", "-1K", "many", "K"])
def test_a_cache_whose_size_cannot_be_read_is_left_out(
    target: Target, tmp_path: Path, size: str
) -> None:
    describe(tmp_path, 0, ("1", "Data", "32768", "0"), ("2", "Unified", size, "0"))
    assert caches(target, tmp_path) == (CacheLevel("L1", 32768, 1),)


def test_every_level_has_a_rate_and_memory_no_size(
    target: Target, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "_BLOCK_NS", 0)
    found = Bandwidth(dataclasses.replace(target, memory_bytes=1 << 28), system).turn()
    assert [(one.name, one.size_bytes) for one in found] == [
        ("L1", 64 << 10),
        ("L2", 1 << 20),
        ("L3", 16 << 20),
        ("memory", None),
    ]
    assert all(one.copied_bytes_per_s > 0 and one.read_bytes_per_s > 0 for one in found)


def test_where_caches_are_not_described_one_without_an_end_stands_for_all(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "_BLOCK_NS", 0)
    found = Bandwidth(dataclasses.replace(target, memory_bytes=1 << 28), tmp_path).turn()
    assert [(one.name, one.size_bytes) for one in found] == [("cache", None), ("memory", None)]


def ones(set_bytes: int) -> Array:
    return np.ones(room_of(set_bytes), np.int32)


@pytest.mark.parametrize("set_bytes", [1 << 12, 1 << 20, 1 << 27])
def test_a_copy_counts_what_it_reads_and_what_it_writes(set_bytes: int) -> None:
    call, moved_bytes = copy_of(set_bytes, ones(set_bytes))
    to, source = call.args  # type: ignore[attr-defined]
    source[:] = 7
    call()
    assert np.all(to == 7)
    assert not np.shares_memory(to, source)
    assert moved_bytes == to.nbytes + source.nbytes
    assert moved_bytes >= bandwidth._CALL_BYTES


def test_an_addition_moves_as_much_as_a_copy() -> None:
    call, moved_bytes = sum_of(1 << 16, ones(1 << 16))
    (source, _), to = call.args, call.keywords["out"]  # type: ignore[attr-defined]
    call()
    assert np.all(to == 2)
    assert moved_bytes == to.nbytes + source.nbytes == copy_of(1 << 16, ones(1 << 16))[1]


def test_a_read_looks_at_every_value() -> None:
    call, moved_bytes = read_of(1 << 16, ones(1 << 16))
    (source,) = call.args  # type: ignore[attr-defined]
    source[-1, -1] = 9
    call()
    largest = call.keywords["out"]  # type: ignore[attr-defined]
    assert largest.max() == largest[-1] == 9
    assert moved_bytes == source.nbytes


def test_the_bytes_of_all_threads_count_in_the_time_of_the_slowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = []
    rate = bytes_per_s([(lambda: done.append(1), 1000)], block_ns=0)
    assert rate > 0
    assert len(done) == 3  # one to warm up, one to see how many fit, one timed
    looks = itertools.count()
    monkeypatch.setattr(bandwidth, "time", SimpleNamespace(perf_counter_ns=lambda: next(looks)))
    # From the first of three beginnings to the last of three ends are five looks at the clock.
    assert bytes_per_s([(lambda: None, 10)] * 3, block_ns=0) == 3 * 10 * 1e9 / 5


def test_the_best_of_two_turns_is_kept_by_kind() -> None:
    one, other = Level("L2", 5, 10.0, 40.0), Level("L2", 5, 30.0, 20.0)
    assert one.better(other) == Level("L2", 5, 30.0, 40.0)
    assert one.better(other).bytes_per_s == 40.0
