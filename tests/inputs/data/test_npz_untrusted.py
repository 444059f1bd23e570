"""Archives that are damaged or made to harm: one line, and little memory."""

import io
import sys
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.npz import open_npz

X = np.random.default_rng(0).random((4, 3)).astype(np.float32)
LITTLE_BYTES = 8 * 2**20


def header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": dtype}
    )
    return file.getvalue()


def npy(array: Array) -> bytes:
    return header(array.shape, array.dtype.str) + array.tobytes()


def archive(path: Path, members: Mapping[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as opened:
        for name, data in members.items():
            opened.writestr(f"{name}.npy", data)
    return path


def refused(path: Path) -> str:
    """Return why an archive is refused, and check that little memory was taken for it."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            open_npz(path, ["x"])
        assert tracemalloc.get_traced_memory()[1] < LITTLE_BYTES
    finally:
        tracemalloc.stop()
    return str(error.value)


def damaged(path: Path) -> str:
    return f"{path} is not an .npz archive, or it is cut short or damaged"


def patched(path: Path, **fields: tuple[int, int, int]) -> None:
    """Overwrite numbers (offset, size, value) of a member's entry in the central directory."""
    data = bytearray(path.read_bytes())
    for name, (offset, size, value) in fields.items():
        entry = data.rindex(f"{name}.npy".encode()) - 46
        data[entry + offset : entry + offset + size] = value.to_bytes(size, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("role", ["x", "labels"])
def test_a_compressed_array_whose_stream_is_broken_is_refused(tmp_path: Path, role: str) -> None:
    path = archive(tmp_path / "d.npz", {"x": npy(X), role: npy(np.arange(4))})
    data = bytearray(path.read_bytes())
    start = data.index(f"{role}.npy".encode()) + len(f"{role}.npy")
    data[start] |= 0b110  # A block of the kind that RFC 1951, 3.2.3 reserves.
    path.write_bytes(data)
    assert refused(path) == damaged(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", {"x": npy(X)})
    patched(path, x=(8, 2, 1))
    assert refused(path) == f"{path} is encrypted; save it with np.savez"


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_unpacks_without_bound_is_refused(tmp_path: Path, kind: int) -> None:
    path = archive(tmp_path / "d.npz", {"x": npy(X)}, kind)
    assert refused(path) == damaged(path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", {"x": npy(X), "ä": npy(X)})
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xff"))
    assert refused(path) == damaged(path)


def test_a_name_that_a_terminal_cant_show_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", {"\x1b[2Ja\nb": npy(X)})
    for names in (["x"], None):  # as the model names its inputs, or as the archive does
        with pytest.raises(InputError) as error:
            open_npz(path, names)
        assert str(error.value) == (
            f"{path}: the name '\\x1b[2Ja\\nb' of an array has characters that can't be shown; give it another"
        )


@pytest.mark.parametrize(
    ("role", "shape", "dtype", "size", "limit"),
    [
        ("labels", (2**22,), "<f8", 2**25, 2**20),
        ("labels", (4, 2**23), "|u1", 2**25, 2**20),
        ("labels", (4,), f"|S{2**23}", 2**25, 2**20),
        ("groups", (4,), f"<U{2**21}", 2**25, 2**12),
    ],
)
def test_labels_and_groups_that_unpack_to_far_more_than_the_samples_need_are_refused(
    tmp_path: Path, role: str, shape: tuple[int, ...], dtype: str, size: int, limit: int
) -> None:
    path = archive(tmp_path / "d.npz", {"x": npy(X), role: header(shape, dtype) + bytes(size)})
    assert path.stat().st_size < 2**19
    assert refused(path) == (
        f"{role}: {size} bytes for 4 samples; give at most {limit} bytes for each, for example "
        "in a smaller dtype"
    )


@pytest.mark.parametrize("role", ["labels", "groups"])
def test_what_labels_and_groups_claim_is_compared_with_what_the_archive_holds(
    tmp_path: Path, role: str
) -> None:
    path = archive(tmp_path / "d.npz", {"x": npy(X), role: header((2**40,), "<f8") + bytes(32)})
    assert refused(path) == f"{role} is damaged: 32 bytes for [{2**40}] of float64"


def test_labels_that_end_before_the_size_that_the_archive_states_are_refused(
    tmp_path: Path,
) -> None:
    claim = header((4,), "<f8")
    path = archive(tmp_path / "d.npz", {"x": npy(X), "labels": claim + bytes(8)})
    patched(path, labels=(24, 4, len(claim) + 32))
    assert refused(path) == damaged(path)


def test_a_long_header_is_not_read_whole(tmp_path: Path) -> None:
    data = b"\x93NUMPY\x02\x00" + (2**25).to_bytes(4, "little") + b" " * 2**25
    assert refused(archive(tmp_path / "d.npz", {"x": data})) == (
        "input 'x' is not an array: save it with np.savez"
    )


@pytest.mark.parametrize(
    "text",
    [
        "(" * 9000,
        "-" * 9000,
        "-" * 3000 + "1",
        "{'descr': '<f4', }",
        "{'descr': '<f4', 'fortran_order': F,lse, 'shape': (5, 3), }  )",
        "{'descr': ',', 'fortran_order': False, 'shape': (4, 3)}",
        "{'descr': '<f4', 'fortran_order': False, b'shape': (4, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -3)}",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (4, 3)}",
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    path = archive(tmp_path / "d.npz", {"x": start + text.encode() + bytes(48)})
    assert refused(path) == "input 'x' is not an array: save it with np.savez"


def test_countless_samples_of_nothing_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", {"x": header((2**40, 0), "<f4")})
    assert refused(path) == f"{path}: a sample contains no numbers; give arrays of shape (n, ...)"


def test_bytes_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", {"x": header((4,), "|V2") + bytes(8)})
    assert refused(path) == "input 'x' is an array of |V2; give numbers"


@pytest.mark.seconds
def test_little_that_would_unpack_to_much_is_refused_before_it_is(tmp_path: Path) -> None:
    path, many = tmp_path / "d.npz", 1100
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        with opened.open("x.npy", "w", force_zip64=True) as member:
            start = header((many, 2**18), "<f4")
            member.write(start)
            for _ in range(many):
                member.write(bytes(2**20))
    claimed, size = len(start) + many * 2**20, path.stat().st_size
    assert refused(path) == (
        f"{path} has {size:,} bytes and would unpack to {claimed:,}, more than 100 times as "
        "many: if that is right, save it with np.savez, which doesn't compress"
    )


@pytest.mark.parametrize("role", ["x", "labels"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 0, 10**30), "<f4"),
        ((3, *(1,) * 100), "<f4"),
        ((3,), ("<f4", (2,))),
        ((2**62, 0), "<f8"),
    ],
)
def test_a_shape_that_no_array_has_is_refused(
    tmp_path: Path, role: str, shape: tuple[int, ...], dtype: Any
) -> None:
    whole = header(shape, dtype) + bytes(24 if dtype != "<f4" or 0 not in shape else 0)
    path = archive(tmp_path / "d.npz", {"x": npy(X), role: whole})
    shown = "input 'x'" if role == "x" else "labels"
    assert refused(path) == f"{shown} is not an array: save it with np.savez"


def test_samples_of_a_hundred_axes_are_refused(tmp_path: Path) -> None:
    shapes = np.ones((3, 100), np.int64)
    path = archive(tmp_path / "d.npz", {"x": npy(X[:, 0][:3]), "x.shapes": npy(shapes)})
    assert refused(path) == (
        "x.shapes has samples of more than 32 axes or of more numbers than an array holds"
    )


def test_shapes_without_axes_are_counted_before_they_are_read(tmp_path: Path) -> None:
    members = {"x": header((0,), "<f4"), "x.shapes": header((10**12, 0), "<i8")}
    assert refused(archive(tmp_path / "d.npz", members, zipfile.ZIP_STORED)) == (
        "input 'x': the shapes in x.shapes add up to 1,000,000,000,000 values, but there are 0; see "
        "hasten.save_ragged"
    )


def test_compressed_shapes_that_unpack_to_much_are_refused(tmp_path: Path) -> None:
    members = {"x": header((0,), "<f4"), "x.shapes": header((2**25, 1), "|i1") + bytes(2**25)}
    assert refused(archive(tmp_path / "d.npz", members)) == (
        "x.shapes would unpack to 33,554,432 bytes, more than 100 times as many as the archive has: if that is right, "
        "save it with np.savez, which doesn't compress"
    )


@pytest.mark.parametrize(
    ("role", "shape", "dtype"),
    [("labels", (32, 2**20), "|i1"), ("groups", (2**13,), "<U1024"), ("labels@y", (2**25,), "|i1")],
)
def test_compressed_labels_and_groups_that_unpack_to_much_are_refused(
    tmp_path: Path, role: str, shape: tuple[int, ...], dtype: str
) -> None:
    """They are read into memory; each sample's are as small as they have to be."""
    whole = header(shape, dtype) + bytes(2**25)
    members = {"x": header(shape[:1], "|i1") + bytes(shape[0]), role: whole}
    assert refused(archive(tmp_path / "d.npz", members)) == (
        f"{role.partition('@')[0]} would unpack to 33,554,432 bytes, more than 100 times as many as the archive has: "
        "if that is right, save it with np.savez, which doesn't compress"
    )


def test_many_small_rows_in_fortran_order_are_turned_together(tmp_path: Path) -> None:
    rows = np.arange(2 * 2**18 + 5, dtype=np.uint8).repeat(3).reshape(-1, 3)
    np.savez_compressed(tmp_path / "d.npz", x=np.asfortranarray(rows))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        data = open_npz(tmp_path / "d.npz", ["x"])
    finally:
        sys.setprofile(None)
    assert calls < len(rows) / 10
    assert np.array_equal(data.inputs(range(len(rows)))["x"], rows)
