"""Packed files that are damaged, or made to do harm: one clear line, and nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import models as small_models
from tests.support import packed_files
from tests.support.bundles import built, forge, stated
from tests.support.packed_files import (
    START,
    Parts,
    changed,
    quickly,
    read_all,
    with_frame,
    with_head,
)
from tests.support.waiting import until

import hasten
from hasten.bundle import unpacked, write
from hasten.bundle.packing.blocks import Codecs, all_codecs
from hasten.bundle.packing.codecs import zstandard
from hasten.bundle.packing.codecs.zstandard import compressed
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.source import FileSource, MemorySource
from hasten.bundle.packing.writer import pack
from hasten.core.rooms import ArrayRoom
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError, IntegrityError
from hasten.testing import models

NAME = "the packed bundle in memory"
X = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def packed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed bundle that loads."""
    folder = tmp_path_factory.mktemp("bundle")
    part = built(folder, models.linear_classifier(folder), OnnxRuntime(threads=1))
    write(folder / "model.hasten", stated(part, part), {}, {"report.html": b"<p>"}, [{"x": X}])
    return pack(folder / "model.hasten", folder / "model.hastenz").path


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a file open, or a temporary folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = packed_files.open_files()
    yield
    gc.collect()
    # Another thread may be compiling the decoders meanwhile.
    until(lambda: packed_files.open_files() <= before, patience_s=30)
    assert list(temporary.iterdir()) == []


def refused(source: bytes | FileSource, kind: type[InputError] = IntegrityError) -> str:
    """Return the one line by which a packed file is refused."""
    with pytest.raises(kind) as error:
        read_all(source)
    assert type(error.value) is kind
    said = str(error.value)
    assert said.isprintable()
    assert len(said) < 500
    return said


# -- bytes that were lost, changed, or mixed


def test_the_undamaged_file_has_all_that_was_packed(data: bytes) -> None:
    assert read_all(data) == packed_files.unpacked_files()
    used = {chunk[0] for chunks in Parts.of(data).chunks for chunk in chunks}
    assert len(used) == len(Parts.of(data).record["codecs"])


def test_a_file_that_is_cut_off_anywhere_is_refused(data: bytes, tmp_path: Path) -> None:
    parts = Parts.of(data)
    places, place = [0, 1, 8, 12, START - 1, START, START + 1], len(data) - 32
    for chunks in reversed(parts.chunks):
        for chunk in reversed(chunks):
            place -= len(chunk)
            places += [place, place + 1]
    for cut in (*places, len(data) - 32, len(data) - 1):
        said = refused(data[:cut])
        assert said.startswith(f"{NAME}: it ")
        assert said.endswith(("; get the file again", "its first bytes aren't those of one"))
    file = tmp_path / "cut.hastenz"
    file.write_bytes(data[:-1])
    said = f"{file}: it has {len(data) - 1:,} bytes, but {len(data):,} were written: "
    assert refused(FileSource(file)) == f"{said}its end is cut off; get the file again"
    within = _start_of(data, "pruned", 1) + 3
    assert refused(data[:within]).endswith(
        "it is cut off within the tensor 'pruned' in model.bin; get the file again"
    )
    assert refused(data + b"\0").endswith(
        "were written: more data follows its end; get the file again"
    )


def test_a_flipped_bit_is_found_and_its_tensor_named(data: bytes) -> None:
    rng = random.Random(1)
    parts = Parts.of(data)
    place = len(data) - 32 - sum(len(c) for chunks in parts.chunks for c in chunks)
    for here in rng.sample(range(place), 150):
        said = refused(_flipped(data, here, rng))
        todo = ("; get the file again", "; upgrade hasten", "its first bytes aren't those of one")
        assert said.endswith(todo)
    for name, chunks in zip(parts.record["items"]["name"], parts.chunks, strict=True):
        for number, chunk in enumerate(chunks):
            here = _start_of(data, name, number) + rng.randrange(len(chunk))
            assert refused(_flipped(data, here, rng)) == (
                f"{NAME}: the tensor {name!r} in model.bin is damaged: its chunk {number + 1} isn't what was "
                "written; get the file again"
            )
    assert refused(_flipped(data, len(data) - 5, rng)) == (
        f"{NAME} was changed after it was packed; get the file again"
    )


def _start_of(data: bytes, name: str, number: int) -> int:
    parts = Parts.of(data)
    at = parts.number(name)
    later = [*parts.chunks[at][number:], *(c for chunks in parts.chunks[at + 1 :] for c in chunks)]
    return len(data) - 32 - sum(map(len, later))


def _flipped(data: bytes, place: int, rng: random.Random) -> bytes:
    found = bytearray(data)
    found[place] ^= 1 << rng.randrange(8)
    return bytes(found)


def test_chunks_in_another_order_are_found(data: bytes) -> None:
    parts = Parts.of(data)
    text = parts.chunks[parts.number("text")]
    text[0], text[1] = text[1], text[0]
    assert len(text[0]) == len(text[1])
    assert "the tensor 'text' in model.bin is damaged: its chunk 1 isn't" in refused(parts.joined())


def test_chunks_of_another_file_are_found(data: bytes, tmp_path: Path) -> None:
    parts = Parts.of(data)
    other = bytearray(parts.chunks[parts.number("noise")][0])
    other[1:] = bytes(len(other) - 1)
    parts.chunks[parts.number("noise")][0] = bytes(other)
    assert "the tensor 'noise' in model.bin is damaged" in refused(parts.joined())
    # Whoever writes new sums, too, is found by the manifest's hashes: see below.
    assert read_all(parts.signed()) != packed_files.unpacked_files()


def test_a_file_that_shrinks_meanwhile_is_no_crash(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "p.hastenz"
    file.write_bytes(data)
    with FileSource(file) as source:
        packed = Packed.open(source)
        os.truncate(file, len(data) // 2)
        found = {name: ArrayRoom(np.empty(size, np.uint8)) for name, size in packed.head.files}
        with pytest.raises(
            IntegrityError, match=rf"{re.escape(str(file))} is cut off: .* are needed"
        ):
            packed.unpack(found)


# -- heads that state what can't be


def _set(field: str, value: object, number: int = 0) -> Callable[[dict[str, Any]], object]:
    def change(record: dict[str, Any]) -> None:
        record["items"][field][number] = value

    return change


def _file(value: object, number: int = 1) -> Callable[[dict[str, Any]], object]:
    def change(record: dict[str, Any]) -> None:
        record["files"][number] = value

    return change


def _piece(offset: object, length: object, file: object = 0) -> Callable[[dict[str, Any]], object]:
    return _set("pieces", [{"file": file, "offset": offset, "length": length}])


def _like(other: int) -> Callable[[dict[str, Any]], object]:
    def change(record: dict[str, Any]) -> None:
        for field, value in (("like", other), ("coded", []), ("sums", [])):
            record["items"][field][0] = value

    return change


UNFIT = "the sizes of 'noise' contradict each other"
OUTSIDE = "'noise' lies outside the bundle's files"
IMPOSSIBLE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "pieces overlap": (_piece(1, 2500), r"bytes of 'model\.bin' are missing, or appear twice"),
    "a piece is elsewhere": (_piece(0, 2500, 7), OUTSIDE),
    "a file before the first": (_piece(0, 2500, -1), OUTSIDE),
    "a negative offset": (_piece(-1, 2500), OUTSIDE),
    "a piece without bytes": (_piece(0, 0), OUTSIDE),
    "a negative piece": (_piece(0, -2500), OUTSIDE),
    "a piece past the end": (_piece(2**63, 2500), OUTSIDE),
    "offset and length turn over": (_piece(2**64 - 1, 2500), OUTSIDE),
    "no pieces": (_set("pieces", []), UNFIT),
    "chunks of no bytes": (_set("chunk", 0), UNFIT),
    "negative chunks": (_set("chunk", -1), UNFIT),
    "chunks that cut elements": (_set("chunk", 2049, 4), "the sizes of 'floats' contradict"),
    "huge chunks": (_set("chunk", 2**63), UNFIT),
    "no element": (_set("width", 0), UNFIT),
    "a negative element": (_set("width", -1), UNFIT),
    "a huge element": (_set("width", 2**40), UNFIT),
    "another shape": (_set("shape", [2499]), UNFIT),
    "negative axes": (_set("shape", [-25, -100]), UNFIT),
    "many axes": (_set("shape", [2500, *[1] * 40]), UNFIT),
    "a million huge axes": (_set("shape", [2**62] * 200_000), UNFIT),
    "fewer chunks": (_set("coded", [2049]), UNFIT),
    "more sums": (_set("sums", [1, 2, 3]), UNFIT),
    "a chunk without bytes": (_set("coded", [0, 2502]), UNFIT),
    "a negative chunk": (_set("coded", [-1, 2503]), UNFIT),
    "a chunk longer than its bytes": (_set("coded", [2**40, 453]), UNFIT),
    "a negative sum": (_set("sums", [-1, 2]), UNFIT),
    "a number of 4000 digits": (
        _set("width", 10**4000),
        "its head is damaged|contradict each other",
    ),
    "a fraction": (_set("width", 1.5), r"its head is damaged: Expected `int`"),
    "a word": (_set("width", "1"), r"its head is damaged: Expected `int`"),
    "unequal columns": (lambda r: r["items"]["name"].pop(), "its head is damaged: zip"),
    "a column is missing": (lambda r: r["items"].pop("like"), "missing required field `like`"),
    "no files": (lambda r: r.update(files=[]), OUTSIDE),
    "like itself": (_like(0), "'noise' refers to a tensor that doesn't come before it"),
    "like a later one": (_like(1), "'noise' refers to a tensor that doesn't come before it"),
    "like one that is like another": (_set("like", 8, 9), "the sizes of 'text'"),
    "like one before the first": (
        _like(-2),
        "'noise' refers to a tensor that doesn't come before it",
    ),
    "an unknown relation": (_set("relation", "times"), "its head is damaged: Invalid enum value"),
    "a relation to no base": (
        _set("relation", "xor"),
        "'noise' is a difference, but it names nothing to add it to",
    ),
    "a path up": (_file(["../rest.bin", 20]), "leads out of the bundle"),
    "a path up in the middle": (_file(["a/../../b", 20]), "leads out of the bundle"),
    "an absolute path": (_file(["/etc/passwd", 20]), "leads out of the bundle"),
    "a path with no name": (_file([".", 20]), "leads out of the bundle"),
    "an empty path": (_file(["", 20]), "leads out of the bundle"),
    "a path of Windows": (_file(["..\\x", 20]), "leads out of the bundle"),
    "two slashes": (_file(["a//b", 20]), "leads out of the bundle"),
    "a line break": (_file(["a\nb", 20]), r"'a\\nb' leads out of the bundle"),
    "a zero byte": (_file(["a\0b", 20]), "leads out of the bundle"),
    "half a character": (_file(["a\ud800", 20]), "its head is damaged"),
    "the same name": (_file(["model.bin", 20]), r"'model\.bin' appears twice"),
    "a file in a file": (_file(["model.bin/x", 20]), r"'model\.bin/x' appears twice"),
    "a file that is a folder": (_file(["notes", 0], 2), "'notes' is also a folder"),
    "a name of 300 bytes": (_file(["é" * 150, 20]), "is too long"),
    "a million folders": (_file(["/".join("a" * 1_000_000), 20]), "is too long"),
    "a negative file": (_file(["a", -1]), "has -1 bytes"),
    "a file of 2^63 bytes": (_file(["a", 2**63]), "has 9223372036854775808 bytes"),
    "a manifest of 3 GiB": (
        _file(["manifest.json", 3 << 30]),
        "its manifest.json is larger than 4096 KiB",
    ),
    "a file with bytes from nowhere": (_file(["x", 9], 2), "bytes of 'x' are missing"),
    "a base whose manifest has 3 GiB": (
        lambda r: r.update(base={"manifest": "", "files": [["manifest.json", 3 << 30]]}),
        "its manifest.json is larger than 4096 KiB",
    ),
    "a base whose files lie elsewhere": (
        lambda r: r.update(base={"manifest": "", "files": [["../../x", 1]]}),
        "leads out of the bundle",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_head_that_states_what_cant_be_is_refused(data: bytes, case: str) -> None:
    change, said = IMPOSSIBLE[case]
    found = refused(changed(data, change))
    assert found.startswith(f"{NAME}: ")
    assert re.search(said, found), found


def test_names_of_any_language_are_fine(data: bytes) -> None:
    assert "ключ/重み.bin" in read_all(changed(data, _file(["ключ/重み.bin", 20])))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 1_000_000,
        b'{"x":' * 1_000_000,
        b'{"files": [], "codecs": [], "items": [' + b"{}," * 100_000,
    ],
)
def test_a_head_of_other_text_is_refused(text: bytes) -> None:
    assert refused(with_head(text)).startswith(f"{NAME}: its head is damaged: ")


def test_a_head_that_swells_takes_little_memory() -> None:
    bombs = [
        b" " * (40 << 20),
        b'{"files":[' + b'["",0],' * (1 << 16),
        b'{"other":[' + b"{}," * (1 << 20),
    ]
    for bomb in bombs:
        frame = with_frame(quickly(bomb))
        tracemalloc.start()
        refused(frame)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 80 << 20


def test_a_newer_version_says_what_to_do(data: bytes) -> None:
    assert refused(data[:8] + b"\2\0" + data[10:]) == (
        f"{NAME}: it was packed by a newer version of hasten (format 2, this one reads 1); upgrade hasten"
    )


def test_what_isnt_packed_is_refused_by_its_first_bytes() -> None:
    for other in (b"", b"PK\3\4" + bytes(100), b"\x89HASTENX" + bytes(100), bytes(1000)):
        assert (
            refused(other)
            == f"{NAME}: it isn't a packed bundle: its first bytes aren't those of one"
        )
    assert "its beginning is damaged" in refused(b"\x89HASTENZ" + bytes(100))
    assert "it isn't a zstd frame" in refused(with_frame(b"no frame"))


def test_few_bytes_that_claim_to_be_many_are_refused(data: bytes) -> None:
    parts = Parts.of(data)
    many = 1 << 40
    parts.record["files"][2][1] = many
    for field, value in {
        "name": "bomb",
        "dtype": "uint8",
        "shape": [many],
        "width": 1,
        "pieces": [{"file": 2, "offset": 0, "length": many}],
        "chunk": many,
        "relation": "",
        "since": [],
        "like": -1,
    }.items():
        parts.record["items"][field].append(value)
    parts.chunks.append([compressed(bytes(1 << 20))])
    assert re.search(r"its .* bytes claim to unpack to 1,099,", refused(parts.signed()))


# -- chunks with sums that fit and contents that don't


def _with_chunk(data: bytes, name: str, chunk: bytes) -> bytes:
    parts = Parts.of(data)
    parts.chunks[parts.number(name)][0] = chunk
    return parts.signed()


def test_a_chunk_of_zstd_that_swells_is_refused_before_it_takes_memory(data: bytes) -> None:
    bomb = _with_chunk(data, "text", b"\1" + quickly(bytes(100 << 20)))
    assert len(bomb) < 200_000
    tracemalloc.start()
    said = refused(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said.startswith(
        f"{NAME}: the tensor 'text' in model.bin is damaged in chunk 1: it isn't a zstd frame"
    )
    assert peak < 5 << 20


def test_a_frame_that_wants_a_large_window_is_refused(data: bytes) -> None:
    opened = zstandard.zstd.ZstdCompressor(  # type: ignore[attr-defined]
        options={zstandard.zstd.CompressionParameter.window_log: 26}  # type: ignore[attr-defined]
    )
    frame = opened.compress(b"x" * 1000) + opened.compress(b"y" * 1048) + opened.flush()
    said = refused(_with_chunk(data, "text", b"\1" + frame))
    assert "the tensor 'text' in model.bin is damaged in chunk 1: it isn't a zstd frame" in said


def test_a_chunk_by_a_codec_of_a_later_version_is_not_called_damaged(data: bytes) -> None:
    def change(record: dict[str, Any]) -> None:
        record["codecs"][0] = "\x1b[31mwavelets"

    said = refused(changed(data, change), InputError)
    assert re.search(
        r"the tensor '\w+' in model\.bin can't be unpacked: it needs the codec '\\x1b\[31mwavelets', and this "
        r"version of hasten has raw, .*: upgrade hasten$",
        said,
    )
    assert "it names no codec" in refused(_with_chunk(data, "noise", b"\x63abc"))


def test_codecs_inside_each_other_have_an_end(data: bytes) -> None:
    codecs = Parts.of(data).record["codecs"]
    nest = bytes([codecs.index("planes")])
    deep = b""
    for _ in range(1000):
        deep = nest + len(deep).to_bytes(4, "little") + deep
    said = refused(_with_chunk(data, "halves", deep))
    assert "the tensor 'halves' in model.bin is damaged in chunk 1" in said


@pytest.mark.parametrize(
    "name", ["noise", "weights", "flat", "mostly", "halves", "few", "pruned", "text"]
)
def test_a_chunk_that_was_changed_decodes_to_its_size_or_is_refused(data: bytes, name: str) -> None:
    parts = Parts.of(data)
    number = parts.number(name)
    codecs, chunk = Codecs(tuple(parts.record["codecs"])), parts.chunks[number][0]
    width = parts.record["items"]["width"][number]
    out = np.zeros(packed_files.CHUNK_BYTES + 32, np.uint8)
    rng = random.Random(name)
    said: list[str] = []
    for _ in range(60):
        found = bytearray(chunk)
        for _ in range(rng.randrange(1, 4)):
            match rng.randrange(3):
                case 0:
                    found[rng.randrange(min(len(found), 40))] = rng.randrange(256)
                case 1:
                    found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
                case 2:
                    del found[rng.randrange(len(found)) + 1 :]
        try:
            codecs.decode(memoryview(bytes(found)), out[16:-16], width)
        except IntegrityError as error:
            said.append(str(error))
    assert all(map(str.isprintable, said))
    assert len(said) > 20
    assert not out[:16].any()
    assert not out[-16:].any()


# -- no room


def test_a_file_that_memory_cant_hold_is_refused_first(
    packed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.core.memory_folder._UNASKED_BYTES", 0)
    monkeypatch.setattr("hasten.core.memory_folder._free_bytes", lambda: 100)
    said = r"no room for the [\d,]+ bytes of manifest\.json: 100 bytes of memory are free"
    with pytest.raises(InputError, match=said):
        hasten.load(packed_bundle)


def test_files_that_memory_holds_one_by_one_but_not_together_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> m (float[b, 64] x) => (float[b, 64] y) <float[64, 64] w> { y = MatMul(x, w) }'
    model = small_models.built(tmp_path / "m", text, external=True)
    part = built(tmp_path, model.path, OnnxRuntime(threads=1))
    write(tmp_path / "model.hasten", stated(part, None), {})
    packed = pack(tmp_path / "model.hasten").path
    largest = max(file.stat().st_size for file in (part.artifact.path, *part.artifact.files))
    monkeypatch.setattr("hasten.core.memory_folder._UNASKED_BYTES", 0)
    monkeypatch.setattr("hasten.core.memory_folder._free_bytes", lambda: largest + 10)
    said = rf"model\.hastenz: no room to unpack [\d,]+ bytes: {largest + 10:,} bytes of memory are free"
    with pytest.raises(InputError, match=said):
        hasten.load(packed, cache=False)


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("what", ["pack", "unpack", "unpack to a strange name", "load"])
def test_a_full_disk_in_the_middle_leaves_nothing(
    packed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    goal = out / "goal"
    monkeypatch.setattr(tempfile, "tempdir", str(out))
    commands: dict[str, Callable[[], object]] = {
        "pack": lambda: pack(packed_bundle.with_suffix(".hasten"), goal),
        "unpack": lambda: hasten.unpack(packed_bundle, goal),
        "unpack to a strange name": lambda: hasten.unpack(packed_bundle, out / "go\nal"),
        "load": lambda: hasten.load(packed_bundle, cache=False),
    }
    with files_of_at_most(500), pytest.raises(InputError) as error:
        commands[what]()
    assert re.fullmatch(r"(can't write|no room for) .*: File too large", str(error.value))
    assert "/." not in str(error.value)  # no hidden folder, which is gone
    assert list(out.iterdir()) == []


def test_a_cache_without_room_is_named_and_not_the_packed_file(
    packed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache" / "unpacked"
    monkeypatch.setenv("HASTEN_CACHE", str(root.parent))
    said = rf"^can't write {root}/[a-z][^:]*: File too large$"
    with files_of_at_most(500), pytest.raises(InputError, match=said):
        unpacked(packed_bundle)
    assert list(root.iterdir()) == []


def test_no_descriptor_left_is_one_line(packed_bundle: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with hasten.load(packed_bundle):
        pass  # imports what else it needs
    free = os.open(os.devnull, os.O_RDONLY)  # the lowest number: no other is left for a second file
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(InputError, match="Too many open files"):
            hasten.load(packed_bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- whole bundles


def test_a_file_with_anothers_hash_never_stands_for_it(
    packed_bundle: Path, tmp_path: Path, cache: Path
) -> None:
    parts = Parts.of(packed_bundle.read_bytes())
    forged, real = tmp_path / "forged.hastenz", tmp_path / "real.hastenz"
    real.write_bytes(packed_bundle.read_bytes())
    parts.record["items"]["name"][0] = "another"
    forged.write_bytes(parts.signed()[:-32] + real.read_bytes()[-32:])
    with pytest.raises(IntegrityError, match=r"forged\.hastenz was changed after it was packed"):
        unpacked(forged)
    assert not [*cache.rglob("manifest.json")]
    assert unpacked(real).is_relative_to(cache)


@pytest.mark.parametrize("why", ["sure en0ugh", "no"])
def test_a_file_with_the_hash_of_a_bundle_in_the_cache_never_stands_for_it(
    packed_bundle: Path, tmp_path: Path, cache: Path, why: str
) -> None:
    def other(folder: Path) -> None:
        forge(folder, lambda record: record.update(why=why))

    forged = _repacked(packed_bundle, tmp_path / "forged.hastenz", other)
    folder = unpacked(packed_bundle)
    assert folder.is_relative_to(cache)
    forged.write_bytes(forged.read_bytes()[:-32] + packed_bundle.read_bytes()[-32:])
    with pytest.raises(IntegrityError, match=r"forged\.hastenz was changed after it was packed"):
        unpacked(forged)
    assert unpacked(packed_bundle) == folder


def test_without_files_in_memory_ordinary_ones_do(
    packed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with hasten.load(packed_bundle, cache=False) as loaded:
        assert loaded(X)["logits"].shape == (1, 4)


def _repacked(packed: Path, goal: Path, change: Callable[[Path], object]) -> Path:
    """Pack what somebody made of a bundle, sums and all."""
    folder = hasten.unpack(packed, goal.with_suffix(".hasten"))
    change(folder)
    return pack(folder, goal).path


def test_a_bundle_with_sums_that_fit_is_checked_against_its_manifest(
    packed_bundle: Path, tmp_path: Path
) -> None:
    parts = Parts.of(packed_bundle.read_bytes())
    codecs = Codecs(tuple(parts.record["codecs"]))
    for number, name in enumerate(parts.record["items"]["name"]):
        if "tensors of model/" in name and "between" not in name:
            size = sum(piece["length"] for piece in parts.record["items"]["pieces"][number])
            tensor = np.empty(size, np.uint8)
            codecs.decode(memoryview(parts.chunks[number][0]), tensor, 4)
            tensor[0] ^= 1
            parts.chunks[number] = [bytes([parts.record["codecs"].index("raw")]) + tensor.tobytes()]
    forged = tmp_path / "forged.hastenz"
    forged.write_bytes(parts.signed())
    said = (
        rf"{re.escape(str(forged))}: model/linear_classifier\.onnx was changed after it was written"
    )
    with pytest.raises(IntegrityError, match=said):
        hasten.load(forged)


def test_files_that_the_manifest_doesnt_list_are_refused(
    packed_bundle: Path, tmp_path: Path
) -> None:
    parts = Parts.of(packed_bundle.read_bytes())
    parts.record["files"].append(["extra.so", 0])
    forged = tmp_path / "forged.hastenz"
    forged.write_bytes(parts.signed())
    with pytest.raises(IntegrityError, match="its files aren't the ones that its manifest lists"):
        hasten.load(forged)


def test_a_part_that_names_the_same_file_twice_opens(packed_bundle: Path, tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        artifact = record["winner"]["artifact"]
        artifact["files"] = [artifact["path"]] * 2

    doubled = _repacked(packed_bundle, tmp_path / "d.hastenz", lambda folder: forge(folder, change))
    with hasten.load(doubled) as loaded:
        assert loaded(X)["logits"].shape == (1, 4)


def test_what_a_closed_bundle_hasnt_unpacked_is_refused_in_one_line(packed_bundle: Path) -> None:
    loaded = hasten.load(packed_bundle)
    loaded.close()
    loaded.close()
    with pytest.raises(InputError, match=r"^can't unpack requests\.raw: the bundle is closed$"):
        _ = loaded.requests


def test_a_damaged_file_can_be_mended_and_asked_for_again(
    packed_bundle: Path, tmp_path: Path
) -> None:
    data = packed_bundle.read_bytes()
    parts = Parts.of(data)
    (number,) = (
        n
        for n, name in enumerate(parts.record["items"]["name"])
        if "tensor of requests.raw" in name
    )
    place = len(data) - 32 - sum(len(c) for chunks in parts.chunks[number:] for c in chunks)
    file = tmp_path / "p.hastenz"
    file.write_bytes(_flipped(data, place, random.Random(0)))
    with hasten.load(file) as loaded:
        with pytest.raises(IntegrityError, match="is damaged"):
            _ = loaded.requests
        with file.open("r+b") as opened:
            opened.write(data)
        assert len(loaded.requests) == 1


def test_a_process_that_was_forked_off_leaves_the_files(packed_bundle: Path) -> None:
    code = (
        "import hasten, os, sys, numpy as np\n"
        f"loaded = hasten.load({str(packed_bundle)!r}, cache=False)\n"
        f"folder = hasten.bundle.unpacked({str(packed_bundle)!r})\n"
        "if (child := os.fork()) == 0: sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(loaded._stored._memory.path.exists(), folder.exists())\n"
        "print(len(loaded.requests), loaded(np.ones((1, 16), np.float32))['logits'].shape)\n"
    )
    environment = {**os.environ, "HASTEN_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "True True\n1 (1, 4)\n", done.stderr


def test_what_is_no_file_is_no_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.hastenz")
    for place, kind in ((tmp_path / "pipe.hastenz", "no file"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"it is {kind}"):
            FileSource(place)
    with pytest.raises(InputError, match=r"can't read .*none: No such file or directory"):
        FileSource(tmp_path / "none")


def test_every_codec_that_is_installed_was_attacked(data: bytes) -> None:
    assert len(all_codecs()) == len(Parts.of(data).record["codecs"])
    assert json.dumps(Parts.of(data).record)
    with MemorySource(data) as source:
        assert Packed.open(source).head.base is None
