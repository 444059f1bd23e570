import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError
from hasten.inputs.data import spool
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.function import from_python
from hasten.inputs.data.spool import Spool, SpoolWriter, write_spool


class Ragged(Dataset):
    """Samples of growing length, to stand for files of many sizes."""

    names = ("x",)
    labels = None
    groups = None

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._sizes = shapes
        self.largest_read = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        self.largest_read = max(self.largest_read, len(indices))
        return {"x": np.stack([np.ones(self._sizes[i], np.float32) for i in indices])}

    def content_hash(self, index: int) -> bytes:
        return bytes([index] * 32)


def test_a_spool_gives_back_samples_labels_groups_and_hashes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = ArrayDataset(
        {"image:0": rng.random((150, 3, 4), np.float32), "ids": rng.integers(0, 9, (150, 2))},
        rng.integers(0, 5, 150),
        np.array([f"video {i % 7}" for i in range(150)]),
    )
    write_spool(data, tmp_path / "spool", chunk=64)
    back = Spool.open(tmp_path / "spool")
    assert (len(back), back.names) == (150, data.names)
    rows = [149, 3, 3, 70]
    for name, samples in data.inputs(rows).items():
        read = back.inputs(rows)[name]
        np.testing.assert_array_equal(read, samples)
        assert read.dtype == samples.dtype
    np.testing.assert_array_equal(back.labels, data.labels)
    np.testing.assert_array_equal(back.groups, data.groups)
    assert [back.content_hash(i) for i in rows] == [data.content_hash(i) for i in rows]


@pytest.mark.parametrize("dtype", [">f4", ">f2", ">i2", ">u8", "<f4"])
def test_numbers_stay_the_same_whatever_their_byte_order(tmp_path: Path, dtype: str) -> None:
    # As pictures of NIfTI and FITS have them.
    numbers = np.arange(12).reshape(6, 2)
    given = numbers.astype(dtype)
    data = ArrayDataset({"x": given}, given[:, 0], given[:, 1])
    spool = write_spool(data, tmp_path / "whole")
    single = from_python([(x, x[0]) for x in given], ["x"], tmp_path / "single")
    for found in (data, spool, single):
        read = found.inputs(range(6))["x"]
        assert read.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(read, numbers)
        np.testing.assert_array_equal(found.labels, numbers[:, 0])
        assert found.content_hash(1) == data.content_hash(1)


def test_a_sample_may_be_a_scalar_or_hold_nothing(tmp_path: Path) -> None:
    data = ArrayDataset({"x": np.arange(3), "none": np.zeros((3, 0), np.float32)})
    back = write_spool(data, tmp_path / "spool")
    np.testing.assert_array_equal(back.inputs([2])["x"], [2])
    assert back.inputs([2])["none"].shape == (1, 0)


def test_what_is_read_at_once_is_bounded_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "CHUNK_BYTES", 8 * 4 * 3)
    data = Ragged([(8,)] * 20)
    write_spool(data, tmp_path / "spool")
    assert data.largest_read == 3


def test_a_chunk_is_never_larger_than_asked(tmp_path: Path) -> None:
    data = Ragged([(8,)] * 20)
    write_spool(data, tmp_path / "spool", chunk=4)
    assert data.largest_read == 4


def message(data: Dataset, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        write_spool(data, folder)
    assert not (folder / "index.json").exists()
    return str(error.value)


def test_a_shape_that_the_data_does_not_settle_is_named(tmp_path: Path) -> None:
    assert message(Ragged([(4, 3)] + [(4, 5)] * 3), tmp_path / "spool") == (
        "input 'x': sample 1 is [4, 5], but the first is [4, 3], so dimension 1 of a sample "
        "isn't fixed by the data; pad, crop or resize all to one shape"
    )


def test_a_rank_that_the_data_does_not_settle_is_named(tmp_path: Path) -> None:
    assert message(Ragged([(4, 3), (4,)]), tmp_path / "spool") == (
        "input 'x': sample 1 has 1 dimensions [4], but the first has 2 [4, 3]"
    )


def test_a_dtype_that_changes_is_named(tmp_path: Path) -> None:
    with SpoolWriter(tmp_path / "spool", ["x"]) as writer:
        writer.append({"x": np.zeros((1, 2), np.float32)}, [bytes(32)])
        with pytest.raises(InputError) as error:
            writer.append({"x": np.zeros((1, 2), np.float64)}, [bytes(32)])
    assert str(error.value) == "input 'x': sample 1 is float64, but the first is float32"


def test_nan_is_refused_naming_sample_and_input(tmp_path: Path) -> None:
    with SpoolWriter(tmp_path / "spool", ["x"]) as writer:
        writer.append({"x": np.zeros((2, 2), np.float32)}, [bytes(32)] * 2)
        with pytest.raises(InputError) as error:
            writer.append({"x": np.full((1, 2), np.nan, np.float32)}, [bytes(32)])
    assert str(error.value) == "input 'x': sample 2 has NaN or Inf; repair it or leave it out"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert message(Ragged([(1,)]), tmp_path) == (
        f"{tmp_path} isn't empty: give a new folder to write samples to"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with SpoolWriter(folder, ["x"]) as writer:
        # /dev/full takes nothing: writes to it fail as on a full disk.
        writer._files["x"].close()
        with Path("/dev/full").open("wb", buffering=0) as full:
            writer._files["x"] = full
            with pytest.raises(InputError) as error:
                writer.append({"x": np.zeros((1, 2))}, [bytes(32)])
    assert str(error.value) == f"can't write {folder}: No space left on device"


def test_an_unfinished_spool_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with SpoolWriter(folder, ["x"]) as writer:
        writer.append({"x": np.zeros((1, 2))}, [bytes(32)])
    with pytest.raises(IntegrityError) as error:
        Spool.open(folder)
    assert str(error.value) == f"{folder / 'index.json'} is missing"


def test_a_spool_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    write_spool(Ragged([(2,)]), folder)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "schema": 2}))
    with pytest.raises(IntegrityError) as error:
        Spool.open(folder)
    assert str(error.value) == f"{folder} was written by another version; delete it"
    (folder / "index.json").write_text("{}")
    with pytest.raises(IntegrityError) as error:
        Spool.open(folder)
    assert str(error.value) == f"{folder} is not a complete spool: 'schema'; delete it"


def test_a_spool_that_is_cut_short_is_refused_on_reading(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    back = write_spool(Ragged([(2,)] * 3), folder)
    with (folder / "input0.raw").open("r+b") as file:
        file.truncate(20)
    back.inputs([0, 1])
    with pytest.raises(InputError) as error:
        back.inputs([2])
    assert str(error.value) == (
        f"{folder / 'input0.raw'} is cut short: it ends before sample 2 does"
    )


def test_a_position_outside_the_data_is_an_error(tmp_path: Path) -> None:
    back = write_spool(Ragged([(2,)] * 3), tmp_path / "spool")
    with pytest.raises(IndexError, match=r"^row 3 of 3$"):
        back.inputs([3])
    with pytest.raises(IndexError, match=r"^row -1 of 3$"):
        back.inputs([-1])
