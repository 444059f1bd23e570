"""The cache folder: what it keeps, what it never reads, and what it survives."""

import hashlib
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.cache_log import untold
from tests.support.waiting import until

from hasten.core.cache_folder import FORMAT, LIMIT_BYTES, CacheFolder, bulk_name, cache_folder
from hasten.errors import InputError

KEY, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64
NOBODY = 65534
HEAD_BYTES = 80


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> None:
    untold(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> CacheFolder:
    return CacheFolder(tmp_path / "cache")


def content(cache: CacheFolder, key: str = KEY) -> bytes | None:
    with cache.entry(key) as entry:
        return None if entry is None else entry.content


def content_in_own_memory(cache: CacheFolder, key: str = KEY) -> bytes | None:
    rooms = []

    def room(size: int) -> memoryview:
        rooms.append(bytearray(size))
        return memoryview(rooms[0])

    with cache.entry(key, room) as entry:
        assert entry is None or entry.content == b""
        return None if entry is None else bytes(rooms[0])


def with_bulk(cache: CacheFolder, folder: Path, data: bytes, key: str = KEY) -> bool:
    file = folder / bulk_name(key)
    file.write_bytes(data)
    return cache.put(key, b"graph", file)


def bulk(cache: CacheFolder, key: str = KEY) -> bytes | None:
    with cache.entry(key) as entry:
        return None if entry is None or entry.bulk is None else entry.bulk.read_bytes()


def in_child(check: Callable[[], bool], *, user: int | None = None) -> bool:
    """Run a check in a forked process, as another user if this one is root."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            if user is not None and os.geteuid() == 0:
                os.setuid(user)
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_was_kept_comes_back(cache: CacheFolder) -> None:
    assert content(cache) is None
    assert cache.put(KEY, b"compiled")
    assert cache.put(OTHER, b"")
    assert (content(cache), content(cache, OTHER)) == (b"compiled", b"")
    assert content_in_own_memory(cache) == b"compiled"
    assert content_in_own_memory(cache, OTHER) == b""
    assert cache.put(KEY, b"again")
    assert content(cache) == b"again"
    cache.drop(KEY)
    assert content(cache) is None


def test_a_file_is_kept_with_an_entry_and_the_older_one_goes(
    cache: CacheFolder, tmp_path: Path
) -> None:
    assert with_bulk(cache, tmp_path, b"weights" * 1000)
    assert bulk(cache) == b"weights" * 1000
    assert with_bulk(cache, tmp_path, b"newer")
    assert bulk(cache) == b"newer"
    assert len(list(cache.path.iterdir())) == 2


def test_a_held_file_can_be_read_though_another_process_replaces_it(
    cache: CacheFolder, tmp_path: Path
) -> None:
    with_bulk(cache, tmp_path, b"first")
    with cache.entry(KEY) as entry:
        assert entry is not None
        assert entry.bulk is not None
        with entry.bulk.open("rb") as file:
            with_bulk(cache, tmp_path, b"other")
            assert file.read() == b"first"
        assert not entry.bulk.exists()


def test_the_folder_and_its_files_are_the_users_alone(cache: CacheFolder) -> None:
    cache.put(KEY, b"x")
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((cache.path / KEY).stat().st_mode) == 0o600


def test_what_was_not_used_for_the_longest_goes_first(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", limit_bytes=2 * (HEAD_BYTES + 100))
    for age, key in enumerate((KEY, OTHER)):
        cache.put(key, bytes(100))
        os.utime(cache.path / key, (1000 + age, 1000 + age))
    assert content(cache) == bytes(100)  # now OTHER wasn't used for longer
    cache.put(THIRD, bytes(100))
    assert [key for key in (KEY, OTHER, THIRD) if content(cache, key)] == [KEY, THIRD]


def test_what_exceeds_the_limit_is_not_kept_and_drops_nothing(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", limit_bytes=1000)
    cache.put(KEY, bytes(10))
    assert not cache.put(OTHER, bytes(1000))
    assert not with_bulk(cache, tmp_path, bytes(1000), OTHER)
    assert content(cache) == bytes(10)


def test_files_that_are_not_the_caches_stay(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", limit_bytes=200)
    cache.path.mkdir(mode=0o700)
    (cache.path / "letter.txt").write_bytes(bytes(1000))
    for key in (KEY, OTHER, THIRD):
        assert cache.put(key, bytes(100))
    assert sorted(file.name for file in cache.path.iterdir()) == [THIRD, "letter.txt"]


# -- what is never read


@pytest.mark.parametrize("read", [content, content_in_own_memory])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40], lambda b: b + b"x"]
)
def test_a_damaged_entry_is_dropped_and_can_be_kept_again(
    damage: Callable[[bytes], bytes],
    read: Callable[[CacheFolder], bytes | None],
    cache: CacheFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.put(KEY, b"compiled")
    file = cache.path / KEY
    file.write_bytes(damage(file.read_bytes()))
    assert read(cache) is None
    assert not file.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"the cache {cache.path} is not used: an entry was damaged, and is dropped; models open without it"
    ]
    assert cache.put(KEY, b"compiled")
    assert content(cache) == b"compiled"


@pytest.mark.parametrize("place", range(0, HEAD_BYTES + 8, 7))
def test_no_bit_of_an_entry_can_change(place: int, cache: CacheFolder) -> None:
    cache.put(KEY, b"compiled")
    data = bytearray((cache.path / KEY).read_bytes())
    data[place] ^= 1
    (cache.path / KEY).write_bytes(data)
    assert content_in_own_memory(cache) is None  # which drops it
    (cache.path / KEY).write_bytes(data)
    assert content(cache) is None


def test_no_part_of_a_large_entry_can_change(cache: CacheFolder) -> None:
    data = os.urandom(3_000_000)
    cache.put(KEY, data)
    assert content(cache) == content_in_own_memory(cache) == data
    kept = (cache.path / KEY).read_bytes()
    for place in range(HEAD_BYTES, len(kept), 99_991):
        changed = bytearray(kept)
        changed[place] ^= 1
        for read in (content, content_in_own_memory):
            (cache.path / KEY).write_bytes(changed)
            assert read(cache) is None


def test_a_file_that_was_changed_or_lost_is_never_handed_out(
    cache: CacheFolder, tmp_path: Path
) -> None:
    with_bulk(cache, tmp_path, b"weights")
    (file,) = cache.path.glob(f"{KEY}.*")
    file.write_bytes(b"weighty")
    assert bulk(cache) is None
    with_bulk(cache, tmp_path, b"weights")
    (file,) = cache.path.glob(f"{KEY}.*")
    file.unlink()
    assert content(cache) is None


def test_an_entry_under_another_name_is_damaged(cache: CacheFolder) -> None:
    cache.put(KEY, b"compiled")
    (cache.path / KEY).rename(cache.path / OTHER)
    assert content(cache, OTHER) is None


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(
    mode: int, cache: CacheFolder, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, b"compiled")
    cache.path.chmod(mode)
    for _ in range(2):
        assert content(cache) is None
        assert not cache.put(OTHER, b"x")
    assert [record.getMessage() for record in caplog.records] == [
        f"the cache {cache.path} is not used: it can be written by others; models open without it"
    ]
    cache.path.chmod(0o700)
    assert content(cache) == b"compiled"


def test_a_folder_of_another_user_is_not_used(
    cache: CacheFolder, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, b"compiled")
    if os.geteuid() == 0:
        os.chown(cache.path, NOBODY, NOBODY)
        theirs = cache
    else:
        theirs = CacheFolder(Path("/usr"))
    assert content(theirs) is None
    assert not theirs.put(OTHER, b"x")
    if os.geteuid() == 0:
        assert "it belongs to another user" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_entry_of_another_user_is_not_read(cache: CacheFolder) -> None:
    cache.put(KEY, b"compiled")
    os.chown(cache.path / KEY, NOBODY, NOBODY)
    assert content(cache) is None


def test_an_entry_that_others_can_write_to_is_not_read(cache: CacheFolder) -> None:
    cache.put(KEY, b"compiled")
    (cache.path / KEY).chmod(0o666)
    assert content(cache) is None


def test_a_link_a_pipe_or_a_folder_is_no_entry(cache: CacheFolder, tmp_path: Path) -> None:
    cache.put(KEY, b"compiled")
    (cache.path / KEY).rename(tmp_path / "elsewhere")
    (cache.path / KEY).symlink_to(tmp_path / "elsewhere")
    os.mkfifo(cache.path / OTHER, 0o600)
    (cache.path / THIRD).mkdir(0o700)
    assert [content(cache, key) for key in (KEY, OTHER, THIRD)] == [None, None, None]


def test_an_entry_larger_than_the_limit_takes_no_memory(cache: CacheFolder) -> None:
    cache.put(KEY, bytes(10_000))
    assert content(CacheFolder(cache.path, limit_bytes=5_000)) is None


# -- what it survives


@pytest.mark.parametrize("read", [content, content_in_own_memory])
def test_an_entry_for_which_there_is_no_memory_is_not_read(
    read: Callable[[CacheFolder], bytes | None],
    cache: CacheFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.put(KEY, b"compiled")
    os.truncate(cache.path / KEY, LIMIT_BYTES)  # sparse: it takes no room on the disk

    def check() -> bool:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
        return read(cache) is None and [record.getMessage() for record in caplog.records] == [
            f"the cache {cache.path} is not used: there is no memory for an entry; models open without it"
        ]

    assert in_child(check)


def test_a_folder_that_cannot_be_made_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "cache", tmp_path / "file", Path("/proc/hasten")):
        cache = CacheFolder(path)
        assert not cache.put(KEY, b"x")
        assert content(cache) is None
    assert len(caplog.records) == 3


def test_a_folder_that_can_only_be_read_still_serves() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to another user
        Path(place).chmod(0o755)
        cache = CacheFolder(Path(place, "cache"))
        cache.put(KEY, b"compiled")
        if os.geteuid() == 0:
            os.chown(cache.path, NOBODY, NOBODY)
            os.chown(cache.path / KEY, NOBODY, NOBODY)
        cache.path.chmod(0o500)

        def check() -> bool:
            logging.disable()
            return content(cache) == b"compiled" and not cache.put(OTHER, b"x")

        assert in_child(check, user=NOBODY)
        cache.path.chmod(0o700)


def test_a_full_disk_leaves_nothing_behind(cache: CacheFolder, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails at the same place."""
    cache.put(KEY, b"compiled")

    def check() -> bool:
        logging.disable()
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return not cache.put(OTHER, bytes(10_000)) and content(cache) == b"compiled"

    assert in_child(check)
    assert [file.name for file in cache.path.iterdir()] == [KEY]


def test_what_a_killed_process_left_is_removed_later(cache: CacheFolder) -> None:
    cache.put(KEY, b"compiled")
    old, young = (cache.path / f".{OTHER}.{digit * 16}" for digit in "12")
    for file in (old, young):
        file.write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    assert content(cache, OTHER) is None
    cache.put(THIRD, b"x")
    assert not old.exists()
    assert young.exists()


def test_what_is_being_written_stays_however_old_it_seems(
    cache: CacheFolder, tmp_path: Path
) -> None:
    """The clock may jump ahead while another process writes."""
    pipe = tmp_path / bulk_name(OTHER)
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        kept = threads.submit(cache.put, OTHER, b"graph", pipe)
        with pipe.open("wb"):
            until(lambda: cache.path.exists() and any(cache.path.iterdir()))
            (unfinished,) = cache.path.iterdir()
            os.utime(unfinished, (0, 0))
            cache.put(THIRD, b"x")
            assert unfinished.exists()
        assert kept.result()
    assert content(cache, OTHER) == b"graph"


_WRITER = """
import sys
from pathlib import Path
from hasten.core.cache_folder import CacheFolder
cache = CacheFolder(Path(sys.argv[1]), limit_bytes=3_000_000)
print("ready", flush=True)
for n in range(int(sys.argv[2])):
    key = "abc"[n % 3] * 64
    cache.put(key, key.encode() * 15_000)
    with cache.entry(key) as entry:
        assert entry is None or entry.content == key.encode() * 15_000, "foreign content"
"""


def test_a_process_killed_while_it_writes_leaves_whole_entries_or_none(cache: CacheFolder) -> None:
    for _ in range(3):
        words = [sys.executable, "-c", _WRITER, str(cache.path), "1000000"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while content(cache, THIRD) is None:
                pass
            writer.kill()
        for key in (KEY, OTHER, THIRD):
            assert content(cache, key) in (None, key.encode() * 15_000)
    assert cache.put(KEY, b"compiled")
    assert content(cache) == b"compiled"


def test_processes_share_a_folder_that_is_too_small_for_all(cache: CacheFolder) -> None:
    words = [sys.executable, "-c", _WRITER, str(cache.path), "60"]
    writers = [
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(4)
    ]
    said = [writer.communicate()[1] for writer in writers]
    assert said == [b""] * 4
    assert not list(cache.path.glob(".*"))


# -- which folder


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HASTEN_CACHE", "HASTEN_CACHE_BYTES", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    return monkeypatch


def test_the_folder_is_where_the_desktop_standard_says(variables: pytest.MonkeyPatch) -> None:
    assert cache_folder() == CacheFolder(Path("/home/someone/.cache/hasten"), LIMIT_BYTES)
    variables.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_folder() == CacheFolder(Path("/home/someone/.cache/hasten"))
    variables.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert cache_folder(True) == CacheFolder(Path("/var/cache/someone/hasten"))


def test_the_environment_names_another_folder_a_limit_or_none(
    variables: pytest.MonkeyPatch,
) -> None:
    variables.setenv("HASTEN_CACHE", "/srv/models")
    variables.setenv("HASTEN_CACHE_BYTES", "1000")
    assert cache_folder() == CacheFolder(Path("/srv/models"), 1000)
    variables.setenv("HASTEN_CACHE", "off")
    assert cache_folder() is None


def test_an_argument_overrules_the_environment(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables.setenv("HASTEN_CACHE", "off")
    assert cache_folder(tmp_path) == CacheFolder(tmp_path)
    variables.setenv("HASTEN_CACHE", "/srv/models")
    assert cache_folder(False) is None
    assert cache_folder("off") is None


def test_a_limit_that_is_no_number_is_one_line(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("HASTEN_CACHE_BYTES", "2GiB")
    with pytest.raises(InputError) as error:
        cache_folder()
    assert str(error.value) == "HASTEN_CACHE_BYTES must be a whole number of bytes: got '2GiB'"


def test_entries_are_written_in_the_form_that_their_keys_name(cache: CacheFolder) -> None:
    """Raise `FORMAT` where this changes: otherwise newer versions would take what was kept before for damaged."""
    cache.put(KEY, b"compiled")
    assert (FORMAT, hashlib.sha256((cache.path / KEY).read_bytes()).hexdigest()) == (
        2,
        "06b3627e6cbe6547f4e521e1dbe6a9a47ad5f75a765fffaa9b0fe10de22059c6",
    )
