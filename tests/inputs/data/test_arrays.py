import numpy as np
import pytest

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
        ({"x": np.array(3)}, None, None, "input 'x' is a single number; give an array of samples"),
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
