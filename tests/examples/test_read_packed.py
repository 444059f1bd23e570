"""The second reader, which was written from the page about the format, reads what hasten writes."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.bundle.packing.test_damaged_files import IMPOSSIBLE
from tests.support import packed_files
from tests.support.bundles import built, stated
from tests.support.packed_files import Parts, changed

from hasten.bundle import read, write
from hasten.bundle.packing.blocks import all_codecs
from hasten.bundle.packing.difference import difference
from hasten.bundle.packing.layout import Base, Head, Item, Piece, Relation
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.source import MemorySource
from hasten.bundle.packing.writer import Cut, pack, write_packed
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.testing import models
from hasten.testing.codec_tests import grid, pruned_rows

READER = Path(__file__).parents[2] / "examples" / "read_packed.py"
REFUSALS = (ValueError, KeyError, IndexError, TypeError, StopIteration, AttributeError)
EMPTY = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""Hash of "{}"."""


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_packed", READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return packed_files.write(tmp_path_factory.mktemp("packed") / "p.hastenz").read_bytes()


def test_it_uses_nothing_of_hasten() -> None:
    text = READER.read_text()
    assert "import hasten" not in text
    assert "from hasten" not in text
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 200


def test_it_unpacks_a_bundle_and_checks_every_hash(tmp_path: Path) -> None:
    part = built(tmp_path, models.linear_classifier(tmp_path), OnnxRuntime(threads=1))
    bundle = tmp_path / "model.hasten"
    manifest = write(bundle, stated(part, part), {"trials.json": [1]}, {"report.html": b"<p>"})
    packed = pack(bundle, tmp_path / "model.hastenz").path
    subprocess.run([sys.executable, READER, packed, tmp_path / "again"], check=True)
    assert read(tmp_path / "again").files == manifest.files


def test_it_reads_every_codec_alike(reader: ModuleType, data: bytes) -> None:
    used = {chunk[0] for chunks in Parts.of(data).chunks for chunk in chunks}
    assert len(used) == len(all_codecs()) == len(reader.DECODERS)
    assert reader.unpack(data) == packed_files.unpacked_files()


@pytest.mark.parametrize("matrix", [grid(64, 96), pruned_rows(256, 512, 0.9)], ids=["both", "rows"])
def test_it_reads_classes_of_rows_alone_and_of_both_sides(
    reader: ModuleType, tmp_path: Path, matrix: Array
) -> None:
    item = Item("w", "int8", (len(matrix),), 1, (Piece(0, 0, len(matrix)),), len(matrix))
    head = Head((("model.bin", len(matrix)),), (), ())
    write_packed(tmp_path / "w.hastenz", head, iter([Cut(item, matrix)]), all_codecs())
    data = (tmp_path / "w.hastenz").read_bytes()
    parts = Parts.of(data)
    assert parts.record["codecs"][parts.chunks[0][0][0]] == "grid"
    assert reader.unpack(data) == {"model.bin": matrix.tobytes()}


def test_it_makes_a_newer_bundle_of_an_older_one(reader: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "manifest.json").write_bytes(b"{}")
    files, cuts, place = [], [], 0
    ways: list[tuple[Relation, int]] = [
        *(("minus", width) for width in (1, 2, 4, 8)),
        *(("zigzag", width) for width in (2, 4, 8)),
        ("xor", 4),
        ("same", 1),
    ]
    for number, (relation, width) in enumerate(ways):
        old = rng.integers(0, 256, 80, np.uint8)
        new = old if relation == "same" else old + rng.integers(0, 3, 80, np.uint8)
        (tmp_path / str(number)).write_bytes(old.tobytes())
        files.append((str(number), 80))
        item = Item("t", "any", (80 // width,), width, (Piece(0, place, 80),), 80)
        item = replace(item, relation=relation, since=(Piece(number, 0, 80),))
        empty = np.empty(0, np.uint8)
        apart = empty if relation == "same" else difference(new, old, relation, width)
        cuts.append((Cut(item, apart), new.tobytes()))
        place += 80
    known = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of "{}"
    head = Head((("model.bin", place),), (), (), Base(known, tuple(files)))
    write_packed(tmp_path / "d.hastenz", head, iter(cut for cut, _ in cuts), all_codecs())
    found = reader.unpack((tmp_path / "d.hastenz").read_bytes(), tmp_path)
    assert found == {"model.bin": b"".join(new for _, new in cuts)}


@pytest.mark.parametrize(
    ("stated", "said"),
    [(80, "too few bytes for its files"), (1 << 40, "the older bundle's files have other sizes")],
)
def test_a_difference_that_claims_to_be_large_is_refused_before_memory_is_taken(
    reader: ModuleType, tmp_path: Path, stated: int, said: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    (tmp_path / "old").write_bytes(bytes(80))
    large = 1 << 38
    pieces = tuple(Piece(0, place, 80) for place in range(0, 800, 80))
    old = tuple(Piece(0, 0, 80) for _ in pieces)
    item = Item("t", "any", (800,), 1, pieces, 800, relation="same", since=old)
    claim = Item("c", "any", (large,), 1, (Piece(0, 800, large),), large, relation="same")
    claim = replace(claim, since=(Piece(0, 0, large),))
    base = Base(EMPTY, (("old", stated),))
    made = packed_files.of_head(Head((("m.bin", 800 + large),), (), (item, claim), base))
    with pytest.raises(ValueError, match=said):
        reader.unpack(made, tmp_path)


@pytest.mark.parametrize(
    ("files", "since", "said"),
    [
        (1000, [(0, 80)], "a path occurs twice"),
        (1, [(0, 80)] * 1000, "'t': other old bytes"),
        (1, [(0, 80_000), (0, -79_920)], "a piece has no bytes, or no place"),
        (1, [(-80, 80)], "a piece has no bytes, or no place"),
    ],
    ids=["a file many times", "bytes many times", "a negative length", "a negative offset"],
)
def test_a_difference_takes_no_older_bytes_more_often_than_it_has_room_for(
    reader: ModuleType, tmp_path: Path, files: int, since: list[tuple[int, int]], said: str
) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    (tmp_path / "old").write_bytes(bytes(80))
    old = tuple(Piece(0, *place) for place in since)
    item = Item("t", "any", (80,), 1, (Piece(0, 0, 80),), 80, relation="same", since=old)
    base = Base(EMPTY, (("old", 80),) * files)
    made = packed_files.of_head(Head((("m.bin", 80),), (), (item,), base))
    with pytest.raises(ValueError, match=said):
        reader.unpack(made, tmp_path)
    with pytest.raises(InputError):
        Packed.open(MemorySource(made))


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_head_that_states_what_cant_be_is_refused(
    reader: ModuleType, data: bytes, case: str
) -> None:
    change, _ = IMPOSSIBLE[case]
    with pytest.raises(REFUSALS):
        reader.unpack(changed(data, change))


@pytest.mark.seconds
def test_it_refuses_and_reads_the_same_files_as_hasten(reader: ModuleType, data: bytes) -> None:
    rng = random.Random(2)
    refused = 0
    for _ in range(40):
        parts = Parts.of(data)
        chunks = parts.chunks[rng.randrange(len(parts.chunks))] or parts.chunks[0]
        at = rng.randrange(len(chunks))
        chunk = bytearray(chunks[at])
        chunk[min(rng.randrange(len(chunk)), rng.randrange(len(chunk)))] = rng.randrange(256)
        chunks[at] = bytes(chunk)
        made = parts.signed(packed_files.quickly)
        try:
            expected = packed_files.read_all(made)
        except InputError:
            refused += 1
            with pytest.raises((*REFUSALS, reader.zstd.ZstdError)):
                reader.unpack(made)
        else:
            assert reader.unpack(made) == expected
    assert 5 < refused < 35
