"""What is sent: random numbers by the metadata, or samples of some data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import InputError
from hasten.evaluation.loadtest.metadata import SENDABLE, Described
from hasten.evaluation.loadtest.payloads import payloads

X = Described("x", "FP32", (-1, 2))


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


@given(st.sampled_from(sorted(SENDABLE)), st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=4))
def test_random_requests_fit_what_the_model_takes(datatype: str, shape: list[int]) -> None:
    for sent in payloads([Described("a", datatype, tuple(shape))]):
        assert sent["a"].shape == tuple(1 if size < 0 else size for size in shape)
        assert sent["a"].dtype == SENDABLE[datatype]
        assert sent["a"].flags.c_contiguous


def test_random_requests_differ_and_a_seed_repeats_them() -> None:
    first, again, other = (payloads([X], seed=seed) for seed in (1, 1, 2))
    assert len({sent["x"].tobytes() for sent in first}) == len(first) == 64
    assert all(np.array_equal(one["x"], same["x"]) for one, same in zip(first, again, strict=True))
    assert not np.array_equal(first[0]["x"], other[0]["x"])


def test_a_batch_is_the_first_size_where_that_is_open() -> None:
    assert payloads([X], batch=8)[0]["x"].shape == (8, 2)


def test_a_shape_settles_what_is_open() -> None:
    image = Described("i", "UINT8", (-1, 3, -1, -1))
    sent = payloads([image, X], shapes={"i": (1, 3, 4, 5)})[0]
    assert (sent["i"].shape, sent["x"].shape) == ((1, 3, 4, 5), (1, 2))


def test_samples_of_data_are_sent_in_turn(tmp_path: Path) -> None:
    data = saved(tmp_path, x=np.arange(6.0).reshape(3, 2), labels=np.arange(3))
    sent = payloads([X], data=data)
    assert [one["x"].tolist() for one in sent] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert sent[0]["x"].dtype == np.float32
    batches = payloads([X], data=data, batch=2)
    assert [one["x"].tolist() for one in batches] == [[[0, 1], [2, 3]], [[4, 5], [0, 1]]]


def test_a_model_without_an_axis_for_batches_gets_samples_as_they_are(tmp_path: Path) -> None:
    data = saved(tmp_path, x=np.arange(4.0).reshape(2, 2))
    assert payloads([Described("x", "FP64", (2,))], data=data)[1]["x"].tolist() == [2, 3]


def test_whole_numbers_of_another_type_are_sent_as_the_models(tmp_path: Path) -> None:
    data = saved(tmp_path, x=np.array([[0, 255]], np.int64))
    sent = payloads([Described("x", "UINT8", (-1, 2))], data=data)
    assert sent[0]["x"].dtype == np.uint8


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "the model says that it takes no inputs: there is nothing to send"),
        ([X], {"batch": 0}, "a batch has from 1 to 65536 rows: got 0"),
        (
            [Described("t", "BYTES", (-1,))],
            {},
            f"input t: BYTES[-1]: a load test sends the data types {', '.join(SENDABLE)}, not "
            "'BYTES'",
        ),
        (
            [X],
            {"shapes": {"z": (1,)}},
            "the model has no input 'z', for which you gave a shape; its inputs are x: FP32[-1, 2]",
        ),
        ([X], {"shapes": {"x": (1, 3)}}, "the model takes x: FP32[-1, 2]; got the shape [1, 3]"),
        ([X], {"shapes": {"x": (1,)}}, "the model takes x: FP32[-1, 2]; got the shape [1]"),
        (
            [Described("x", "FP32", (1, 2))],
            {"batch": 4},
            "input x: FP32[1, 2]: a batch of 4 was asked for, but its first size is 1; "
            "leave the batch out",
        ),
    ],
)
def test_what_doesnt_fit_the_model_is_named(
    inputs: list[Described], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        payloads(inputs, **options)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("array", "model", "batch", "message"),
    [
        (
            np.zeros((2, 3)),
            X,
            1,
            "the model takes x: FP32[-1, 2]; got the shape [1, 3]",
        ),
        (
            np.array([[0.5, 1.0]]),
            Described("x", "INT64", (-1, 2)),
            1,
            "input x: INT64[-1, 2]: the data is of float64, which doesn't fit; save it as int64",
        ),
        (
            np.array([[0, 256]]),
            Described("x", "UINT8", (-1, 2)),
            1,
            "input x: UINT8[-1, 2]: the data is of int64, which doesn't fit; save it as uint8",
        ),
        (
            np.zeros((2, 2)),
            Described("x", "FP32", (2,)),
            2,
            "input x: FP32[2]: a sample of the data has as many axes as the model's input, so no "
            "axis is left for a batch of 2; leave the batch out",
        ),
    ],
)
def test_data_that_doesnt_fit_the_model_is_named(
    tmp_path: Path, array: Any, model: Described, batch: int, message: str
) -> None:
    with pytest.raises(InputError) as raised:
        payloads([model], data=saved(tmp_path, x=array), batch=batch)
    assert str(raised.value) == message


def test_data_and_shapes_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        payloads([X], data=saved(tmp_path, x=np.zeros((1, 2))), shapes={"x": (1, 2)})
    assert str(raised.value) == "shapes are for random requests: leave out the shapes or the data"


def test_a_request_that_is_too_large_for_memory_is_named(tmp_path: Path) -> None:
    data = saved(tmp_path, x=np.zeros((1, 1000)))
    with pytest.raises(InputError) as raised:
        payloads([Described("x", "FP64", (-1, 1000))], data=data, batch=65_536)
    assert str(raised.value) == (
        "a request of 65536 rows takes 500 MiB, and the limit is 256 MiB: lower the batch"
    )
