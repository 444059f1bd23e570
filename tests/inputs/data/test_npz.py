import gc
import io
import os
import tempfile
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.npz import open_npz

X = np.random.default_rng(0).random((7, 3, 2)).astype(np.float32)
LABELS = np.arange(7)
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(params=["stored", "compressed"])
def save(request: pytest.FixtureRequest) -> Any:
    return np.savez if request.param == "stored" else np.savez_compressed


def refused(path: Path, names: list[str] | None = None, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        open_npz(path, names, **more)
    return str(error.value)


def test_inputs_labels_and_groups_are_read(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", image=X, ids=LABELS, labels=LABELS, groups=np.array(list("aabbccd")))
    data = open_npz(tmp_path / "d.npz", ["ids", "image"])
    assert (len(data), data.names) == (7, ("ids", "image"))
    np.testing.assert_array_equal(data.inputs([6, 0])["image"], X[[6, 0]])
    assert data.labels is not None
    assert data.groups is not None
    assert data.labels.tolist() == LABELS.tolist()
    assert data.groups.tolist() == list("aabbccd")


@pytest.mark.parametrize("turned", [np.asfortranarray(X), X.astype(">f4"), X[:, :, ::-1]])
def test_other_byte_orders_and_memory_orders_are_read_right(
    tmp_path: Path, save: Any, turned: Array
) -> None:
    save(tmp_path / "d.npz", x=turned)
    data = open_npz(tmp_path / "d.npz")
    read = data.inputs([5, 1])["x"]
    np.testing.assert_array_equal(read, turned[[5, 1]])
    assert read.dtype == np.dtype("float32")
    assert read.flags.c_contiguous


@given(
    arrays(
        st.sampled_from([np.uint8, np.int64, np.bool_, np.float16]),
        array_shapes(max_dims=3, max_side=4),
        elements=st.integers(0, 1),
    ),
    st.booleans(),
)
@settings(max_examples=25)
def test_any_array_comes_back(array: Array, compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.npz"
        (np.savez_compressed if compressed else np.savez)(path, x=array)
        data = open_npz(path)
        np.testing.assert_array_equal(data.inputs(range(len(array)))["x"], array)


def test_equal_content_hashes_alike_however_it_is_stored(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    np.savez_compressed(tmp_path / "b.npz", x=np.asfortranarray(X[::-1]))
    one, other = open_npz(tmp_path / "a.npz"), open_npz(tmp_path / "b.npz")
    assert [one.content_hash(i) for i in range(7)] == [other.content_hash(6 - i) for i in range(7)]


def test_a_single_array_needs_no_matching_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, labels=LABELS)
    assert open_npz(tmp_path / "d.npz", ["image:0"]).names == ("image:0",)


def test_where_the_model_names_no_inputs_the_arrays_own_names_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=X, b=X, labels=LABELS)
    assert open_npz(tmp_path / "d.npz", []).names == ("a", "b")


def test_an_input_may_be_called_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", labels=LABELS, x=X)
    data = open_npz(tmp_path / "d.npz", ["labels", "x"])
    assert data.labels is None
    assert data.inputs([3])["labels"].tolist() == [3]


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((1000, 1000), np.float32))
    read: list[int] = []
    preadv = os.preadv

    def counting(file: int, buffers: Any, place: int) -> int:
        read.append(sum(len(buffer) for buffer in buffers))
        return preadv(file, buffers, place)

    monkeypatch.setattr(os, "preadv", counting)
    data = open_npz(path)
    assert read == []
    data.inputs([1, 2])
    assert sum(read) == 8000


def test_a_temporary_copy_goes_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    np.savez_compressed(tmp_path / "d.npz", x=X)
    data = open_npz(tmp_path / "d.npz")
    assert list((tmp_path / "temporary").rglob("*.raw"))
    del data
    gc.collect()
    np.savez_compressed(tmp_path / "d.npz", y=X)
    refused(tmp_path / "d.npz", ["a", "b"])
    assert not list((tmp_path / "temporary").iterdir())


def test_a_spool_folder_of_the_callers_is_kept(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=X)
    data = open_npz(tmp_path / "d.npz", spool=tmp_path / "spool")
    assert [file.name for file in (tmp_path / "spool").iterdir()] == ["array0.raw"]
    np.testing.assert_array_equal(data.inputs([2])["x"], X[[2]])


def test_no_such_file_and_no_archive(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.npz") == f"no such file: {tmp_path / 'no.npz'}"
    path = tmp_path / "bad.npz"
    path.write_bytes(b"no archive")
    assert refused(path) == f"{path} is not an .npz archive, or it is cut short or damaged"


def test_an_archive_that_is_cut_short_or_damaged_is_refused(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "d.npz"
    save(path, x=np.random.default_rng(0).random((50, 50)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refused(path) == f"{path} is not an .npz archive, or it is cut short or damaged"


def test_a_damaged_compressed_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((50, 50)))
    damaged = bytearray(path.read_bytes())
    damaged[5000] ^= 255
    path.write_bytes(damaged)
    assert refused(path) == f"{path} is not an .npz archive, or it is cut short or damaged"


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"shape": (2**40, 8), "fortran_order": False, "descr": "<f4"}
            )
            file.write(bytes(64))
    assert refused(path) == f"input 'x' is damaged: 64 bytes for [{2**40}, 8] of float32"


def test_a_stored_array_that_would_reach_past_the_end_of_the_file_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"shape": (1000,), "fortran_order": False, "descr": "<f4"}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    claimed = (len(header.getvalue()) + 4000).to_bytes(4, "little")
    data[directory + 20 : directory + 28] = claimed * 2  # Compressed and uncompressed size.
    path.write_bytes(data)
    assert refused(path) == f"{path} is not an .npz archive, or it is cut short or damaged"


def test_an_array_in_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    array = io.BytesIO()
    np.lib.format.write_array(array, X, version=(3, 0))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", array.getvalue())
    assert refused(path) == "input 'x': an array of format (3, 0); save it with np.savez"


def test_more_than_the_disk_holds_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    path, spool = tmp_path / "d.npz", tmp_path / "spool"
    np.savez_compressed(path, x=X)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(200, 100, 100))
    assert refused(path, spool=spool) == (
        f"can't unpack 168 bytes to {spool}: only 100 are free; save with np.savez, which doesn't "
        "compress, or free some space"
    )


def test_a_file_system_that_states_no_size_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tmpfs of size 0, which is no limit."""
    import shutil

    np.savez_compressed(tmp_path / "d.npz", x=X)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(0, 0, 0))
    data = open_npz(tmp_path / "d.npz", spool=tmp_path / "spool")
    np.testing.assert_array_equal(data.inputs([6, 0])["x"], X[[6, 0]])


def test_arrays_that_are_not_the_models_inputs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, a=X, b=X, labels=LABELS)
    assert refused(path, ["a", "c"]) == (
        f"the model takes the inputs a, c; {path} has the arrays a, b in addition to labels and groups"
    )
    assert refused(path, ["a"]) == (
        f"the model takes the inputs a; {path} has the arrays a, b in addition to labels and groups"
    )
    np.savez(path, labels=LABELS)
    assert refused(path, ["a"]) == (
        f"the model takes the inputs a; {path} has the arrays none in addition to labels and groups"
    )


def test_counts_that_differ_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=X, labels=LABELS[:5])
    assert refused(path) == "labels: 5 for 7 samples; give one for each"
    np.savez(path, x=X[:0])
    assert refused(path) == f"{path} has no samples"


def test_what_is_no_array_of_numbers_is_refused_and_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    assert refused(path) == "input 'x' contains Python objects; save plain arrays of numbers"
    np.savez(path, x=np.array(["a", "b"]))
    assert refused(path) == "input 'x' is an array of <U1; give numbers"
    np.savez(path, x=np.array(3.0))
    said = "input 'x' is a single number; give an array of samples, as np.full(n, {})"
    assert refused(path) == said.format('3.0, "float64"')
    np.savez(path, x=np.float32(2.0), y=X)
    assert refused(path) == said.format('2.0, "float32"')
    np.savez_compressed(path, x=np.array(16000, ">i4"))
    assert refused(path) == said.format('16000, "int32"')
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array at all")
    assert refused(path) == "input 'x' is not an array: save it with np.savez"


def test_nan_is_refused_naming_the_sample(tmp_path: Path) -> None:
    x = X.copy()
    x[4, 0, 0] = np.inf
    np.savez(tmp_path / "d.npz", x=x)
    data = open_npz(tmp_path / "d.npz")
    with pytest.raises(InputError) as error:
        data.inputs([3, 4])
    assert str(error.value) == "input 'x': sample 4 has NaN or Inf; repair it or leave it out"
