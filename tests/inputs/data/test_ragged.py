"""Samples that differ in shape: read from lists, from functions and from archives, and spooled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hasten
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset, Subset, like_shaped
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.near_copies import near_copies
from hasten.inputs.data.source import open_data
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode, ToLayout

SPECS = [TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("y", "float32", ("batch", 2))]
IDS = [np.arange(n) for n in (3, 3, 5, 1, 5)]
Y = np.arange(10, dtype=np.float32).reshape(5, 2)
LABELS = np.arange(5)


def check(data: Dataset) -> None:
    """Each sample comes back with its own shape, and those of one shape together."""
    assert data.ragged
    assert len(data) == 5
    for index in range(5):
        read = data.inputs([index])
        assert np.array_equal(read["ids"], IDS[index][None])
        assert np.array_equal(read["y"], Y[index : index + 1])
        assert data.shapes(index) == {"ids": IDS[index].shape, "y": (2,)}
    assert np.array_equal(data.inputs([4, 2])["ids"], [IDS[4], IDS[2]])
    assert list(like_shaped(data, range(5))) == [[0, 1], [2], [3], [4]]
    assert data.labels is not None
    assert data.labels.tolist() == LABELS.tolist()


def test_lists_of_arrays_are_read_in_place(tmp_path: Path) -> None:
    data = open_data(({"ids": IDS, "y": Y}, LABELS), SPECS, None, tmp_path)
    check(data)
    assert np.shares_memory(IDS[0], data._samples["ids"][0])  # type: ignore[attr-defined]


def test_an_array_of_arrays_is_such_a_list(tmp_path: Path) -> None:
    held = np.empty(5, object)
    held[:] = IDS
    check(open_data(({"ids": held, "y": Y}, LABELS), SPECS, None, tmp_path))


def test_a_function_yields_samples_of_their_own_shapes(tmp_path: Path) -> None:
    given = [({"ids": ids, "y": y}, n) for n, (ids, y) in enumerate(zip(IDS, Y, strict=True))]
    check(open_data(given, SPECS, None, tmp_path / "spool"))
    again = open_data(given, SPECS, None, tmp_path / "again", reread=True)
    check(again)


def test_an_archive_keeps_shapes_beside_values(tmp_path: Path) -> None:
    hasten.save_ragged(tmp_path / "data.npz", {"ids": IDS, "y": Y}, LABELS)
    with np.load(tmp_path / "data.npz", allow_pickle=False) as held:
        assert held["ids"].tolist() == np.concatenate(IDS).tolist()
        assert held["ids.shapes"].tolist() == [[len(each)] for each in IDS]
    check(open_data(tmp_path / "data.npz", SPECS))


def test_an_archive_holds_no_number_under_a_mask_and_no_pickle(tmp_path: Path) -> None:
    path, inputs = tmp_path / "data.npz", {"ids": IDS}
    for given in (np.ma.masked_equal([1, 0, -9, 1, 0], -9), [1, 0, None, 1, 0]):
        hasten.save_ragged(path, inputs, given)
        labels = open_data(path, SPECS[:1]).labels
        np.testing.assert_array_equal(labels, [1, 0, np.nan, 1, 0])
    hasten.save_ragged(path, inputs, ["a", "b", None, "nan", float("nan")])
    held = open_data(path, SPECS[:1])
    assert held.labels is not None
    assert held.labels.tolist() == ["a", "b", "", "nan", ""]
    tokens = np.ma.masked_equal(np.arange(10).reshape(5, 2), 3)
    with pytest.raises(InputError, match=r"^some labels of several whole numbers lack some or all"):
        hasten.save_ragged(path, inputs, tokens)
    groups = np.ma.masked_equal(np.arange(5), 3)
    with pytest.raises(InputError, match="has masked values"):
        hasten.save_ragged(path, inputs, None, groups)
    hasten.save_ragged(path, inputs, None, np.ma.masked_array(np.arange(5)))
    saved = open_data(path, SPECS[:1]).groups
    assert saved is not None
    assert saved.tolist() == [0, 1, 2, 3, 4]


def test_a_spool_and_its_subset_hold_samples_of_their_own_shapes(tmp_path: Path) -> None:
    data = open_data(({"ids": IDS, "y": Y}, LABELS), SPECS, None, tmp_path)
    check(write_spool(data, tmp_path / "spool"))
    spool = Spool.open(tmp_path / "spool")
    check(spool)
    assert [spool.content_hash(i) for i in range(5)] == [data.content_hash(i) for i in range(5)]
    alike = write_spool(Subset(data, np.array([2, 4])), tmp_path / "alike")
    assert not alike.ragged
    assert alike.inputs([0, 1])["ids"].tolist() == [IDS[2].tolist(), IDS[4].tolist()]


def test_an_input_may_be_called_like_shapes(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"x": Y, "x.shapes": Y}
    np.savez(tmp_path / "a.npz", **arrays)
    specs = [TensorSpec(name, "float32", ("batch", 2)) for name in ("x", "x.shapes")]
    data = open_data(tmp_path / "a.npz", specs)
    assert not data.ragged
    assert np.array_equal(data.inputs([1])["x.shapes"], Y[1:2])


def refused(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError) as error:
        open_data(path, SPECS[:1])
    return str(error.value)


def test_shapes_that_dont_fit_their_values_are_refused(tmp_path: Path) -> None:
    path, values = tmp_path / "a.npz", np.arange(9)
    assert refused(path, **{"ids": values, "ids.shapes": np.array([[3], [5]])}) == (
        "input 'ids': the shapes in ids.shapes add up to 8 values, but there are 9; see "
        "hasten.save_ragged"
    )
    assert refused(path, **{"ids": values, "ids.shapes": np.array([[10], [-1]])}) == (
        "ids.shapes has sizes below 0 or above 2147483647"
    )
    assert refused(path, **{"ids": values, "ids.shapes": np.array([3.0, 6.0])}) == (
        "ids.shapes must be whole numbers of shape (n, axes): got float64 [2]; see "
        "hasten.save_ragged"
    )
    assert refused(path, **{"ids": values[None], "ids.shapes": np.array([[9]])}) == (
        "input 'ids' has the shapes ids.shapes, so its values must be one after another, in the "
        "shape (values,): got "
        "[1, 9]; see hasten.save_ragged"
    )


def test_samples_of_other_ranks_or_types_are_refused(tmp_path: Path) -> None:
    for odd, why in (
        (np.zeros((2, 2), np.int64), "has 2 dimensions [2, 2], but the first has 1 [3]"),
        (np.zeros(2, np.int32), "is int32, but the first is int64"),
    ):
        with pytest.raises(InputError) as error:
            open_data({"ids": [*IDS, odd]}, SPECS[:1], None, tmp_path)
        assert str(error.value) == f"input 'ids': sample 5 {why}"


def test_pictures_that_no_step_resizes_keep_their_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, side in enumerate((8, 12, 8)):
        pixels = rng.integers(0, 256, (10, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    data = ImageFolder(tmp_path, Pipeline((Decode(), ToLayout())), "x")
    hashes = [data.content_hash(index) for index in range(3)]
    assert data.ragged
    spool = write_spool(data, tmp_path / "spool")
    assert [spool.shapes(index)["x"] for index in range(3)] == [(3, 10, n) for n in (8, 12, 8)]
    assert [spool.content_hash(index) for index in range(3)] == hashes


def test_near_copies_are_found_among_texts_of_every_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 500, n) for n in rng.integers(30, 60, 40)]
    training = open_data({"ids": texts[:30]}, SPECS[:1], None, tmp_path)
    copied = np.concatenate([texts[3], [7]])
    judged = open_data({"ids": [*texts[30:], copied]}, SPECS[:1], None, tmp_path)
    found = near_copies(training, judged)
    assert (found.judged.tolist(), found.training.tolist()) == ([10], [3])


def test_rows_of_unlike_lengths_are_compared_with_none(tmp_path: Path) -> None:
    rows = [np.random.default_rng(n).standard_normal(5 + n % 3, np.float32) for n in range(40)]
    specs = [TensorSpec("y", "float32", ("batch", "n"))]
    data = open_data({"y": rows}, specs, None, tmp_path)
    assert len(near_copies(data, data).judged) == 0
