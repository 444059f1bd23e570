"""What a difference holds, and the newer bundle that it makes of the older one, or doesn't."""

from __future__ import annotations

import contextlib
import hashlib
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tests.support import packed_files
from tests.support.bundles import built, stated

import hasten
from hasten.bundle import write
from hasten.bundle.manifest import MANIFEST_BYTES
from hasten.bundle.packing import layout, unpacking, update
from hasten.bundle.packing.difference import RELATIONS, difference
from hasten.bundle.packing.layout import Base, Head, Item, Piece
from hasten.bundle.packing.matching import matches
from hasten.bundle.packing.reader import Packed, apply
from hasten.bundle.packing.source import FileSource
from hasten.cli import main
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError, IntegrityError

TEXT = """<ir_version: 10, opset_import: ["": 17]>
    quantized (float[batch, 128] x) => (float[batch, 128] y) {
        wide = DequantizeLinear(w8, scale, zero)
        h = MatMul(x, wide)
        y = MatMul(h, w32)
    }"""
EVIDENCE = {"trials.json": [{"latency_ns": 10_000 + 7 * n % 1001} for n in range(400)]}


def trained(folder: Path, seed: int = 0) -> tuple[dict[str, Array], Path]:
    """Return weights by name, and an ONNX file with them; another seed's are a little other weights."""
    rng = np.random.default_rng(0)
    w8 = np.clip(rng.normal(0, 40, (128, 128)), -127, 127).astype(np.int8)
    w32 = rng.normal(0, 1, (128, 128)).astype(np.float32)
    if seed:
        change = np.random.default_rng(seed)
        w8 = np.clip(w8 + (change.random(w8.shape) < 0.1), -127, 127).astype(np.int8)
        w32 = w32 * (1 + 1e-4 * change.normal(0, 1, w32.shape).astype(np.float32))
    weights: dict[str, Any] = {"w8": w8, "w32": w32, "scale": np.float32(0.01), "zero": np.int8(0)}
    model = onnx.parser.parse_model(TEXT)
    for name, data in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(data), name))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return weights, folder / "model.onnx"


def bundle_at(path: Path, seed: int = 0, **fields: Any) -> Path:
    work = path.with_name(f"work-{path.name}")
    work.mkdir()
    winner = built(work, trained(work / "model", seed)[1], OnnxRuntime(threads=1))
    report = "".join(f"<tr><td>{n}<td>{n * n}" for n in range(2000)).encode()
    said = f"<p>{fields.get('why', '')}".encode()
    write(path, stated(winner, winner, **fields), EVIDENCE, {"report.html": report + said})
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles old, tuned (of other weights) and judged (of another threshold)."""
    folder = tmp_path_factory.mktemp("bundles")
    bundle_at(folder / "old.hasten")
    bundle_at(folder / "tuned.hasten", seed=1, why="tuned", created="2026-02-02T00:00:00+00:00")
    bundle_at(folder / "judged.hasten", why="a threshold of 0.7")
    for name in ("old", "tuned"):
        hasten.pack(folder / f"{name}.hasten")
    hasten.pack(folder / "tuned.hasten", since=folder / "old.hasten")
    return folder


@pytest.fixture
def old(made: Path, tmp_path: Path) -> Path:
    """The older bundle, at a place of its own."""
    path = tmp_path / "fleet" / "model.hasten"
    path.parent.mkdir()
    hasten.unpack(made / "old.hastenz", path)
    return path


@pytest.fixture
def packed(made: Path) -> Path:
    return made / "tuned-since-old.hastenz"


def content(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def refused(packed: Path, old: Path, out: Path | None = None) -> str:
    """What is said where the older bundle can't be replaced; nothing changed."""
    before = content(old.parent)
    with pytest.raises(InputError) as error:
        hasten.unpack(packed, out or old, base=old)
    assert content(old.parent) == before
    assert "\n" not in str(error.value)
    return str(error.value)


# -- what is in it


@pytest.mark.parametrize("new", ["old.hasten", "old.hastenz"])
@pytest.mark.parametrize("base", ["old.hasten", "old.hastenz"])
def test_the_newer_bundle_comes_back_bit_for_bit(
    made: Path, tmp_path: Path, base: str, new: str
) -> None:
    file = tmp_path / "difference.hastenz"
    hasten.pack(made / new.replace("old", "tuned"), file, since=made / base)
    hasten.unpack(file, tmp_path / "again.hasten", base=made / base)
    assert content(tmp_path / "again.hasten") == content(made / "tuned.hasten")


def test_the_newer_bundle_is_packed_again_where_that_is_wanted(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.hastenz"
    file.write_bytes((made / "old.hastenz").read_bytes())
    hasten.unpack(made / "tuned-since-old.hastenz", file, base=file)
    assert file.read_bytes() == (made / "tuned.hastenz").read_bytes()


def test_weights_that_changed_a_little_take_little(made: Path, packed: Path) -> None:
    """A weight in ten of int8 changed by one; the others in the last 11 of 32 bits."""
    with FileSource(packed) as source:
        items = {item.name: item for item in Packed.open(source).head.items}
    assert items["w8"].relation in ("xor", "minus")
    assert items["w8"].coded_bytes < 0.1 * 128 * 128
    assert items["w32"].relation == "zigzag"
    assert items["w32"].coded_bytes < 0.45 * 4 * 128 * 128
    assert packed.stat().st_size < 0.5 * (made / "tuned.hastenz").stat().st_size


def test_tensors_of_a_difference_are_cut_at_whole_rows(
    old: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.bundle.packing.writer._CHUNK_ELEMENTS", 1000)
    apart = hasten.pack(made / "tuned.hasten", tmp_path / "apart.hastenz", since=old).path
    with FileSource(apart) as source:
        items = {item.name: item for item in Packed.open(source).head.items}
    assert (items["w8"].relation in ("xor", "minus"), items["w8"].chunk) == (True, 7 * 128)
    assert (items["w32"].relation, items["w32"].chunk) == ("zigzag", 7 * 128 * 4)
    hasten.unpack(apart, tmp_path / "again.hasten", base=old)
    assert content(tmp_path / "again.hasten") == content(made / "tuned.hasten")


def test_tensors_are_found_again_where_a_runtime_numbers_their_names_anew(
    made: Path, tmp_path: Path
) -> None:
    model = onnx.load(made / "work-tuned.hasten" / "model" / "model.onnx")
    for weight in model.graph.initializer:
        weight.name = weight.name.replace("w32", "Constant_9")
    for node in model.graph.node:
        node.input[:] = [name.replace("w32", "Constant_9") for name in node.input]
    onnx.save(model, tmp_path / "model.onnx")
    winner = built(tmp_path, tmp_path / "model.onnx", OnnxRuntime(threads=1))
    write(tmp_path / "new.hasten", stated(winner, winner), EVIDENCE)
    sizes = hasten.pack(tmp_path / "new.hasten", since=made / "old.hasten").tensors
    (coded,) = [one.packed_bytes for one in sizes if one.name == "Constant_9"]
    assert coded < 0.45 * 4 * 128 * 128


def with_small_tensors(path: Path, seed: int, more: int) -> Path:
    """A bundle with 100 small tensors, and at two places some that another bundle may not have."""
    work = path.with_name(f"work-{path.name}")
    work.mkdir()
    model = onnx.load(trained(work / "model")[1])
    rng, change = np.random.default_rng(7), np.random.default_rng(seed)
    for number in range(100):
        data = rng.normal(1, 0.1, 400 + number % 3) * (1 + seed * 1e-5 * change.normal())
        fresh = change.normal(1, 0.1, 50) if number in (30, 60) else ()
        for name, one in ((f"fresh{number}", fresh), (f"small{seed}_{number}", data)):
            if len(one) and (name.startswith("small") or more):
                array = np.asarray(one, np.float32)
                model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, work / "small.onnx")
    winner = built(work, work / "small.onnx", OnnxRuntime(threads=1))
    write(path, stated(winner, winner), EVIDENCE)
    return path


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 1), (1, 0)])
def test_small_tensors_are_paired_where_one_bundle_has_more_of_them(
    tmp_path: Path, before: int, after: int
) -> None:
    old = with_small_tensors(tmp_path / "old.hasten", 0, before)
    new = with_small_tensors(tmp_path / "new.hasten", 1, after)
    made = hasten.pack(new, since=old)
    coded = [one.packed_bytes for one in made.tensors if "small tensors" in one.name]
    assert 0 < sum(coded) < 0.5 * 4 * 400 * 100
    again = hasten.unpack(made.path, tmp_path / "again.hasten", base=old)
    assert content(again) == content(new)


def with_words(path: Path, seed: int, words: int) -> Path:
    """A bundle with a table of so many words; another seed's are a little other numbers."""
    work = path.with_name(f"work-{path.name}")
    work.mkdir()
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 17]>
        words (int64[batch, 1] ids) => (float[batch, 1, 64] y) { y = Gather(table, ids) }""")
    table = np.random.default_rng(5).normal(0, 1, (words, 64))
    table *= 1 + 1e-5 * np.random.default_rng(seed).normal(0, 1, table.shape)
    model.graph.initializer.append(numpy_helper.from_array(table.astype(np.float32), "table"))
    onnx.save(model, work / "words.onnx")
    winner = built(work, work / "words.onnx", OnnxRuntime(threads=1))
    write(path, stated(winner, winner), EVIDENCE)
    return path


@pytest.mark.parametrize(("before", "after"), [(300, 320), (320, 300)])
def test_rows_that_both_tensors_have_are_paired_where_one_has_more_of_them(
    tmp_path: Path, before: int, after: int
) -> None:
    old = with_words(tmp_path / "old.hasten", 0, before)
    new = with_words(tmp_path / "new.hasten", 1, after)
    made = hasten.pack(new, since=old)
    with FileSource(made.path) as source:
        items = [item for item in Packed.open(source).head.items if item.name == "table"]
    shapes = [(item.relation, item.shape) for item in items]
    assert shapes == [("zigzag", (300, 64)), *([("", (20, 64))] if after > before else [])]
    assert items[0].coded_bytes < 0.5 * 4 * 300 * 64
    again = hasten.unpack(made.path, tmp_path / "again.hasten", base=old)
    assert content(again) == content(new)


def test_where_only_a_threshold_changed_nearly_nothing_is_packed(
    made: Path, tmp_path: Path
) -> None:
    sizes = hasten.pack(made / "judged.hasten", tmp_path / "d.hastenz", since=made / "old.hasten")
    assert sizes.folder_bytes > 100_000
    assert sizes.packed_bytes < 1500


def test_weights_that_nothing_links_are_packed_as_they_are(made: Path, tmp_path: Path) -> None:
    """The older ones gain nothing: the difference is hardly larger than the bundle packed alone."""
    rng = np.random.default_rng(9)
    model = onnx.load(made / "work-old.hasten" / "model" / "model.onnx")
    for one in model.graph.initializer:
        if one.name == "w32":
            one.CopyFrom(numpy_helper.from_array(rng.random((128, 128), np.float32), "w32"))
    onnx.save(model, tmp_path / "model.onnx")
    winner = built(tmp_path, tmp_path / "model.onnx", OnnxRuntime(threads=1))
    write(tmp_path / "other.hasten", stated(winner, winner), {})
    alone = hasten.pack(tmp_path / "other.hasten")
    since = hasten.pack(tmp_path / "other.hasten", since=made / "old.hasten")
    sizes = {one.name: one.packed_bytes for one in since.tensors}
    assert sizes["w32"] == {one.name: one.packed_bytes for one in alone.tensors}["w32"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(w, r) for w in (1, 2, 4, 8) for r in ("xor", "minus", "zigzag")]),
    st.binary(min_size=8, max_size=64),
    st.binary(min_size=64, max_size=64),
)
def test_the_newer_bytes_come_back_whatever_they_are(
    way: tuple[int, Any], new: bytes, old: bytes
) -> None:
    width, relation = way
    size = len(new) // width * width
    newer, older = (np.frombuffer(data[:size], np.uint8) for data in (new, old))
    out = difference(newer, older, relation, width).copy()
    apply(out, older, relation, width)
    assert out.tobytes() == newer.tobytes()


def test_small_changes_of_either_sign_are_small_numbers() -> None:
    old = np.array([1.0, -1.0, 0.5], np.float32)
    new = np.nextafter(old, np.array([2, 2, 0], np.float32))
    apart = difference(new.view(np.uint8), old.view(np.uint8), "zigzag", 4)
    assert apart.view(np.uint32).tolist() == [2, 1, 1]
    assert set(RELATIONS) == {1, 2, 4, 8}


# -- stretches of bytes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=60), st.lists(st.integers(0, 12), max_size=60))
def test_stretches_are_apart_in_order_and_the_same_bytes(one: list[int], other: list[int]) -> None:
    new, old = (
        np.frombuffer(
            b"".join(hashlib.sha256(bytes([n])).digest()[: 7 + n] for n in numbers) or b"-",
            np.uint8,
        )
        for numbers in (one, other)
    )
    place = 0
    for match in matches(new, old):
        assert match.new >= place
        place = match.new + match.length
        assert bytes(new[match.new : place]) == bytes(old[match.old :][: match.length])
    assert place <= len(new)


def test_what_moved_and_what_stands_around_a_change_is_found() -> None:
    rng = np.random.default_rng(0)
    old = rng.integers(0, 256, 5000, np.uint8)
    new = np.concatenate(
        [old[3000:], old[:1000], rng.integers(0, 256, 5, np.uint8), old[1003:3000]]
    )
    found = [(match.new, match.old, match.length) for match in matches(new, old)]
    assert found == [(0, 3000, 2000), (2000, 0, 1000), (3005, 1003, 1997)]


# -- what is applied, and what isn't


def test_the_older_bundle_is_replaced_in_place(made: Path, packed: Path, old: Path) -> None:
    assert hasten.unpack(packed, old, base=old) == old
    assert content(old) == content(made / "tuned.hasten")
    assert list(old.parent.iterdir()) == [old]


def test_the_commands(made: Path, old: Path, tmp_path: Path) -> None:
    run, file = CliRunner(), tmp_path / "d.hastenz"
    words = ["pack", made / "tuned.hasten", "--since", old, "--out", file]
    packed = run.invoke(main, list(map(str, words)))
    assert packed.exit_code == 0, packed.output
    assert packed.output.startswith(f"{file}: ")
    words = ["unpack", file, "--base", old, "--out", old]
    done = run.invoke(main, list(map(str, words)))
    assert done.output == f"{old}: every file is whole\n"
    again = run.invoke(main, list(map(str, words)))
    assert (again.exit_code, again.output) == (0, done.output)  # a device may try twice


def test_another_base_is_named_with_the_one_that_is_meant(
    made: Path, packed: Path, tmp_path: Path
) -> None:
    before, here = (
        hashlib.sha256((made / name / "manifest.json").read_bytes()).hexdigest()[:12]
        for name in ("old.hasten", "tuned.hasten")
    )
    other = made / "tuned.hasten"
    assert refused(packed, other, tmp_path / "out.hasten") == (
        f"{packed} is the difference to 'a label' of 2026-01-01 00:00:00 (manifest {before}); "
        f"{other} is 'a label' of 2026-02-02 00:00:00 (manifest {here}): give the bundle that it was "
        "made for"
    )


def test_a_whole_bundle_is_no_difference_and_the_other_way_round(
    made: Path, packed: Path, old: Path, tmp_path: Path
) -> None:
    whole = made / "tuned.hastenz"
    assert refused(whole, old) == (
        f"{whole} is a whole bundle, not a difference: unpack it without --base"
    )
    with pytest.raises(InputError, match="is only the difference to an older bundle"):
        hasten.unpack(packed, tmp_path / "out.hasten")
    with pytest.raises(InputError, match="is only the difference to an older bundle"):
        hasten.load(packed)


def test_a_difference_that_is_cut_off_anywhere_changes_nothing(
    packed: Path, old: Path, tmp_path: Path
) -> None:
    data, cut = packed.read_bytes(), tmp_path / "cut.hastenz"
    for length in (0, 7, 40, 300, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        assert str(cut) in refused(cut, old)


def test_a_flipped_bit_anywhere_changes_nothing(packed: Path, old: Path, tmp_path: Path) -> None:
    data, flipped = packed.read_bytes(), tmp_path / "flipped.hastenz"
    said = []
    for place in (*range(3, len(data), len(data) // 12), len(data) - 1):
        flipped.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        said.append(refused(flipped, old))
    assert any("the tensor 'w32' in model/model.onnx is damaged" in each for each in said)
    assert said[-1] == f"{flipped} was changed after it was packed; get the file again"


@pytest.mark.parametrize("how", ["changed", "cut off", "replaced"])
def test_a_base_that_changes_meanwhile_is_left_as_it_is(
    packed: Path, old: Path, made: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    write_files = unpacking.write_files

    def change_first(*words: Any) -> None:
        file = old / "model" / "model.onnx"
        if how == "changed":
            file.write_bytes(file.read_bytes()[:-9] + bytes(9))
        elif how == "cut off":
            file.write_bytes(file.read_bytes()[:5000])
        write_files(*words)
        if how == "replaced":
            hasten.unpack(made / "tuned.hastenz", old)

    monkeypatch.setattr(update, "write_files", change_first)
    with pytest.raises(InputError) as error:
        hasten.unpack(packed, old, base=old)
    assert str(error.value) == (
        f"{old} was changed while the difference to it was being unpacked: nothing was written; "
        "try again"
    )
    assert list(old.parent.iterdir()) == [old]


@contextlib.contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """Let files grow to so many bytes and no further, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:  # before pytest itself writes of this test into a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most_bytes", [100, 20_000])
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(
    packed: Path, old: Path, most_bytes: int
) -> None:
    with full_disk(most_bytes):
        said = refused(packed, old)
    assert re.fullmatch(f"can't write {old}/[a-z./]+: File too large", said)
    assert list(old.parent.iterdir()) == [old]


KILLED = """
import os, sys
from hasten.bundle.packing import update
update.put_in_place = lambda *words: os._exit(7)
update.unpack_since(sys.argv[1], sys.argv[2], sys.argv[2])
"""


def test_a_process_that_is_killed_leaves_the_old_bundle(
    packed: Path, old: Path, made: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, packed, old], check=False)
    assert done.returncode == 7
    assert content(old) == content(made / "old.hasten")
    assert [path for path in old.parent.iterdir() if not path.name.startswith(".")] == [old]
    hasten.unpack(packed, old, base=old)
    assert content(old) == content(made / "tuned.hasten")


# -- what strangers state


def test_a_difference_that_states_another_size_of_the_manifest_takes_no_room(
    old: Path, tmp_path: Path
) -> None:
    """A few bytes reserved as much of the disk as they claimed, because nobody compared this size."""
    known = hashlib.sha256((old / "manifest.json").read_bytes()).hexdigest()
    claimed = MANIFEST_BYTES
    whole = (Piece(0, 0, claimed),)
    item = Item("w", "uint8", (claimed,), 1, whole, 1 << 18, relation="same", since=whole)
    head = Head((("model/a", claimed),), (), (item,), Base(known, (("manifest.json", claimed),)))
    packed = tmp_path / "small.hastenz"
    packed.write_bytes(packed_files.of_head(head))
    assert refused(packed, old) == (
        f"{packed} is damaged: {old} has no 'manifest.json' of that size"
    )


def head_of(**fields: Any) -> bytes:
    base = Base("0" * 64, ((fields.pop("path", "model/a"), fields.pop("size", 8)),))
    pieces = fields.pop("pieces", (Piece(0, 0, 8),))
    since = fields.pop("since", (Piece(0, 0, 8),))
    size = sum(piece.length for piece in pieces)
    item = Item("x", "uint8", (size,), 1, pieces, 8, relation="same", since=since)
    return layout.to_bytes(Head((("new", size),), (), (item,), base))


def read_head(start: bytes) -> Head:
    _, sha256 = layout.head_length(start)
    return layout.read_head(start[layout.PREFIX.size :], sha256, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": "../../etc/shadow"}, "leads out of the bundle"),
        ({"path": "/etc/shadow"}, "leads out of the bundle"),
        ({"since": (Piece(0, 1, 8),)}, "lies outside the bundle's files"),
        ({"since": (Piece(1, 0, 8),)}, "lies outside the bundle's files"),
        ({"since": (Piece(0, 0, 4),)}, "differ in size"),
        ({"size": -1}, "has -1 bytes"),
    ],
)
def test_a_head_that_reads_outside_its_base_is_refused(fields: dict[str, Any], said: str) -> None:
    assert read_head(head_of()).base is not None
    with pytest.raises(IntegrityError, match=said):
        read_head(head_of(**fields))


def test_a_small_difference_to_a_small_base_does_not_claim_to_be_large() -> None:
    size, times = 1 << 20, 2000
    pieces = tuple(Piece(0, size * n, size) for n in range(times))
    with pytest.raises(IntegrityError, match="claim to unpack to 2,097,152,000"):
        read_head(head_of(pieces=pieces, since=(Piece(0, 0, size),) * times, size=size))
