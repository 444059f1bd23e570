"""Bundles in one file: every byte comes back, and every way in takes one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import filecmp
import functools
import gc
import http.server
import itertools
import mmap
import os
import resource
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import onnx
import openvino
import pytest
from click.testing import CliRunner
from tests.support import models
from tests.support.bundles import built, forge, stated
from tests.support.packed_files import START, Parts, read_all
from tests.support.waiting import PATIENCE_S

import hasten
from hasten.bundle import read, unpacked, write
from hasten.bundle.packing import layout, reader
from hasten.bundle.packing.blocks import all_codecs
from hasten.bundle.packing.codecs.zstandard import compressed
from hasten.bundle.packing.layout import Base, Head, Item, Piece, Relation
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.source import FileSource, MemorySource
from hasten.bundle.packing.unpacking import beside, write_files
from hasten.bundle.packing.writer import Cut, PackedAs, pack, whole_rows, write_packed
from hasten.cli import main
from hasten.core.rooms import ArrayRoom, Room
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.integers import Integers
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.weights import Stretch, stretches_in
from hasten.errors import InputError, IntegrityError
from hasten.inputs.models.onnx import load as load_onnx
from hasten.reporting.sizes import STEADY, size_in_words
from hasten.serving.models.opening import ModelSettings, open_bundle
from hasten.serving.models.places import places

X = np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float32)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = [{f.relative_to(root) for f in root.rglob("*") if f.is_file()} for root in (one, other)]
    return names[0] == names[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names[0]
    )


def test_every_file_comes_back_byte_for_byte(two_models: Path, tmp_path: Path) -> None:
    made = pack(two_models)
    assert made.path == tmp_path / "model.hastenz"
    assert made.packed_bytes == made.path.stat().st_size < made.folder_bytes
    assert _same(hasten.unpack(made.path, tmp_path / "again.hasten"), two_models)


def test_packing_twice_gives_the_same_file(two_models: Path, tmp_path: Path) -> None:
    one, other = (pack(two_models, tmp_path / name).path for name in ("a.hastenz", "b.hastenz"))
    assert one.read_bytes() == other.read_bytes()


def test_tensors_are_packed_as_what_they_are(two_models: Path) -> None:
    with FileSource(pack(two_models).path) as source:
        items = Packed.open(source).head.items
    # Both models have the same weights: they are packed once.
    first, again = (item for item in items if item.shape == (32, 16, 3, 3))
    assert (first.name, first.dtype, first.width, first.like) == ("w1", "float32", 4, -1)
    assert (items[again.like], again.coded) == (first, ())
    assert any("small tensors" in item.name for item in items)


def test_bytes_of_a_tensor_are_cut_at_whole_rows_into_chunks_of_nearly_one_size() -> None:
    def cut_at(*shape: int) -> int:
        pieces = (Piece(0, 0, int(np.prod(shape))),)
        return whole_rows(Item("w", "int8", shape, 1, pieces, 1000))

    assert cut_at(21, 128) == 7 * 128  # three chunks have room for 7 rows each
    assert cut_at(15, 128) == 5 * 128  # not 7, 7 and 1
    assert cut_at(7, 128) == 1000  # one chunk
    assert cut_at(3, 2000) == 1000  # no chunk has room for a row


def test_the_constants_of_openvinos_ir_are_tensors(tmp_path: Path) -> None:
    saved = openvino.convert_model(models.depthwise_cnn(tmp_path))
    openvino.save_model(saved, tmp_path / "ir.xml", compress_to_fp16=False)
    found = stretches_in([tmp_path / "ir.xml", tmp_path / "ir.bin"])
    weights = (tmp_path / "ir.bin").read_bytes()
    by_shape = {one.shape: one for one in found}
    one = by_shape[32, 16, 3, 3]
    values = np.frombuffer(weights, one.dtype, 32 * 16 * 9, one.offset)
    expected = onnx.load(tmp_path / "depthwise_cnn.onnx").graph.initializer
    (known,) = (onnx.numpy_helper.to_array(each) for each in expected if each.name == "w1")
    np.testing.assert_array_equal(values, known.ravel())


def _varint(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + _varint(number >> 7)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def axes(count: int) -> bytes:
    """Return a tensor of large axes; the product of a million would take hours."""
    return _field(1, _varint(2**63 - 1) * count) + b"\x10\x01" + _field(9, b"abcd")


@pytest.mark.parametrize(
    "tensor",
    [
        _field(8, b"w") + _field(13, b"") + b"\x70\x01",  # an entry of external data without a text
        _field(8, b"w") + _field(2, b""),  # a type that isn't a number
        _field(8, b"w") + _field(14, b""),
        axes(100_000),
        pytest.param(axes(1_000_000), marks=pytest.mark.seconds),
    ],
    ids=["no text", "no type", "no place", "axes", "a million axes"],
)
def test_a_file_that_only_looks_like_onnx_is_packed_as_bytes(
    two_models: Path, tmp_path: Path, tensor: bytes
) -> None:
    (name,) = (two_models / "exact").iterdir()
    forge(two_models, files={f"exact/{name.name}": _field(7, _field(5, tensor))})
    packed = pack(two_models).path
    assert _same(hasten.unpack(packed, tmp_path / "again.hasten"), two_models)


@pytest.mark.parametrize("axes", [100_000, pytest.param(1_000_000, marks=pytest.mark.seconds)])
def test_an_ir_with_many_axes_is_packed_as_bytes(two_models: Path, axes: int) -> None:
    name = "model/depthwise_cnn.xml"
    text = (two_models / name).read_text()
    begin = '<data element_type="f32" shape="'
    many = ",".join(["9223372036854775807"] * axes)
    forge(two_models, files={name: text.replace(begin, f"{begin}{many},", 1).encode()})
    assert _same(unpacked(pack(two_models).path), two_models)


@pytest.mark.parametrize("which", ["winner", "exact"])
def test_a_packed_bundle_answers_as_its_folder_does(two_models: Path, which: str) -> None:
    packed = pack(two_models).path
    with hasten.load(two_models, which=which) as one, hasten.load(packed, which=which) as other:  # type: ignore[arg-type]
        assert one.manifest == other.manifest
        np.testing.assert_array_equal(one(X)["logits"], other(X)["logits"])
        for here, there in zip(one.requests, other.requests, strict=True):
            np.testing.assert_array_equal(here["x"], there["x"])


def test_only_what_is_opened_is_unpacked(two_models: Path) -> None:
    packed = pack(two_models).path
    data = bytearray(packed.read_bytes())
    data[-40] ^= 1  # the exact model comes last
    packed.write_bytes(data)
    with hasten.load(packed) as loaded:
        assert loaded(X)["logits"].shape == (1, 8)
    with pytest.raises(IntegrityError, match=r"model\.hastenz: '.* in exact/.*' is damaged"):
        hasten.load(packed, which="exact")


def test_threads_share_what_is_unpacked(two_models: Path) -> None:
    with hasten.load(pack(two_models).path, sessions=4) as loaded:
        expected = loaded(X)["logits"]
        found: list[bool] = []

        def ask() -> None:
            found.append(all(np.array_equal(loaded(X)["logits"], expected) for _ in range(20)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 8


def _descriptors() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_closed_bundle_leaves_nothing(
    two_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(two_models).path
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with hasten.load(packed, cache=False) as loaded:
        loaded(X)
    gc.collect()
    before = _descriptors()
    for _ in range(3):
        with hasten.load(packed, cache=False) as loaded:
            loaded(X)
        gc.collect()
    assert _descriptors() <= before
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a web server of the folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_packed_bundle_is_opened_from_the_web(two_models: Path, web: str) -> None:
    pack(two_models)
    with hasten.load(two_models) as one, hasten.load(f"{web}/model.hastenz") as other:
        np.testing.assert_array_equal(one(X)["logits"], other(X)["logits"])
    with pytest.raises(InputError, match=r"/none\.hastenz: the server answered 404"):
        hasten.load(f"{web}/none.hastenz")


def test_a_damaged_model_at_an_address_is_named_by_that_address(two_models: Path, web: str) -> None:
    def change(record: dict[str, Any]) -> None:
        record["winner"]["artifact"]["files"] = ["model/none.bin"]

    forge(two_models, change)
    packed = pack(two_models).path
    for place in (f"{web}/model.hastenz", packed):
        with pytest.raises(IntegrityError) as error:
            hasten.load(place)
        assert str(error.value) == f"{place}: model/none.bin is not listed in the manifest"


def test_the_share_that_is_saved_is_never_said_to_be_all() -> None:
    def said(packed_bytes: int) -> str:
        return PackedAs(Path("p.hastenz"), 1_000_000_000, packed_bytes, ()).in_words()[0]

    assert said(556) == "p.hastenz: 0.6 kB, 99.9% less than the 1000.00 MB of its unpacked files"
    assert " 99.2% less " in said(8_000_000)
    assert " 61% less " in said(390_000_000)


def test_damage_in_small_tensors_names_the_model_that_they_are_of(tmp_path: Path) -> None:
    """Those of an IR lie in another file than the one that their name states."""
    path, data = tmp_path / "p.hastenz", np.arange(30, dtype=np.uint8)
    item = Item("3 small tensors of a.xml", "uint8", (30,), 1, (Piece(1, 0, 30),), 1 << 18)
    head = Head((("a.xml", 0), ("a.bin", 30)), (), ())
    write_packed(path, head, iter([Cut(item, data)]), all_codecs())
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.write_bytes(damaged)
    with FileSource(path) as source:
        packed = Packed.open(source)
        with pytest.raises(IntegrityError) as error:
            packed.unpack({"a.bin": ArrayRoom(np.empty(30, np.uint8))})
    assert str(error.value).startswith(f"{path}: '3 small tensors of a.xml' is damaged: ")


def test_a_packed_bundle_is_read_from_memory(two_models: Path) -> None:
    data = pack(two_models).path.read_bytes()
    with MemorySource(data) as source:
        packed = Packed.open(source)
        packed.check_end()
        name, size = packed.head.files[0]
        found = np.empty(size, np.uint8)
        packed.unpack({name: ArrayRoom(found)})
    assert found.tobytes() == (two_models / name).read_bytes()


@pytest.mark.parametrize("several", [False, True])
def test_a_packed_bundle_is_read_from_a_memory_map_which_closes(
    several: bool, two_models: Path, request: pytest.FixtureRequest
) -> None:
    if several:
        request.getfixturevalue("threads")
    path = pack(two_models).path
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        source = MemorySource(mapped)
        found = read_all(source)
    assert mapped.closed
    assert found == {name: (two_models / name).read_bytes() for name in found}
    assert found


def rooms(arrays: dict[str, Array]) -> dict[str, Room]:
    """Rooms that fill some arrays."""
    return {name: ArrayRoom(array) for name, array in arrays.items()}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the threads that decode: several, however little there is."""
    found: set[str] = set()
    real = reader._Decoding._decode

    def noted(*given: Any) -> None:
        found.add(threading.current_thread().name)
        real(*given)

    monkeypatch.setattr(reader._Decoding, "_decode", noted)
    monkeypatch.setattr(reader, "_ALONE_BYTES", 0)
    monkeypatch.setattr(reader, "_BATCH_BYTES", 256)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    return found


def test_threads_decode_beside_each_other(
    data: bytes, threads: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, several = reader._Decoding._decode, threading.Event()

    def held(*given: Any) -> None:
        """Decode; who comes first waits for another, else it might have done all before that one runs."""
        noted(*given)
        if len(threads) > 1:
            several.set()
        elif beside_each_other:
            several.wait(PATIENCE_S)

    monkeypatch.setattr(reader._Decoding, "_decode", held)
    beside_each_other = False
    with MemorySource(data) as source:
        packed = Packed.open(source)
        alone = {name: np.empty(size, np.uint8) for name, size in packed.head.files}
        beside = {name: np.empty(size, np.uint8) for name, size in packed.head.files}
        packed.unpack(rooms(alone), threads=1)
        assert threads == {threading.current_thread().name}
        threads.clear()
        beside_each_other = True
        packed.unpack(rooms(beside))
        assert len(threads) > 1
        others = threads - {threading.current_thread().name}
        assert all(name.startswith("hasten-unpacking") for name in others)
    for name, found in beside.items():
        np.testing.assert_array_equal(found, alone[name])


def test_what_a_thread_finds_damaged_is_told_and_ends_the_others(
    data: bytes, threads: set[str]
) -> None:
    parts = Parts.of(data)
    for name, chunks in zip(parts.record["items"]["name"], parts.chunks, strict=True):
        for number, chunk in enumerate(chunks):
            later = [*chunks[number:], *itertools.chain(*parts.chunks[parts.number(name) + 1 :])]
            place = len(data) - 32 - sum(map(len, later)) + len(chunk) // 2
            damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with MemorySource(damaged) as source:
                packed = Packed.open(source)
                files = {file: np.empty(size, np.uint8) for file, size in packed.head.files}
                with pytest.raises(IntegrityError) as error:
                    packed.unpack(rooms(files))
            assert (
                f"the tensor {name!r} in model.bin is damaged: its chunk {number + 1} isn't"
                in str(error.value)
            )
    assert not [one for one in threading.enumerate() if one.name.startswith("hasten-unpacking")]


def test_no_thread_writes_any_more_once_a_second_interrupt_is_told(
    data: bytes, threads: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor of a file that was closed meanwhile may be another file's by then."""
    noted, inside, go = reader._Decoding._decode, threading.Event(), threading.Event()
    main, running = threading.current_thread(), []

    def held(*given: Any) -> None:
        if threading.current_thread() is main:
            assert inside.wait(PATIENCE_S)
            raise KeyboardInterrupt
        inside.set()
        running.append(1)
        assert go.wait(PATIENCE_S)
        noted(*given)
        running.pop()

    class Interrupted(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            if not go.is_set():
                go.set()
                raise KeyboardInterrupt
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(reader._Decoding, "_decode", held)
    monkeypatch.setattr(reader, "ThreadPoolExecutor", Interrupted)
    with MemorySource(data) as source:
        packed = Packed.open(source)
        files = {name: np.empty(size, np.uint8) for name, size in packed.head.files}
        with pytest.raises(KeyboardInterrupt):
            packed.unpack(rooms(files))
        assert not running


def test_more_files_than_a_process_may_open_are_unpacked(tmp_path: Path) -> None:
    names = [f"weights/{number}.bin" for number in range(400)]
    data = np.random.default_rng(0).integers(0, 256, 40 * len(names), np.uint8)
    half = len(data) // 2
    each = tuple(Piece(number, 0, 40) for number in range(len(names)))
    cuts = [
        Cut(Item("few", "uint8", (half,), 1, each[:200], 1 << 18), data[:half]),
        Cut(Item("more", "uint8", (half,), 1, each[200:], 1 << 18), data[half:]),
    ]
    path, goal = tmp_path / "p.hastenz", tmp_path / "out"
    goal.mkdir()
    write_packed(path, Head(tuple((name, 40) for name in names), (), ()), iter(cuts), all_codecs())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with FileSource(path) as source:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_descriptors() + 200, hard))
        try:
            write_files(Packed.open(source), goal)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert b"".join((goal / name).read_bytes() for name in names) == data.tobytes()


def test_a_bundle_answers_before_the_rest_of_it_has_come(two_models: Path) -> None:
    """The server keeps what the exact model alone needs until the winner has answered."""
    path = pack(two_models).path
    data = path.read_bytes()
    with FileSource(path) as source:
        packed = Packed.open(source)
        exact = {n for n, (name, _) in enumerate(packed.head.files) if name.startswith("exact")}
        own = [{piece.file for piece in item.pieces} <= exact for item in packed.head.items]
        place = packed._starts[own.index(True)]
    assert START < place < len(data) - 1000
    answered, asked = threading.Event(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Range", ""))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:place])
            assert answered.wait(PATIENCE_S)
            with contextlib.suppress(OSError):
                self.wfile.write(data[place:])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/model.hastenz"
        with hasten.load(address) as one, hasten.load(two_models) as other:
            found = one(X)["logits"]
            answered.set()
            np.testing.assert_array_equal(found, other(X)["logits"])
        server.shutdown()
    assert asked == [""]


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.2, 0.05])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_no_tensor_is_larger_than_zstandard_or_far_above_its_entropy(
    tmp_path: Path, kept: float, dtype: str
) -> None:
    rng = np.random.default_rng(4)
    # Floats take ten times as long, and their bound needs no long chunks, as that by the entropy does.
    chunk, chunks = (1 << 18, 1) if dtype == "int8" else (1 << 14, 3)
    count = chunks * chunk
    drawn = rng.normal(0, 25, count).clip(-127, 127) * (rng.random(count) < kept)
    tensor = drawn.round().astype(np.int8) if dtype == "int8" else drawn.astype(np.float32)
    data = tensor.view(np.uint8)
    (item,) = list(_cut_whole(data, tensor.itemsize, chunk))
    made = write_packed(
        tmp_path / "p.hastenz", Head((("a", len(data)),), (), ()), iter([item]), all_codecs()
    )
    (size,) = [one.packed_bytes for one in made.tensors]
    assert size <= len(compressed(data.tobytes())) + chunks  # the number of each chunk's codec
    if dtype == "int8":
        share = np.bincount(data, minlength=256) / len(data)
        bits = -(share * np.log2(share, where=share > 0, out=np.zeros(256))).sum()
        assert size <= 1.01 * bits / 8 * len(data)
    with FileSource(made.path) as source:
        found = np.empty(len(data), np.uint8)
        Packed.open(source).unpack({"a": ArrayRoom(found)})
    np.testing.assert_array_equal(found, data)


def _cut_whole(data: Array, width: int, chunk: int) -> Iterator[Cut]:
    pieces = (Piece(0, 0, len(data)),)
    yield Cut(Item("a", "x", (len(data) // width,), width, pieces, chunk * width), data)


@pytest.mark.parametrize("like", [False, True], ids=["alone", "with a copy"])
@pytest.mark.parametrize("relation", ["", "xor"], ids=["whole", "a difference"])
def test_what_is_nearly_nothing_but_zeros_is_as_large_as_a_reader_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, like: bool, relation: Relation
) -> None:
    """A reader refuses few bytes that claim to be many, and so it did 100 MB of zeros from hasten itself."""
    monkeypatch.setattr(layout, "_ALWAYS_BYTES", 0)
    size, base = 8 << 20, Base("0" * 64, (("a", 1 << 18),)) if relation else None
    data = np.zeros(size, np.uint8)
    cuts = []
    for number in range(1 + like):
        since = tuple(Piece(0, 0, 1 << 18) for _ in range(size >> 18)) if relation else ()
        pieces = (Piece(number, 0, size),)
        item = Item("w", "uint8", (size,), 1, pieces, 1 << 18, relation=relation, since=since)
        cuts.append(Cut(item, data))
    files = tuple((f"f{number}", size) for number in range(len(cuts)))
    made = write_packed(tmp_path / "p.hastenz", Head(files, (), (), base), iter(cuts), all_codecs())
    assert made.packed_bytes < 300_000  # one chunk stays as it is
    found = {name: np.ones(size, np.uint8) for name, _ in files}
    with FileSource(made.path) as source:
        older = np.zeros(1 << 18, np.uint8)
        rooms_of = {name: ArrayRoom(array) for name, array in found.items()}
        Packed.open(source).unpack(rooms_of, (lambda _: older) if relation else None)
    assert not any(array.any() for array in found.values())


@pytest.mark.parametrize(
    ("shape", "width", "length"),
    [
        ((1000,), 4, 0),
        ((2, 1000), 4, 4000),
        ((1,) * 40 + (2500,), 4, 10_000),
        ((10_000,), 0, 10_000),
        ((100,), 100, 10_000),
        ((-1, -2500), 4, 10_000),
    ],
    ids=["no bytes", "another size", "many axes", "no element", "huge elements", "negative axes"],
)
def test_a_wrong_hint_about_where_tensors_are_costs_only_space(
    two_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    width: int,
    length: int,
) -> None:
    def stretches(_: Engine, artifact: Artifact) -> Iterator[Stretch]:
        yield Stretch("w", "float32", shape, width, artifact.path, 0, length)

    monkeypatch.setattr(OnnxRuntime, "stretches", stretches)
    packed = pack(two_models).path
    assert _same(hasten.unpack(packed, tmp_path / "again.hasten"), two_models)


def test_what_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    goal = tmp_path / "p.hastenz"
    data = np.arange(100, dtype=np.uint8)
    cut = Cut(Item("w", "uint8", (100,), 1, (Piece(0, 0, 100),), 1 << 18), data)
    head = Head((("model\\a.bin", 100),), (), ())
    with pytest.raises(InputError) as error:
        write_packed(goal, head, iter([cut]), all_codecs())
    assert str(error.value) == (
        f"can't pack into {goal}: no reader would take it, because its file 'model\\\\a.bin' leads out of "
        "the bundle"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", [CompiledC(), OnnxRuntime(threads=1)])
def test_a_model_that_the_cache_has_is_opened_without_unpacking_it(
    tmp_path: Path, engine: Engine
) -> None:
    part = built(tmp_path, models.depthwise_cnn(tmp_path), engine)
    write(tmp_path / "model.hasten", stated(part, part), {})
    packed = pack(tmp_path / "model.hasten", tmp_path / "model.hastenz").path
    data = packed.read_bytes()
    changed = Packed.open(MemorySource(data))
    weights = max(range(len(changed.head.items)), key=lambda n: changed.head.items[n].coded_bytes)
    place = changed._starts[weights] + changed.head.items[weights].coded_bytes // 2
    damaged = tmp_path / "damaged.hastenz"
    damaged.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    kept = tmp_path / "cache"
    with pytest.raises(IntegrityError, match=r"damaged\.hastenz: the tensor '.+' in .+ is damaged"):
        hasten.load(damaged, cache=kept)
    with hasten.load(packed, cache=kept) as loaded:
        expected = loaded({"x": X})
    with hasten.load(damaged, cache=kept) as loaded:  # found by the manifest's hash
        np.testing.assert_equal(loaded({"x": X}), expected)
    shutil.rmtree(kept)
    with pytest.raises(IntegrityError, match=r"damaged\.hastenz: the tensor '.+' in .+ is damaged"):
        hasten.load(damaged, cache=kept)


@pytest.mark.parametrize("engine", [CompiledC(), Integers()], ids=["compiled", "integers"])
def test_constants_of_a_plan_are_tensors(tmp_path: Path, engine: Engine) -> None:
    model = models.depthwise_cnn(tmp_path)
    artifact = CompiledC().build(
        load_onnx(model).settled_by({"x": X[0]}), Target.host(), _new(tmp_path / "built")
    )
    found = {stretch.shape: stretch for stretch in engine.stretches(artifact)}
    assert any(one.dtype == "float32" and one.length == 4 * 32 * 16 * 9 for one in found.values())


def test_external_weights_are_tensors_of_the_file_beside(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> m (float[b, 64] x) => (float[b, 64] y) <float[64, 64] w> { y = MatMul(x, w) }'
    model = models.built(tmp_path / "m", text, external=True)
    part = built(tmp_path, model.path, OnnxRuntime(threads=1))
    (found,) = OnnxRuntime().stretches(part.artifact)
    assert (found.name, found.shape, found.file.name) == ("w", (64, 64), "model.data")
    path = tmp_path / "model.hasten"
    write(path, stated(part, part), {})
    x = np.ones((1, 64), np.float32)
    with hasten.load(path) as one, hasten.load(pack(path).path) as other:
        np.testing.assert_array_equal(one(x)["y"], other(x)["y"])


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_commands_unpack_into_the_cache_once(two_models: Path, cache: Path) -> None:
    packed = pack(two_models).path
    folder = unpacked(packed)
    assert folder.is_relative_to(cache)
    assert _same(folder, two_models)
    made = (folder / "manifest.json").stat().st_ino
    assert unpacked(packed) == folder
    assert (folder / "manifest.json").stat().st_ino == made
    (folder / "report.html").write_bytes(b"<q>")
    assert _same(unpacked(packed), two_models)


def test_what_nobody_used_for_a_month_goes_unless_a_process_holds_it(
    two_models: Path, tmp_path: Path
) -> None:
    held = unpacked(pack(two_models).path)
    free, left = held.with_name("0" * 64), held.with_name(f".{'0' * 64}.{'0' * 8}")
    others = [held.with_name(name) for name in (".config", "photos")]
    for folder in (free, left, *others):
        folder.mkdir()
    for folder in (held, free, left, *others):
        os.utime(folder, (0, 0))
    unpacked(pack(two_models, tmp_path / "lean.hastenz", keep_exact=False).path)
    assert (held.exists(), free.exists(), left.exists()) == (True, False, False)
    assert all(other.exists() for other in others)


@pytest.fixture
def fresh(tmp_path: Path, two_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that nothing was written to yet."""
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "fresh"))
    return tmp_path / "fresh"


@pytest.mark.parametrize("shared", [False, True])
def test_folders_of_the_user_stay_where_a_link_in_the_cache_leads_to_them(
    two_models: Path, fresh: Path, *, shared: bool
) -> None:
    """Whoever may write to the cache could have put the link there."""
    own = fresh.with_name("home") / ("0" * 64)
    own.mkdir(parents=True)
    os.utime(own, (0, 0))
    fresh.mkdir(0o700, exist_ok=True)
    (fresh / "unpacked").symlink_to(own.parent)
    fresh.chmod(0o777 if shared else 0o700)
    folder = unpacked(pack(two_models).path)
    assert _same(folder, two_models)
    assert [*own.parent.iterdir()] == [own]


def test_nothing_is_unpacked_to_a_cache_that_others_can_write_to(
    two_models: Path, fresh: Path
) -> None:
    (fresh / "unpacked").mkdir(0o700, parents=True)
    fresh.chmod(0o777)
    assert not unpacked(pack(two_models).path).is_relative_to(fresh)


def test_a_bundle_in_the_cache_stays_where_a_link_to_the_cache_leads_elsewhere_later(
    two_models: Path, fresh: Path
) -> None:
    for name in ("first", "second"):
        fresh.with_name(name).mkdir(0o700)
    fresh.symlink_to("first")
    folder = unpacked(pack(two_models).path)
    fresh.unlink()
    fresh.symlink_to("second")
    assert _same(folder, two_models)


def test_a_cache_that_the_first_bundle_makes_is_for_the_user_alone(
    two_models: Path, fresh: Path
) -> None:
    before = os.umask(0o002)
    try:
        unpacked(pack(two_models).path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700


def test_a_folder_that_is_being_written_stays_however_old_it_seems(
    two_models: Path, tmp_path: Path
) -> None:
    """The clock may jump ahead while another process unpacks."""
    root = unpacked(pack(two_models).path).parent
    with beside(root / ("0" * 64)) as new:
        os.utime(new, (0, 0))
        unpacked(pack(two_models, tmp_path / "lean.hastenz", keep_exact=False).path)
        assert new.exists()


def test_a_folder_stays_where_it_is(two_models: Path) -> None:
    assert unpacked(two_models) == two_models


def test_without_a_cache_the_folder_goes_with_the_process(
    two_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", "off")
    assert _same(unpacked(pack(two_models).path), two_models)


def test_messages_name_the_file_that_was_given_and_no_folder_of_the_cache(
    two_models: Path, cache: Path
) -> None:
    whole = pack(two_models).path
    lean = pack(two_models, keep_exact=False, keep_evidence=False).path
    for command, file, said in (
        (("bench",), lean, "has no exact model: say what to compare it with in --against"),
        (("report",), lean, "has no evidence of its run, so there is nothing to report: "),
        (("certify", "--data", "x.npz"), whole, "has no certificate and therefore no limit: "),
    ):
        ended = CliRunner().invoke(main, [*command, str(file)])
        assert ended.exit_code == 2, ended.output
        assert ended.output.startswith(f"hasten: {file} {said}")
        assert str(cache) not in ended.output


def test_the_exact_model_can_be_left_out(two_models: Path, tmp_path: Path) -> None:
    made = pack(two_models, tmp_path / "lean.hastenz", keep_exact=False)
    manifest = read(unpacked(made.path))
    assert manifest.exact is None
    assert not any(name.startswith("exact/") for name in manifest.files)
    with hasten.load(two_models) as one, hasten.load(made.path) as other:
        np.testing.assert_array_equal(one(X)["logits"], other(X)["logits"])
    with pytest.raises(InputError, match="it contains no exact model"):
        hasten.load(made.path, which="exact")


def test_what_nobody_named_replaces_no_other_bundle(two_models: Path, tmp_path: Path) -> None:
    lean = pack(two_models, keep_exact=False)
    assert lean.path == tmp_path / "model-lean.hastenz"
    other = lean.path.rename(tmp_path / "model.hastenz")
    with pytest.raises(InputError, match=r"model\.hasten isn't the bundle that"):
        hasten.unpack(other)
    assert read(two_models).exact is not None
    whole = pack(two_models, tmp_path / "model.hastenz").path
    assert hasten.unpack(whole) == two_models


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EBUSY, "a mount point has to keep its name"),
        (errno.EXDEV, "a folder of a container's image has to keep its name"),
    ],
)
def test_a_folder_that_has_to_keep_its_name_is_one_line_and_stays(
    two_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def busy(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    packed, place = pack(two_models).path, tmp_path / "volume" / "model.hasten"
    shutil.copytree(two_models, place)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # names can't be exchanged
    monkeypatch.setattr(os, "rename", busy)
    said = f"can't write {place}: {os.strerror(number)}; {why}: mount the folder around it"
    with pytest.raises(InputError, match=said):
        hasten.unpack(packed, place)
    assert _same(place, two_models)
    assert list(place.parent.iterdir()) == [place]


def test_a_packed_file_that_is_mounted_is_one_line_and_stays(
    two_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> NoReturn:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    packed = pack(two_models).path
    before = packed.read_bytes()
    monkeypatch.setattr(os, "replace", busy)
    said = f"can't write {packed}: Device or resource busy; a mount point has to keep its name: "
    with pytest.raises(InputError, match=said):
        pack(two_models, packed)
    assert packed.read_bytes() == before
    assert sorted(tmp_path.glob("*.hastenz")) == [packed]


def test_a_link_to_a_bundle_is_replaced_and_nothing_is_left_of_it(
    two_models: Path, tmp_path: Path
) -> None:
    packed, place = pack(two_models).path, tmp_path / "device" / "model.hasten"
    place.parent.mkdir()
    place.symlink_to(two_models)
    assert hasten.unpack(packed, place) == place
    assert not place.is_symlink()
    assert _same(place, two_models)
    assert list(place.parent.iterdir()) == [place]


def test_a_packed_bundle_is_packed_once_more_under_another_name(
    two_models: Path, tmp_path: Path
) -> None:
    packed = pack(two_models).path
    with pytest.raises(InputError, match="is already packed: give another out="):
        pack(packed)
    again = pack(packed, tmp_path / "again.hastenz", codecs=["zstd"]).path
    assert _same(hasten.unpack(again, tmp_path / "again.hasten"), two_models)
    assert pack(packed, keep_exact=False).path == tmp_path / "model-lean.hastenz"


def test_a_bundle_is_packed_from_within(
    two_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_models)
    assert pack(".").path == tmp_path / "model.hastenz"


@pytest.mark.parametrize(("inside", "out"), [(".", "."), ("model", "..")])
@pytest.mark.parametrize("since", [False, True], ids=["whole", "a difference"])
def test_a_bundle_is_replaced_from_within(
    two_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: str,
    out: str,
    since: bool,
) -> None:
    newer = shutil.copytree(two_models, tmp_path / "newer.hasten")
    forge(newer, lambda record: record.update(why="newer"))
    packed = pack(newer, since=two_models if since else None).path
    monkeypatch.chdir(two_models / inside)
    hasten.unpack(packed, out, base=out if since else None)
    assert _same(two_models, newer)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "command",
    [
        "report .",
        "report /",
        "pack . --lossy --train=none.npz --data=none.npz --max-drop=1%",
        "pack /",
        "unpack .",
        "unpack /",
        "unpack . --out=/",
    ],
)
def test_a_command_from_within_a_bundle_is_refused_in_one_line(
    two_models: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(two_models)
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("hasten: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_hash_of_the_whole_file_is_checked(two_models: Path, tmp_path: Path) -> None:
    packed = pack(two_models).path
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    packed.write_bytes(data)
    with pytest.raises(IntegrityError, match="was changed after it was packed"):
        hasten.unpack(packed, tmp_path / "out.hasten")
    assert not (tmp_path / "out.hasten").exists()


def test_an_address_on_the_command_line_is_unpacked_or_refused_in_one_line(
    two_models: Path, web: str, tmp_path: Path
) -> None:
    pack(two_models)
    run = CliRunner()
    done = run.invoke(main, ["unpack", f"{web}/model.hastenz", "--out", str(tmp_path / "b.hasten")])
    assert done.exit_code == 0, done.output
    assert _same(tmp_path / "b.hasten", two_models)
    with pytest.raises(InputError, match="is an address, and only"):
        places([f"m={web}/model.hastenz"])


def test_only_an_older_packed_bundle_is_replaced(two_models: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt exists and isn't a packed bundle"):
        pack(two_models, tmp_path / "notes.txt")
    pack(two_models)
    pack(two_models)


def test_a_server_takes_a_packed_bundle(two_models: Path) -> None:
    packed = pack(two_models).path
    assert places([str(packed)]) == [("model", "1", packed)]
    opened = open_bundle(packed, ModelSettings(most_rows=1))
    try:
        assert opened.path == packed
        assert opened.standby is not None
    finally:
        opened.close()


def test_the_commands(two_models: Path, tmp_path: Path) -> None:
    run = CliRunner()
    packed = run.invoke(main, ["pack", str(two_models)])
    assert packed.exit_code == 0, packed.output
    assert "less than the" in packed.output
    assert " of its unpacked files" in packed.output
    assert "take as long as before" in packed.output
    shown = run.invoke(main, ["inspect", str(tmp_path / "model.hastenz")])
    assert "all intact" in shown.output
    size = size_in_words((tmp_path / "model.hastenz").stat().st_size)
    assert f"packed:       {size}; {STEADY}" in shown.output
    assert "packed:" not in run.invoke(main, ["inspect", str(two_models)]).output
    again = run.invoke(
        main, ["unpack", str(tmp_path / "model.hastenz"), "--out", str(tmp_path / "b.hasten")]
    )
    assert again.exit_code == 0, again.output
    assert _same(tmp_path / "b.hasten", two_models)
    missing = run.invoke(main, ["unpack", str(tmp_path / "none.hastenz")])
    assert missing.exit_code == 2
    assert "no packed bundle at" in missing.output
