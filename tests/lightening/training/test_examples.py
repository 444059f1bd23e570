"""Batches: whole epochs, the same order whenever asked, and pairs mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.inputs.data.arrays import ArrayDataset
from hasten.lightening.training.examples import Examples
from hasten.lightening.training.network import Network
from hasten.lightening.training.teacher import Teacher

CPU = torch.device("cpu")


def numbers(count: int) -> ArrayDataset:
    rows = np.arange(count, dtype=np.float32)[:, None]
    return ArrayDataset({"x": rows}, np.arange(count))


def test_an_epoch_has_each_sample_once_and_the_next_another_order() -> None:
    examples = Examples(numbers(12), 4, seed=3)
    assert examples.steps == 3
    first, second = (
        np.concatenate([examples.at(epoch * 3 + i, CPU).indices for i in range(3)])
        for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    one, other = (Examples(numbers(12), 4, mixed=0.5, seed=1) for _ in range(2))
    for step in (7, 2, 5):
        a, b = one.at(step, CPU), other.at(step, CPU)
        assert torch.equal(a.inputs["x"], b.inputs["x"])
        assert a.weight == b.weight


def test_mixed_samples_lie_between_two_nearer_to_their_own() -> None:
    examples = Examples(numbers(64), 16, mixed=1.0)
    batch = examples.at(0, CPU)
    assert batch.partner is not None
    assert 0.5 <= batch.weight <= 1
    own = torch.from_numpy(batch.indices).float()[:, None]
    expected = batch.weight * own + (1 - batch.weight) * own[batch.partner]
    assert torch.allclose(batch.inputs["x"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([f"line {n}" for n in range(12)]),
        np.zeros(12, [("first", "i8"), ("second", "f4", (3,))]),
    ],
)
def test_labels_that_are_texts_or_of_several_outputs_only_judge(labels: np.ndarray) -> None:
    data = ArrayDataset({"x": np.zeros((12, 2), np.float32)}, labels)
    batch = Examples(data, 4, mixed=1.0).at(0, CPU)
    assert batch.labels is None
    assert batch.partner is not None


def test_labels_in_another_order_of_bytes_teach_too() -> None:
    batch = Examples(ArrayDataset({"x": np.zeros((12, 2))}, np.arange(12, dtype=">i4")), 12).at(
        0, CPU
    )
    assert batch.labels is not None
    assert batch.labels.tolist() == batch.indices.tolist()


def test_whole_numbers_are_never_mixed() -> None:
    data = ArrayDataset({"ids": np.arange(32)[:, None]})
    assert all(Examples(data, 8, mixed=1.0).at(i, CPU).partner is None for i in range(4))


def test_a_teacher_is_asked_once_for_what_comes_again_as_it_was() -> None:
    calls: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return 2 * x

    module = Counting()
    examples = Examples(numbers(16), 4)
    teacher = Teacher(Network(module, ("x",)), 16)
    for step in range(8):
        batch = examples.at(step, CPU)
        assert torch.equal(teacher.answers(batch)["output"], 2 * batch.inputs["x"])
    assert sum(calls) == 16
    calls.clear()
    mixed = Examples(numbers(16), 4, mixed=1.0).at(0, CPU)
    assert torch.equal(teacher.answers(mixed)["output"], 2 * mixed.inputs["x"])
    assert calls == [4]
