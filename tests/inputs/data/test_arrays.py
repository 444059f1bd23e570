import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset


def test_samples_are_read_by_position() -> None:
    data = ArrayDataset({"x": np.arange(6.0).reshape(3, 2)}, np.array([0, 1, 2]))
    assert len(data) == 3
    assert data.names == ("x",)
    np.testing.assert_array_equal(data.inputs([2, 0])["x"], [[4, 5], [0, 1]])


def test_equal_content_has_equal_hashes_and_other_content_has_others() -> None:
    data = ArrayDataset({"x": np.array([[1, 2], [1, 2], [2, 1]])}, np.array([0, 1, 0]))
    assert data.content_hash(0) == data.content_hash(1) != data.content_hash(2)
    assert len(data.content_hash(0)) == 32


def test_the_hash_tells_dtype_and_shape_apart() -> None:
    as_ints = ArrayDataset({"x": np.zeros((1, 4), np.int32)})
    as_floats = ArrayDataset({"x": np.zeros((1, 4), np.float32)})
    square = ArrayDataset({"x": np.zeros((1, 2, 2), np.int32)})
    assert len({d.content_hash(0) for d in (as_ints, as_floats, square)}) == 3


def hash_of(array: Array) -> bytes:
    return ArrayDataset({"x": array[np.newaxis]}, missing=True).content_hash(0)


@pytest.mark.parametrize(
    ("numbers", "types"),
    [
        ([0.5, -0.0, 1.25, np.nan], ["f2", "f4", "f8", ">f4", ">f8", ">f2", "g"]),
        ([0.1, 7.0], ["f8", ">f8"]),  # float32 doesn't hold 0.1 as float64 has it
        (0.5, ["f2", "f4", "f8"]),
        ([0, 200], ["u1", "u2", "u4", "u8", "i2", "i4", "i8", ">i8"]),
        ([-1, 127], ["i1", "i2", "i4", "i8"]),
        ([0, 2**63], ["u8", ">u8"]),
        (7, ["i1", "i8", "u4"]),
    ],
)
def test_the_same_numbers_have_one_hash_in_all_types_of_a_kind(
    numbers: object, types: list[str]
) -> None:
    assert len({hash_of(np.array(numbers, one)) for one in types}) == 1


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4))
def test_integers_have_one_hash_in_all_types_that_hold_them(numbers: list[int]) -> None:
    limits = [np.iinfo(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]
    holding = [i.dtype for i in limits if all(i.min <= one <= i.max for one in numbers)]
    hashes = {hash_of(np.array(numbers, dtype)) for dtype in holding}
    assert len(hashes) == bool(holding)
    if numbers:
        changed = np.array([*numbers[:-1], numbers[-1] ^ 1], holding[-1] if holding else object)
        assert not holding or hash_of(changed) not in hashes


def test_other_numbers_of_the_same_bits_or_nearly_the_same_have_other_hashes() -> None:
    x = np.random.default_rng(0).standard_normal(64)
    x[:32] = x[:32].astype(np.float32)
    arrays: list[Array] = [x, x.astype(np.float32), x.astype(np.float16)]
    for number, dtype in ((0, "f4"), (-0.0, "f4"), (1e300, "f8"), (1, "u2"), (1, "?")):
        arrays.append(np.array([number], dtype))
    arrays += [np.array([-1], np.int8), np.array([255], np.uint8)]
    assert len(set(map(hash_of, arrays))) == len(arrays)


def test_a_hash_of_older_versions_is_told_where_it_was_another() -> None:
    old = hashlib.sha256(b"x\0int64\0[2]\0" + np.array([1, 2]).tobytes()).digest()
    assert ArrayDataset({"x": np.array([[1, 2]])}).former_hash(0) == old
    for number, dtype in ((0.1, "f4"), (1, "u1"), (0.1, "f8"), (True, "?")):
        assert ArrayDataset({"x": np.array([[number]], dtype)}).former_hash(0) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_half_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="sample 1 has NaN or Inf"):
        ArrayDataset({"x": np.array([[65504], [bad]], np.float16)}).inputs([0, 1])
    assert ArrayDataset({"x": np.array([[65504], [-6e-8]], np.float16)}).inputs([0, 1])


X = np.zeros((100, 2), np.float32)


@pytest.mark.parametrize(
    ("inputs", "labels", "groups", "message"),
    [
        ({}, None, None, "the data has no inputs: give an array for each input of the model"),
        ({"x": X[:0]}, None, None, "the data has no samples"),
        ({"x": X, "y": X[:90]}, None, None, "input 'y': 90 samples, but 'x' has 100"),
        ({"x": X}, X[:90], None, "labels: 90 for 100 samples; give one for each"),
        ({"x": X}, None, X[:90, 0], "groups: 90 for 100 samples; give one for each"),
        ({"x": X}, None, X, "groups: [100, 2] for 100 samples; give one value each"),
        ({"x": X}, np.array(1), None, "labels: a single value for 100 samples; give one for each"),
        (
            {"x": X},
            np.array([{}] * 100),
            None,
            "labels are Python objects; give an array of numbers or strings",
        ),
        ({"x": np.array(["a"])}, None, None, "input 'x' is an array of <U1; give numbers"),
        ({"x": np.array([None])}, None, None, "input 'x' is an array of object; give numbers"),
        ({"x": np.zeros(3, "V2")}, None, None, "input 'x' is an array of |V2; give numbers"),
        (
            {"x": np.array(3)},
            None,
            None,
            "input 'x' is a single number; give an array of samples, as np.full(n, 3, \"int64\")",
        ),
        ({"x": [1, 2]}, None, None, "input 'x' is a list, not a numpy array"),
    ],
)
def test_data_that_does_not_agree_is_refused(
    inputs: dict[str, Array],
    labels: Array | None,
    groups: Array | None,
    message: str,
) -> None:
    with pytest.raises(InputError) as error:
        ArrayDataset(inputs, labels, groups)
    assert str(error.value) == message


def test_numbers_of_a_kind_that_numpy_does_not_know_are_taken() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes, which onnx brings")
    x = np.ones((3, 2), ml_dtypes.bfloat16)
    x[1, 0] = np.inf
    data = ArrayDataset({"x": x})
    assert data.inputs([0])["x"].dtype == x.dtype
    with pytest.raises(InputError) as error:
        data.content_hash(1)
    assert str(error.value) == "input 'x': sample 1 has NaN or Inf; repair it or leave it out"


def test_labels_may_be_records() -> None:
    labels = np.zeros(100, [("box", "f4", 4), ("name", "U8")])
    assert ArrayDataset({"x": X}, labels).labels is labels


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_naming_the_sample(bad: float) -> None:
    x = np.zeros((9, 2), np.float32)
    x[7, 1] = bad
    data = ArrayDataset({"x": x})
    data.inputs([0, 1])
    with pytest.raises(InputError) as error:
        data.inputs([3, 7])
    assert str(error.value) == "input 'x': sample 7 has NaN or Inf; repair it or leave it out"
