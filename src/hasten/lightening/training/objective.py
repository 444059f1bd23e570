"""What training makes small: how far a network's answers are from its teacher's, and from the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

from hasten.errors import InputError
from hasten.lightening.training.examples import Batch

Outputs: TypeAlias = Mapping[str, torch.Tensor]
Loss: TypeAlias = Callable[[Outputs, "torch.Tensor | None"], torch.Tensor]
"""From a network's outputs and the labels to a scalar."""
Kind: TypeAlias = Literal["classes", "values"]
_TINY = 1e-12


@dataclass(frozen=True)
class Objective:
    """What is asked of a network.

    Attributes:
        kind: "classes" where answers are scores of classes, of which the highest counts; "values"
            where the numbers themselves do.
        teacher_weight: Of the teacher's answers; the labels have the rest. 1 without labels.
        temperature: By which class scores are divided before they are compared.
        feature_weight: Of the layers inside that both have, where their shapes agree.
        loss: The user's own, in the labels' place.

    Source: Hinton et al., arXiv:1503.02531, section 2; features as in Romero et al., arXiv:1412.6550,
    where no projection is needed.
    """

    kind: Kind = "classes"
    teacher_weight: float = 0.7
    temperature: float = 2.0
    feature_weight: float = 0.0
    loss: Loss | None = None

    def of(self, batch: Batch, outputs: Outputs, wanted: Outputs | None) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            batch: With its labels, if it has any.
            outputs: What the network answered.
            wanted: What the teacher did; None where there is none.

        Raises:
            InputError: there is neither a teacher nor a label to learn from, or they don't fit.
        """
        labelled = self.loss is not None or (batch.labels is not None and self.kind == "classes")
        share = 0.0 if wanted is None else self.teacher_weight if labelled else 1.0
        if share == 0 and not labelled:
            raise InputError("nothing to learn from: give a teacher, labels of classes, or a loss")
        parts = []
        if share > 0 and wanted is not None:
            parts.append(share * self.distance(outputs, wanted))
        if share < 1:
            parts.append((1 - share) * self._by_labels(batch, outputs))
        return torch.stack(parts).sum()

    def distance(self, outputs: Outputs, wanted: Outputs) -> torch.Tensor:
        """Return how far answers are from the teacher's, a scalar.

        Outputs that take no gradient, as the numbers of classes, are left out.
        """
        compared = [
            self._apart(outputs[name], tensor)
            for name, tensor in wanted.items()
            if outputs[name].requires_grad or not torch.is_grad_enabled()
            if tensor.is_floating_point()
        ]
        if not compared:
            raise InputError(
                f"no output can be learnt: {', '.join(outputs)} take no gradient; distil features"
            )
        return torch.stack(compared).mean()

    def _apart(self, own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if self.kind == "values" or wanted.ndim < 2:
            return relative_error(own, wanted)
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
                f"labels are of classes, and of the outputs {', '.join(outputs)} not one alone is "
                "scores of classes: give a loss"
            )
        chosen = labels.reshape(len(labels), -1)
        classes = chosen.argmax(1) if chosen.shape[1] == scores[0].shape[1] else chosen[:, 0]
        return functional.nll_loss(log_shares(scores[0], 1.0), classes.long())


def log_shares(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return class scores `(n, ..., classes)` as log-probabilities at a temperature.

    Scores that are probabilities already are taken as such.
    """
    with torch.no_grad():
        sums = scores.sum(-1)
        shares = bool((scores >= 0).all()) and torch.allclose(
            sums, torch.ones_like(sums), atol=1e-3
        )
    if shares:
        scores = scores.clamp_min(_TINY).log()
    return functional.log_softmax(scores / temperature, -1)


def relative_error(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean square of the difference over the variance of what is wanted."""
    spread = wanted.var(unbiased=False) + 1e-6 * wanted.square().mean() + _TINY
    return (own - wanted).square().mean() / spread
