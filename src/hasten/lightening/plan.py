"""Settings for training lighter networks, and the loss of the user's own among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hasten.core.objects import load_object
from hasten.core.records import source_digest
from hasten.errors import InputError


@dataclass(frozen=True)
class TrainingPlan:
    """Settings for training lighter networks.

    Attributes:
        minutes: Longest time that each method trains, in minutes.
        epochs: Largest number of passes over the training data.
        batch: Number of samples in a training step.
        rate: Highest learning rate.
        loss: Function that replaces the loss on labels, or its place as "my.py:loss"; called with
            the outputs by name and the labels, it returns a scalar tensor.
        features: Weight of inner layers in the loss, 0 to 1; by default 0 if the outputs can be
            learned, 1 if they have no gradient.

    Raises:
        InputError: a setting is out of its range.
    """

    minutes: float = 30.0
    epochs: float = 100.0
    batch: int = 64
    rate: float = 2e-3
    loss: Any = None
    features: float | None = None

    def __post_init__(self) -> None:
        for name, value, unit in (
            ("time for each method", self.minutes, "minutes"),
            ("number of epochs", self.epochs, "passes over the data"),
            ("learning rate", self.rate, "AdamW's steps"),
        ):
            _check_positive(name, value, unit)
        if self.batch < 2:
            raise InputError(
                "a batch must have at least 2 samples, because their mean and variance normalize "
                f"it: got {self.batch}"
            )
        if self.features is not None and not 0 <= self.features <= 1:
            raise InputError(f"the weight of features must be between 0 and 1: got {self.features}")


def loss_of(plan: TrainingPlan) -> tuple[Any, list[Any] | None]:
    """Return the loss that replaces the usual one, and what tells it from another; None for none.

    Raises:
        InputError: it can't be imported, or is no function.
    """
    loss = load_object(plan.loss) if isinstance(plan.loss, str) else plan.loss
    if loss is None:
        return None, None
    if not callable(loss):
        raise InputError(f"a loss must be a function of outputs and labels: got {plan.loss}")
    return loss, [_named(loss), source_digest(loss)]


def _named(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _check_positive(name: str, value: Any, unit: str) -> None:
    """Check that an option is a finite number above 0.

    Raises:
        InputError: the option isn't a finite number above 0.
    """
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise InputError(f"the {name} is in {unit}, above 0: got {value!r}")
