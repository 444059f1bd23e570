"""Data whose samples are whole sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.sequences import SequenceData, open_sequences

INPUTS = (
    TensorSpec("x", "float32", ("batch", 3)),
    TensorSpec("rate", "int64", ()),
    TensorSpec("h", "float32", ("batch", 2)),
)
STATES = (("h", "hn"),)
X = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)


def opened(**arrays: Any) -> SequenceData:
    return open_sequences(arrays, INPUTS, STATES, None)


def test_a_constant_input_is_the_same_in_each_step() -> None:
    data = opened(x=X, rate=np.arange(5))
    assert (len(data), data.steps, data.mean_steps()) == (5, 4, 4.0)
    read = data.inputs([2, 0])
    np.testing.assert_array_equal(read["rate"], [[2, 2, 2, 2], [0, 0, 0, 0]])
    assert data.step(1)["rate"] == 1


def test_an_archive_is_read_with_start_states_and_lengths(tmp_path: Path) -> None:
    lengths, start = np.array([1, 4, 2, 3, 4]), np.ones((5, 2), np.float32)
    path = tmp_path / "data.npz"
    np.savez(path, x=X, rate=np.ones((5, 4), np.int64), h=start, lengths=lengths, labels=lengths)
    data = open_sequences(path, INPUTS, STATES, tmp_path / "unpacked")
    assert data.mean_steps() == 2.8
    read = data.inputs([0, 2])
    assert read["lengths"].tolist() == [1, 2]
    assert read["h"].tolist() == [[1, 1], [1, 1]]
    assert data.labels is not None


def test_an_array_alone_is_the_only_input() -> None:
    data = open_sequences((X, np.arange(5)), INPUTS[::2], STATES, None)
    assert data.names == ("x",)
    assert data.inputs([0])["x"].shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "a step of the model takes x, rate; the sequences have no rate"),
        (
            {"x": X, "rate": np.arange(5), "y": X},
            "the sequences have y, which isn't an input of the model",
        ),
        (
            {"x": X[:, 0, 0], "rate": np.arange(5)},
            "input 'x': the model takes x: float32[batch, 3] in a step; a sequence of the data is "
            "float32[]: give (n, steps, ...), with one step's own axes last",
        ),
        (
            {"x": X[:, 0], "rate": np.arange(5)},
            "no input of the sequences has an axis of steps: give arrays (n, steps, ...)",
        ),
        (
            {"x": X, "rate": np.ones((5, 3), np.int64)},
            "input 'rate': 3 steps, but 'x' has 4; pad them to one length, and state in lengths "
            "how many steps count",
        ),
        (
            {"x": X[:, :0], "rate": np.arange(5)},
            "the sequences have no steps: give arrays (n, steps, ...)",
        ),
    ],
)
def test_arrays_that_are_no_sequences_are_refused(arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(**arrays)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        (
            [1, 0, 2, 3, 4],
            "lengths: sequence 1 has 0 steps; give 1 to 4, the number of steps in the arrays",
        ),
        (
            [1, 5, 2, 3, 4],
            "lengths: sequence 1 has 5 steps; give 1 to 4, the number of steps in the arrays",
        ),
        (
            [1.0, 2, 2, 3, 4],
            "lengths must be whole numbers of shape (n,); got float64 [1]",
        ),
    ],
)
def test_lengths_that_cannot_be_are_refused(lengths: list[float], said: str) -> None:
    data = opened(x=X, rate=np.arange(5), lengths=np.array(lengths))
    with pytest.raises(InputError) as caught:
        [data.content_hash(index) for index in range(5)]
    assert str(caught.value) == said
