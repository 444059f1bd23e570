from pathlib import Path

import numpy as np
import pytest

from hasten.core.model import Model
from hasten.core.tensors import Array, TensorSpec, check_tensors
from hasten.errors import InputError

X = TensorSpec("x", "float32", ("batch", 3, "?"))
IDS = TensorSpec("ids", "int64", ("batch",))


def model(*inputs: TensorSpec, folder: Path = Path()) -> Model:
    return Model(folder / "m.onnx", "onnx", inputs, (TensorSpec("y", "float32", ("batch",)),))


def test_a_spec_reads_as_people_write_it() -> None:
    assert str(X) == "x: float32[batch, 3, ?]"
    assert str(TensorSpec("s", "bool", ())) == "s: bool[]"


def test_a_spec_is_static_once_every_size_is_settled() -> None:
    assert not X.static
    assert TensorSpec("x", "float32", (1, 3)).static
    assert TensorSpec("x", "float32", ()).static


@pytest.mark.parametrize(
    ("array", "fits"),
    [
        (np.zeros((5, 3, 7), np.float32), True),
        (np.zeros((0, 3, 0), np.float32), True),
        (np.zeros((5, 3, 7), np.float64), False),
        (np.zeros((5, 4, 7), np.float32), False),
        (np.zeros((5, 3), np.float32), False),
    ],
)
def test_an_array_fits_by_dtype_rank_and_settled_sizes(array: Array, fits: bool) -> None:
    assert X.fits(array) is fits


def test_tensors_that_fit_pass() -> None:
    check_tensors({"ids": np.zeros(2, np.int64), "x": np.zeros((2, 3, 4), np.float32)}, (X, IDS))


def test_names_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError) as caught:
        check_tensors({"z": np.zeros(1)}, (X, IDS))
    assert str(caught.value) == "the model takes the inputs x, ids; got z"
    with pytest.raises(InputError) as caught:
        check_tensors({}, (X, IDS))
    assert str(caught.value) == "the model takes the inputs x, ids; got none"


def test_an_array_that_does_not_fit_is_told() -> None:
    with pytest.raises(InputError) as caught:
        check_tensors({"x": np.zeros((2, 4), np.float64)}, (X,))
    assert str(caught.value) == (
        "input 'x': the model takes x: float32[batch, 3, ?]; got float64[2, 4]"
    )


def test_a_sample_settles_the_request() -> None:
    sample: dict[str, Array] = {"x": np.zeros((3, 9), np.float32), "ids": np.zeros((), np.int64)}
    settled = model(X, IDS).settled_by(sample)
    assert settled.request == (
        TensorSpec("x", "float32", (1, 3, 9)),
        TensorSpec("ids", "int64", (1,)),
    )
    assert settled.inputs == (X, IDS)


def test_a_model_without_a_batch_axis_takes_the_sample_as_it_is() -> None:
    settled = model(TensorSpec("x", "float32", (3, "width"))).settled_by(
        {"x": np.zeros((3, 9), np.float32)}
    )
    assert settled.request == (TensorSpec("x", "float32", (3, 9)),)


def test_a_fixed_batch_above_one_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        model(TensorSpec("x", "float32", (4, 3))).settled_by({"x": np.zeros(3, np.float32)})
    assert str(caught.value) == (
        "input 'x' takes batches of 4 only: x: float32[4, 3]; "
        "export the model with an open batch dimension, or with 1"
    )


def test_an_open_axis_behind_a_fixed_one_is_told_as_what_the_batch_may_be() -> None:
    with pytest.raises(InputError) as caught:
        model(TensorSpec("x", "float32", (12, "N", 5))).settled_by(
            {"x": np.zeros((12, 5), np.float32)}
        )
    assert str(caught.value) == (
        "input 'x' takes batches of 12 only: x: float32[12, N, 5]; if its axis 1 is the batch, give "
        "samples [12, 1, 5]; or export the model with an open batch dimension, or with 1"
    )


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (np.zeros((3, 9), np.float64), 'float64[3, 9]; convert it with x.astype("float32")'),
        (np.zeros((4, 9), np.float32), "float32[4, 9]"),
        (np.zeros(3, np.float32), "float32[3]"),
    ],
)
def test_a_sample_that_does_not_fit_is_told(sample: Array, said: str) -> None:
    with pytest.raises(InputError) as caught:
        model(X).settled_by({"x": sample})
    assert str(caught.value) == (
        f"input 'x': the model takes x: float32[batch, 3, ?]; a sample of the data is {said}"
    )


def test_a_sample_with_other_names_is_told() -> None:
    with pytest.raises(InputError) as caught:
        model(X, IDS).settled_by({"x": np.zeros((3, 9), np.float32)})
    assert str(caught.value) == "the model takes the inputs x, ids; the data has x"
    with pytest.raises(InputError) as caught:
        model(X).settled_by({})
    assert str(caught.value) == "the model takes the inputs x; the data has none"


def test_the_digest_covers_every_file(tmp_path: Path) -> None:
    for name in ("m.onnx", "weights", "ops.so"):
        (tmp_path / name).write_text(name)

    def with_files() -> Model:
        return Model(
            tmp_path / "m.onnx",
            "onnx",
            (X,),
            (),
            files=(tmp_path / "weights",),
            custom_ops=(tmp_path / "ops.so",),
        )

    digests = {with_files().sha256}
    assert with_files().size_bytes == len("m.onnx") + len("weights")
    for name in ("m.onnx", "weights", "ops.so"):
        (tmp_path / name).write_text("changed")
        digests.add(with_files().sha256)
    assert len(digests) == 4
