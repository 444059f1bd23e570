"""Training samples that are made anew whenever they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.rereading import Rereading
from hasten.inputs.data.source import open_data
from hasten.inputs.data.splits import former_hashes
from hasten.measure.alike import has_steady_shapes

X = TensorSpec("x", "float32", ("batch", 3))


class Images:
    """Ten samples; augmented by a shift that no reading has twice, where asked."""

    def __init__(self, *, augmented: bool) -> None:
        self.augmented, self.reads = augmented, 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Array, int]:
        if index >= 10:
            raise IndexError(index)
        self.reads += 1
        shift = self.reads / 1000 if self.augmented else 0
        return np.full(3, index + shift, np.float32), index % 2


class Doubles:
    """Samples of others as float64."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Array, int]:
        x, label = self.images[index]
        return x.astype(np.float64), label


@pytest.mark.parametrize("augmented", [True, False])
def test_a_sequence_is_read_anew_each_time_and_says_whether_that_matters(
    tmp_path: Path, augmented: bool
) -> None:
    images = Images(augmented=augmented)
    data = open_data(images, [X], None, tmp_path / "d", reread=True)
    assert isinstance(data, Rereading)
    assert data.repeats == (not augmented)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1] * 5
    first, second = data.inputs([3, 4])["x"], data.inputs([3, 4])["x"]
    assert first.shape == (2, 3)
    assert (first != second).any() == augmented
    assert data.content_hash(3) == data.content_hash(3) != data.content_hash(4)
    assert not (tmp_path / "d").exists()


def test_what_comes_one_by_one_is_written_once_all_the_same(tmp_path: Path) -> None:
    given = ((np.full(3, i, np.float32), i) for i in range(4))
    data = open_data(given, [X], None, tmp_path / "d", reread=True)
    assert len(data) == 4
    assert (tmp_path / "d").exists()


def test_samples_unlike_each_other_are_refused(tmp_path: Path) -> None:
    x = np.zeros(3, np.float32)
    for given, said in (
        ([(x, 0), x], "the data: sample 1 has 1 parts, but the first has 2"),
        (
            [(x, [0]), (x, [0, 1])],
            "the data: the label of sample 1 has the shape [2], but the first has [1]",
        ),
        ([], "the data has no samples"),
        (
            [(x, 0), (x * np.nan, 0)],
            "the data: input 'x': sample 1 has NaN or Inf; repair it or leave it out",
        ),
    ):
        with pytest.raises(InputError) as error:
            open_data(given, [X], None, tmp_path / "d", reread=True)
        assert str(error.value) == said


@pytest.mark.parametrize("augmented", [True, False])
def test_only_samples_that_stay_the_same_have_former_hashes(
    tmp_path: Path, augmented: bool
) -> None:
    """The hash of others covers no input, so it never depended on a type."""
    images = Images(augmented=augmented)
    data = open_data(Doubles(images), [X], None, tmp_path / "d", reread=True)
    assert isinstance(data, Rereading)
    plain = ArrayDataset({"x": np.repeat(np.arange(10.0)[:, np.newaxis], 3, axis=1)})
    expected = [plain.former_hash(i) for i in range(10)]
    assert None not in expected
    assert former_hashes(data) == ([] if augmented else expected)
    assert data.former_hash(4) == (None if augmented else expected[4])


class Crops(Images):
    """Samples of several lengths, which change at each read where asked."""

    def __getitem__(self, index: int) -> tuple[Array, int]:
        x, label = super().__getitem__(index)
        length = 3 + (self.reads if self.augmented else index) % 4
        return np.resize(x, length), label


@pytest.mark.parametrize("augmented", [True, False])
def test_the_shapes_of_samples_that_repeat_are_told_without_a_read(
    tmp_path: Path, augmented: bool
) -> None:
    crops = Crops(augmented=augmented)
    spec = TensorSpec("x", "float32", ("batch", "length"))
    data = open_data(crops, [spec], None, tmp_path / "d", reread=True)
    before = crops.reads
    assert has_steady_shapes(data) == (not augmented)
    assert (crops.reads > before) == augmented
    if not augmented:
        assert data.shapes(2) == {"x": (5,)}


def test_labels_that_are_texts_stay_apart_from_missing_ones_and_from_numbers(
    tmp_path: Path,
) -> None:
    x = np.zeros(3, np.float32)
    for labels, found in ((["a", float("nan"), "nan"], ["a", "", "nan"]), (["a", "b", "c"], None)):
        data = open_data([(x, one) for one in labels], [X], None, tmp_path / "d", reread=True)
        np.testing.assert_array_equal(data.labels, found or labels)
    with pytest.raises(InputError) as error:
        open_data([(x, "a"), (x, 1)], [X], None, tmp_path / "d", reread=True)
    assert str(error.value) == (
        "some labels are texts, and others are numbers: give one or the other"
    )
