"""Compute the loss of training: the distance of answers to a teacher's answers and to labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

from hasten.errors import InputError
from hasten.inputs.data.missing import NO_NUMBER
from hasten.lightening.training.examples import Batch

Outputs: TypeAlias = Mapping[str, torch.Tensor]
Loss: TypeAlias = Callable[[Outputs, "torch.Tensor | None"], torch.Tensor]
"""Function from a network's outputs and the labels to a scalar."""
Kind: TypeAlias = Literal["classes", "values"]
Scale: TypeAlias = Literal["logits", "probabilities", "log-probabilities", "sigmoids"]
"""Scale of class scores; sigmoids are a probability of each class, and don't sum to 1."""
_TINY = 1e-12
_RARE = 1e-7
"""Distance of a sigmoid from 0 and 1 up to which float32 tells it from them."""
_SLACK = 1e-2
"""Largest distance from 1 of the sum of a row's probabilities, which may be rounded to bfloat16."""


@dataclass(frozen=True)
class Objective:
    """Loss that training minimizes.

    Attributes:
        kind: Kind of answers: "classes" for class scores, of which the highest counts; "values" for
            numbers that count themselves.
        teacher_weight: Weight of the teacher's answers; labels have the rest. Without labels it
            counts as 1.
        temperature: Divisor of class scores before they are compared.
        feature_weight: Weight of inner layers whose shapes agree in network and teacher.
        loss: The user's own loss, which replaces the loss on labels; None for the latter.

    Source: Hinton et al., arXiv:1503.02531, section 2; features as in Romero et al.,
    arXiv:1412.6550, for shapes that need no projection.
    """

    kind: Kind = "classes"
    teacher_weight: float = 0.7
    temperature: float = 2.0
    feature_weight: float = 0.0
    loss: Loss | None = None

    def of(self, batch: Batch, outputs: Outputs, wanted: Outputs | None) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            batch: Batch, with labels if the data has them.
            outputs: Outputs of the network.
            wanted: Outputs of the teacher; None if there is no teacher.

        Raises:
            InputError: there is neither a teacher nor a label to learn from, or labels don't fit
                the outputs.
        """
        labelled = self.loss is not None or (batch.labels is not None and self.kind == "classes")
        share = 0.0 if wanted is None else self.teacher_weight if labelled else 1.0
        if share == 0 and not labelled:
            raise InputError("nothing to learn from: give a teacher, class labels, or a loss")
        parts = []
        if share > 0 and wanted is not None:
            parts.append(share * self.distance(outputs, wanted))
        if share < 1:
            parts.append((1 - share) * self._by_labels(batch, outputs))
        return torch.stack(parts).sum()

    def distance(self, outputs: Outputs, wanted: Outputs) -> torch.Tensor:
        """Return the distance of answers to the teacher's answers, a scalar.

        Outputs without a gradient, such as class indices, are left out.
        """
        compared = [
            self._apart(outputs[name], tensor)
            for name, tensor in wanted.items()
            if outputs[name].requires_grad or not torch.is_grad_enabled()
            if tensor.is_floating_point()
        ]
        if not compared:
            raise InputError(
                f"no gradient reaches the outputs {', '.join(outputs)}; give features=1 "
                "to learn from inner layers"
            )
        return torch.stack(compared).mean()

    def _apart(self, own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if self.kind == "values" or wanted.ndim < 2:
            return relative_error(own, wanted)
        if scale_of(wanted) == "sigmoids" == scale_of(own):
            return class_by_class(own, wanted)
        own, wanted = log_shares(own, self.temperature), log_shares(wanted, self.temperature)
        apart = functional.kl_div(own, wanted, log_target=True, reduction="none").sum(-1).mean()
        return apart * self.temperature**2

    def _by_labels(self, batch: Batch, outputs: Outputs) -> torch.Tensor:
        own = self._by(outputs, batch.labels)
        if batch.partner is None or batch.labels is None:
            return own
        other = self._by(outputs, batch.labels[batch.partner])
        return batch.weight * own + (1 - batch.weight) * other

    def _by(self, outputs: Outputs, labels: torch.Tensor | None) -> torch.Tensor:
        if self.loss is not None:
            return self.loss(outputs, labels)
        assert labels is not None
        scores = [t for t in outputs.values() if t.ndim == 2 and t.is_floating_point()]
        if len(scores) != 1:
            raise InputError(
                f"the labels are classes, but not exactly one of the outputs {', '.join(outputs)} "
                "holds class scores: give a loss"
            )
        chosen = labels.reshape(len(labels), -1)
        if scale_of(scores[0]) == "sigmoids":
            if chosen.shape[1] != scores[0].shape[1]:
                chosen = functional.one_hot(chosen[:, 0].long(), scores[0].shape[1])
            return class_by_class(scores[0], chosen)
        classes = chosen.argmax(1) if chosen.shape[1] == scores[0].shape[1] else chosen[:, 0]
        return functional.nll_loss(log_shares(scores[0], 1.0), classes.long())


def log_shares(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return class scores of shape `(n, ..., classes)` as log-probabilities at a temperature.

    Scores that already are probabilities are recognized and treated as such.
    """
    if scale_of(scores) == "probabilities":
        scores = scores.clamp_min(_TINY).log()
    return functional.log_softmax(scores / temperature, -1)


@torch.no_grad()
def scale_of(scores: torch.Tensor) -> Scale:
    """Return the scale of class scores of shape `(n, ..., classes)`, by their own values."""
    if _are_shares(scores):
        return "probabilities"
    if _are_shares(scores.exp()):
        return "log-probabilities"
    return "sigmoids" if bool(((scores >= 0) & (scores <= 1)).all()) else "logits"


def _are_shares(scores: torch.Tensor) -> bool:
    sums = scores.sum(-1)
    return bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=_SLACK)


def class_by_class(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the divergence of each class's own probability from the wanted one, a scalar.

    Args:
        own: Sigmoids of shape `(n, ..., classes)`.
        wanted: Wanted probabilities, or labels of 0 and 1, of the same shape; one that is NaN or `NO_NUMBER` is
            missing and doesn't count.
    """
    wanted = wanted.float()
    known = wanted > float(NO_NUMBER)  # false for NaN, too
    own, wanted = (
        one.float().clamp(_RARE, 1 - _RARE) for one in (own, torch.where(known, wanted, 0.0))
    )
    there = wanted * (wanted / own).log()
    absent = (1 - wanted) * ((1 - wanted) / (1 - own)).log()
    return ((there + absent) * known).sum(-1).mean()


def relative_error(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference over the variance of the wanted values, a scalar."""
    spread = wanted.var(unbiased=False) + 1e-6 * wanted.square().mean() + _TINY
    return (own - wanted).square().mean() / spread
