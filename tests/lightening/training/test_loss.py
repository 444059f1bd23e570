"""What is made small: distances to a teacher and to labels."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import InputError
from hasten.inputs.data.missing import NO_NUMBER
from hasten.lightening.training.examples import Batch
from hasten.lightening.training.objective import Objective, log_shares, relative_error, scale_of

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.5]])


def batch(labels: list[int] | None = None, **more: object) -> Batch:
    chosen = None if labels is None else torch.tensor(labels)
    return Batch(torch.arange(2).numpy(), {"x": torch.zeros(2, 1)}, chosen, **more)  # type: ignore[arg-type]


def test_an_equal_answer_costs_nothing_and_another_something() -> None:
    objective = Objective(teacher_weight=1.0)
    own = LOGITS.clone().requires_grad_()
    same = objective.of(batch(), {"logits": own}, {"logits": LOGITS})
    other = objective.of(batch(), {"logits": own}, {"logits": -LOGITS})
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert other.item() > 0.5


def test_the_gradient_keeps_its_size_at_any_temperature() -> None:
    sizes = []
    for temperature in (4.0, 8.0):
        own = (LOGITS + 0.1).requires_grad_()
        Objective(temperature=temperature).distance({"y": own}, {"y": -LOGITS}).backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        sizes.append(own.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.25)


def test_labels_count_as_much_as_the_teacher_leaves_them() -> None:
    own = {"logits": LOGITS.clone().requires_grad_()}
    labels = Objective(teacher_weight=0).of(batch([0, 1]), own, own)
    half = Objective(teacher_weight=0.5).of(batch([0, 1]), own, own)
    expected = -torch.log_softmax(LOGITS, 1)[[0, 1], [0, 1]].mean()
    assert labels.item() == pytest.approx(expected.item(), abs=1e-6)
    assert half.item() == pytest.approx(0.5 * expected.item(), abs=1e-6)


def test_one_hot_labels_are_the_same_as_numbers() -> None:
    numbers = Objective().of(batch([2, 1]), {"y": LOGITS}, None)
    rows = Batch(torch.arange(2).numpy(), {}, torch.tensor([[0, 0, 1], [0, 1, 0]]))
    assert Objective().of(rows, {"y": LOGITS}, None).item() == pytest.approx(numbers.item())


def test_of_a_mix_both_labels_count_by_their_shares() -> None:
    plain, swapped = (
        Objective().of(batch(x), {"y": LOGITS}, None).item() for x in ([0, 1], [1, 0])
    )
    mixed = batch([0, 1], partner=torch.tensor([1, 0]), weight=0.7)
    found = Objective().of(mixed, {"y": LOGITS}, None).item()
    assert found == pytest.approx(0.7 * plain + 0.3 * swapped, abs=1e-6)


def test_probabilities_are_taken_as_such() -> None:
    shares = torch.softmax(LOGITS, 1)
    assert torch.allclose(log_shares(shares, 1.0), torch.log_softmax(LOGITS, 1), atol=1e-5)


def test_sigmoids_are_compared_class_by_class_and_by_their_height() -> None:
    """A softmax over them would take a class that is sure for one that is a little ahead."""
    own = torch.sigmoid(LOGITS).requires_grad_()
    same = Objective(teacher_weight=1.0).distance({"y": own}, {"y": torch.sigmoid(LOGITS)})
    higher = Objective(teacher_weight=1.0).distance({"y": own}, {"y": torch.sigmoid(LOGITS + 1)})
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert higher.item() > 0.2
    wanted = -(torch.sigmoid(LOGITS)[[0, 1], [0, 1]].log().sum()) / 2
    others = -torch.sigmoid(-LOGITS)[[0, 0, 1, 1], [1, 2, 0, 2]].log().sum() / 2
    for labels in (torch.tensor([0, 1]), torch.tensor([[1, 0, 0], [0, 1, 0]])):
        found = Objective().of(Batch(torch.arange(2).numpy(), {}, labels), {"y": own}, None)
        assert found.item() == pytest.approx((wanted + others).item(), abs=1e-4)
    unknown = -torch.sigmoid(-LOGITS)[0, 1].log().sum() / 2
    for missing, dtype in ((float("nan"), torch.float32), (NO_NUMBER, torch.int64)):
        labels = torch.tensor([[1, missing, 0], [0, 1, 0]], dtype=dtype)
        found = Objective().of(Batch(torch.arange(2).numpy(), {}, labels), {"y": own}, None)
        assert found.item() == pytest.approx((wanted + others - unknown).item(), abs=1e-4)


def test_numbers_are_compared_relative_to_how_much_they_vary() -> None:
    wanted = torch.tensor([[0.0], [2.0]])
    assert relative_error(wanted + 1, wanted).item() == pytest.approx(1.0, rel=1e-4)
    assert relative_error(100 * (wanted + 1), 100 * wanted).item() == pytest.approx(1.0, rel=1e-4)


def test_with_neither_teacher_nor_label_there_is_nothing_to_learn_from() -> None:
    with pytest.raises(InputError) as error:
        Objective().of(batch(), {"y": LOGITS}, None)
    assert str(error.value) == ("nothing to learn from: give a teacher, class labels, or a loss")


def test_a_loss_of_the_users_own_stands_in_the_labels_place() -> None:
    def loss(outputs: object, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        return labels.float().sum()

    objective = Objective("values", loss=loss)
    assert objective.of(batch([1, 4]), {"y": LOGITS}, None).item() == 5


@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_probabilities_are_recognized_in_bfloat16(classes: int) -> None:
    """Training computes so where the processor can; taken for logits, they taught another distribution."""
    logits = 3 * torch.randn(500, classes, generator=torch.Generator().manual_seed(0))
    shares = torch.softmax(logits.bfloat16(), 1).float()
    assert (shares.sum(1) - 1).abs().max() > 1e-3
    assert scale_of(shares) == "probabilities"
    assert scale_of(logits) == scale_of(logits.abs()) == "logits"
    assert scale_of(torch.sigmoid(logits).bfloat16().float()) == "sigmoids"
