"""Every codec of packed bundles, and the coders in C against those in Python."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hasten.bundle.packing.blocks import Codecs, Coder
from hasten.bundle.packing.codecs import huffman, native, planes, rans, rows, sparse
from hasten.bundle.packing.codecs.base import Codec, Inner, Outer, behind_lengths, first_block
from hasten.bundle.packing.codecs.codebook import Codebook
from hasten.bundle.packing.codecs.grid import Grid
from hasten.bundle.packing.codecs.huffman import Huffman
from hasten.bundle.packing.codecs.planes import Planes
from hasten.bundle.packing.codecs.rans import Rans
from hasten.bundle.packing.codecs.raw import Raw
from hasten.bundle.packing.codecs.sparse import Sparse
from hasten.bundle.packing.codecs.tables import counts_of, entropy_bytes, stated
from hasten.bundle.packing.codecs.zstandard import Zstandard
from hasten.core.tensors import Array
from hasten.errors import IntegrityError
from hasten.testing.codec_tests import (
    CodecTests,
    chunks,
    damaged,
    grid,
    inner,
    outer,
    pruned_rows,
)


class TestRaw(CodecTests):
    codec = Raw()


class TestZstandard(CodecTests):
    codec = Zstandard()


class TestHuffman(CodecTests):
    codec = Huffman()


class TestRans(CodecTests):
    codec = Rans()


class TestPlanes(CodecTests):
    codec = Planes()


class TestCodebook(CodecTests):
    codec = Codebook()


class TestSparse(CodecTests):
    codec = Sparse()


class TestGrid(CodecTests):
    codec = Grid()


@dataclass(frozen=True)
class HuffmanInPython(Huffman):
    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        counts = counts_of(data)
        held = np.count_nonzero(counts)
        return huffman.encoded(data, huffman.code_lengths(counts)) if held > 1 else None

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        huffman.decode_into(coded, out)


@dataclass(frozen=True)
class RansInPython(Rans):
    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        rans.decode_into(coded, out)


class TestHuffmanInPython(CodecTests):
    codec, largest = HuffmanInPython(), 50_000
    rounds = 2


class TestRansInPython(CodecTests):
    codec, largest = RansInPython(), 24_000
    rounds = 1


@pytest.fixture(scope="module")
def coders() -> native.Coders:
    found = native.for_coding()
    assert found is not None, "there is no C compiler here"
    return found


SMALL = [data for _, data, _ in chunks() if len(data) <= 40_000]


def verdict(decode: Codec, block: bytes, n: int) -> bytes | None:
    out = np.zeros(n, np.uint8)
    try:
        decode.decode(memoryview(block), out, 1, lambda *_: None)
    except IntegrityError:
        return None
    return out.tobytes()


@pytest.mark.usefixtures("coders")
def test_huffman_in_c_and_in_python_make_the_same_bytes() -> None:
    for data in SMALL:
        one, other = Huffman(), HuffmanInPython()
        assert one.encode(data, 1, bytes) == other.encode(data, 1, bytes)  # type: ignore[arg-type]


def test_rans_in_c_and_in_python_make_the_same_bytes(coders: native.Coders) -> None:
    for data in SMALL:
        for precision, lanes in ((8, 1), (10, 8), (12, 4), (15, 2)):
            freq = rans.frequencies(counts_of(data), precision)
            in_c = coders.rans_encode(data, freq, precision, lanes)
            assert in_c == rans.encoded(data, freq, precision, lanes)


@pytest.mark.usefixtures("coders")
@pytest.mark.parametrize(
    ("in_c", "in_python"), [(Huffman(), HuffmanInPython()), (Rans(), RansInPython())]
)
def test_decoders_in_c_and_in_python_refuse_the_same(in_c: Codec, in_python: Codec) -> None:
    blocks = [
        (data, block)
        for data in SMALL
        if len(data) <= 1000 and (block := in_c.encode(data, 1, lambda *_: b"")) is not None
    ]
    refused = 0
    for at, (data, block) in enumerate(blocks):
        for bad in (block, *damaged(block, blocks[at - 1][1], 8)):
            found = verdict(in_c, bad, len(data))
            assert found == verdict(in_python, bad, len(data)), (len(data), bad.hex())
            refused += found is None
    assert refused > 8 * len(blocks)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("precision", [8, 12, 15])
def test_any_precision_and_number_of_states_is_read(
    precision: int, lanes: int, coders: native.Coders
) -> None:
    data = SMALL[8][:5003]
    freq = rans.frequencies(counts_of(data), precision)
    coded = rans.table(freq, precision, lanes) + coders.rans_encode(data, freq, precision, lanes)
    for codec in (Rans(), RansInPython()):
        assert verdict(codec, coded, len(data)) == data.tobytes()


def test_positions_and_planes_in_c_are_those_in_python(coders: native.Coders) -> None:
    rng = np.random.default_rng(3)
    for width in (1, 2, 4, 8):
        places = np.flatnonzero(rng.random(4000) < 0.01)
        gaps, values = sparse.gaps_of(places), rng.integers(1, 256, len(places) * width, np.uint8)
        for given in (gaps, gaps[:-1], np.append(gaps, np.uint8(3)), gaps[::-1].copy()):
            told = []
            for decode in (coders.spread, sparse.spread):
                out = np.zeros(4000 * width, np.uint8)
                try:
                    decode(given, values, width, out)
                    told.append(out.tobytes())
                except IntegrityError:
                    told.append(b"refused")
            assert told[0] == told[1]
        if width > 1:
            parts = rng.integers(0, 256, (width, 999), np.uint8)
            outs = np.empty((2, 999 * width), np.uint8)
            coders.join(parts, outs[0])
            planes.join(parts, outs[1])
            assert (outs[0] == outs[1]).all()


@pytest.mark.parametrize("kept", [1.0, 0.2, 0.02])
def test_rans_is_within_a_hundredth_of_the_bound(kept: float) -> None:
    rng = np.random.default_rng(1)
    drawn = rng.normal(0, 25, 1 << 18).clip(-127, 127).round() * (rng.random(1 << 18) < kept)
    data = drawn.astype(np.int8).view(np.uint8)
    block = Rans().encode(data, 1, lambda *_: b"")
    freq = rans.frequencies(counts_of(data), 12)
    assert block is not None
    assert len(block) <= 1.01 * (entropy_bytes(counts_of(data)) + len(rans.table(freq, 12, 8)))


def test_code_lengths_are_huffmans_where_the_limit_allows_and_full_where_not() -> None:
    counts = np.zeros(256, np.int64)
    counts[[3, 5, 9, 200]] = [50, 25, 15, 10]
    assert huffman.code_lengths(counts)[[3, 5, 9, 200]].tolist() == [1, 2, 3, 3]
    counts[:40] = 2 ** np.arange(40)
    lengths = huffman.code_lengths(counts)[counts > 0].astype(int)
    assert lengths.max() == huffman.LONGEST
    assert sum(2.0**-lengths) == 1


def test_frequencies_fill_the_table_and_leave_out_no_byte() -> None:
    rng = np.random.default_rng(2)
    for precision in (8, 12, 15):
        for _ in range(20):
            counts = rng.geometric(0.001, 256) * (rng.random(256) < rng.random())
            counts[7] = 1
            freq = rans.frequencies(counts, precision)
            assert freq.sum() == 1 << precision
            assert ((freq > 0) == (counts > 0)).all()


def test_a_table_states_the_shortest_run_around_zero() -> None:
    held = np.zeros(256, bool)
    held[[250, 255, 0, 3]] = True
    assert stated(held) == (250, 10)
    assert stated(np.ones(256, bool))[1] == 256


@pytest.mark.parametrize(
    ("codec", "coded", "said"),
    [
        (Huffman(), "00 01 01 00000000 00000000 00000000", "its table states no code"),
        (Huffman(), "00 02 21 12 00000000 00000000 00000000", "its table states no code"),
        (Huffman(), "00 01 11 ffffffff 00000000 00000000", "its streams are longer than it is"),
        (Huffman(), "00 01 11 00000000 00000000 00000000", "it ends before all bytes are decoded"),
        (Rans(), "04 00 01 01 000000", "its table states no code"),
        (Rans(), "00 00 01 02 8001c000 00000100", "its table states no code"),
        (Rans(), "04 07 00 00 00000000", "its states don't fit its table"),
        (Rans(), "04 07 00 00 00000100 00", "bits are left after its last byte"),
        (Sparse(), "ffffffff 00000000", "it states 4,294,967,295 of 8 elements by 0 gaps"),
    ],
)
@pytest.mark.usefixtures("coders")
def test_a_damaged_table_is_told(codec: Codec, coded: str, said: str) -> None:
    in_python = {Huffman: HuffmanInPython(), Rans: RansInPython()}.get(type(codec), codec)
    for one in (codec, in_python):
        out = np.zeros(8, np.uint8)
        with pytest.raises(IntegrityError) as error:
            one.decode(memoryview(bytes.fromhex(coded)), out, 1, lambda *_: None)
        assert str(error.value) == said


def test_an_index_beyond_a_codebook_is_told() -> None:
    out = np.zeros(8, np.uint8)
    coded = bytes.fromhex("02000000 04000000 01000200 04000000 00010002")

    def outer(block: memoryview, part: Array, width: int) -> None:
        part[:] = np.frombuffer(block, np.uint8)

    with pytest.raises(IntegrityError) as error:
        Codebook().decode(memoryview(coded), out, 2, outer)
    assert str(error.value) == "index 2 lies outside its 2 values"


@pytest.mark.parametrize("shape", [(64, 96), (40, 1000), (500, 25)])
def test_rows_and_columns_of_their_own_magnitudes_are_found(shape: tuple[int, int]) -> None:
    data = grid(*shape)
    others = Coder((Raw(), Zstandard(), Huffman(), Rans(), Sparse())).code(data, 1)
    block = Coder((Raw(), Zstandard(), Huffman(), Rans(), Sparse(), Grid())).code(data, 1)
    assert block[:5] == bytes([5]) + shape[1].to_bytes(4, "little")
    assert len(block) < 0.9 * len(others)


@pytest.mark.parametrize("zeros", [0.8, 0.9, 0.95, 0.97])
def test_sparse_rows_take_less_than_the_entropy_bound(zeros: float) -> None:
    data = pruned_rows(256, 512, zeros)
    bound = entropy_bytes(counts_of(data))
    others = Coder((Raw(), Zstandard(), Huffman(), Rans(), Sparse())).code(data, 1)
    block = Coder((Raw(), Zstandard(), Huffman(), Rans(), Sparse(), Grid())).code(data, 1)
    assert len(block) < bound < len(others)
    # Classes of columns follow those of rows, each block behind its length: they are all one.
    assert block[:5] == bytes([5]) + (512).to_bytes(4, "little")
    _, rest = first_block(memoryview(block)[5:])
    part, _ = first_block(rest)
    columns = np.empty(512, np.uint8)
    Codecs(("raw", "zstd", "huffman", "rans", "sparse")).decode(part, columns, 1)
    assert not columns.any()


def test_classes_arent_looked_for_where_bytes_repeat() -> None:
    text = np.frombuffer(b"a stranger reads it. " * 250, np.uint8)
    assert not Grid().promising(text, 1, len(Zstandard().encode(text, 1, inner) or text))
    assert Grid().promising(text, 1, len(text))


def test_the_length_of_a_row_is_found_where_nearly_all_is_zero() -> None:
    # Rows have about as many zeros, and what is left is larger in some.
    rng = np.random.default_rng(5)
    sizes = np.repeat(rng.choice([4, 20, 90], 96), 480).astype(np.int8)
    alike = (sizes * (rng.random(len(sizes)) < 0.03)).view(np.uint8)
    # What is left is as large everywhere, and some rows have more of it.
    shares = np.repeat(rng.choice([0.01, 0.03, 0.06], 96), 480)
    more = rng.integers(1, 100, len(shares), np.uint8) * (rng.random(len(shares)) < shares)
    assert [rows.row_length(each) for each in (alike, more)] == [480, 480]
    assert rows.row_length(rng.permutation(more)) == 0


def test_classes_of_rows_are_the_kinds_of_rows() -> None:
    rng = np.random.default_rng(6)
    kinds = np.tile([0, 1, 1], 40)
    drawn = rng.normal(0, np.where(kinds, 0.7, 8.0)[:, None], (120, 300)).round()
    data = drawn.clip(-127, 127).astype(np.int8).view(np.uint8).ravel()
    classes, bits = rows.row_classes(data, 300)
    assert set(zip(kinds.tolist(), classes.tolist(), strict=True)) in (
        {(0, 0), (1, 1)},
        {(0, 1), (1, 0)},
    )
    block = Coder((Raw(), Rans(), Grid())).code(data, 1)
    assert 0.98 < bits / 8 / len(block) < 1.02


def test_rows_of_one_column_class_are_put_where_they_belong() -> None:
    out = np.zeros(24, np.uint8)
    # The classes of the rows are 255, 0 and 255, and 1 is added to each: the second row comes last.
    coded = bytes.fromhex("08000000 03000000 ff00ff 08000000") + bytes([1] * 8)
    parts = behind_lengths([bytes(range(16)), bytes(range(40, 48))])
    Grid().decode(memoryview(coded + parts), out, 1, outer)
    assert out.tolist() == [*range(8), *range(40, 48), *range(8, 16)]


def test_what_has_no_such_rows_is_coded_as_before() -> None:
    rng = np.random.default_rng(4)
    alike = rng.normal(0, 2, 300 * 200).round().astype(np.int8).view(np.uint8)
    dense = (grid(300, 200).view(np.int8) * 8).view(np.uint8) + rng.integers(
        0, 60, 60_000, np.uint8
    )
    floats = np.exp2(grid(64, 96).view(np.int8) / 4).astype(np.float32).view(np.uint8)
    with_it, without = (Raw(), Rans(), Planes(), Grid()), (Raw(), Rans(), Planes())
    for data, width in ((alike, 1), (dense, 1), (floats, 4)):
        assert Coder(with_it).code(data, width) == Coder(without).code(data, width)


@pytest.mark.parametrize(
    ("coded", "said"),
    [
        ("", "it states no rows of elements of 1 bytes"),
        ("00000000", "8 elements are no rows of 0"),
        ("03000000", "8 elements are no rows of 3"),
        ("10000000", "8 elements are no rows of 16"),
        ("04000000 ffffffff 0001", "it ends within a part: 6 bytes are left"),
        ("04000000 03000000 000100", "a part has 3 bytes, but 2 are needed"),
        ("04000000 02000000 0001 04000000 00000000 05000000 0102030405", "a part has 5 bytes"),
        (
            "04000000 02000000 0000 04000000 00000000 08000000 0102030405060708 00",
            "1 bytes follow its last class",
        ),
    ],
)
def test_a_damaged_grid_is_told(coded: str, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        Grid().decode(memoryview(bytes.fromhex(coded)), np.zeros(8, np.uint8), 1, outer)


def test_classes_of_rows_and_columns_are_added_modulo_256() -> None:
    out = np.zeros(8, np.uint8)
    # The first row has the classes 1, 0, 0 and 1, the second one 0, 255, 255 and 0.
    coded = "04000000 02000000 00ff 04000000 01000001 04000000 10203040 02000000 4151 02000000 7787"
    Grid().decode(memoryview(bytes.fromhex(coded)), out, 1, outer)
    assert out.tobytes().hex() == "4110205130778740"


@pytest.mark.parametrize("length", [1, 1 << 11, 1 << 21])
def test_decoding_a_grid_takes_a_few_times_the_memory_of_its_chunk(length: int) -> None:
    """A chunk may be as large as a file, which a few bytes of Zstandard state."""
    data = np.arange(1 << 21, dtype=np.uint8)
    rows, columns = np.arange(len(data) // length, dtype=np.uint8), np.zeros(length, np.uint8)
    columns[length // 2 :] = 3
    classes = np.add.outer(rows, columns).ravel()
    parts = [rows, columns, *(data[classes == each] for each in np.unique(classes))]
    coded = [b"\1" + (Zstandard().encode(part, 1, inner) or b"") for part in parts]
    block = b"\0" + length.to_bytes(4, "little") + behind_lengths(coded)
    out = np.zeros(len(data), np.uint8)
    tracemalloc.start()
    try:
        Codecs(("grid", "zstd")).decode(memoryview(block), out, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(out, data)
    assert peak < 6 * len(data)


def test_a_zero_of_either_sign_and_each_nan_keep_their_bits_through_nested_codecs() -> None:
    coder = Coder((Raw(), Huffman(), Rans(), Planes(), Sparse(), Codebook()))
    codecs = Codecs(coder.names)
    for name, data, width in chunks():
        if len(data) <= 6000 and width > 1:
            out = np.empty(len(data), np.uint8)
            codecs.decode(memoryview(coder.code(data, width)), out, width)
            assert out.tobytes() == data.tobytes(), name


def test_without_a_compiler_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HASTEN_CC", "no-such-compiler")
    making = native.unmade()
    with caplog.at_level(logging.WARNING, "hasten.packing"):
        assert making.get(None) is None
        assert making.get(None) is None
        assert making.get(1 << 20) is None
    (line,) = caplog.messages
    assert line.startswith("packed tensors are coded and decoded without compiled C")
    assert "HASTEN_CC" in line


def test_threads_share_one_compilation_and_later_processes_need_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    making, found = native.unmade(), list[native.Coders | None]()
    threads = [threading.Thread(target=lambda: found.append(making.get(None))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is not None
    assert all(one is found[0] for one in found)
    monkeypatch.setenv("HASTEN_CC", "no-such-compiler")
    assert native.unmade().get(1) is not None


def test_a_small_decode_starts_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CC", "no-such-compiler")
    making = native.unmade()
    assert making.get(1000) is None
    assert making._thread is None
