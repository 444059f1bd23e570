"""Tell a network that has learned from one that could as well give each sample the same answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array

Chunks = Sequence[Mapping[str, Array]]

_LEARNED = 0.1
"""Share of the way from chance to the model's own score below which a network has learned nothing."""
_FEW_EPOCHS = 10.0


@dataclass(frozen=True)
class Chance:
    """Scores between which a network that learns must move.

    Attributes:
        chance: Mean score of one fixed answer for all samples.
        model: Mean score of the user's own model.
    """

    chance: float
    model: float

    def caution(self, score: float, steps: int, epochs: float) -> str | None:
        """Return a caution that says what to do if a score is near chance; None if it isn't.

        Args:
            score: Mean score on the held-out samples.
            steps: Number of steps so far.
            epochs: Number of passes over the training data in the whole training.
        """
        if not self.chance < self.model or score > self.chance + _LEARNED * (
            self.model - self.chance
        ):
            return None
        said = (
            f"{100 * score:.1f}% after {steps} steps is hardly better than one fixed answer for all "
            f"samples ({100 * self.chance:.1f}%)"
        )
        if epochs < _FEW_EPOCHS:
            return (
                f"{said}: its time suffices for {epochs:.2g} passes over the training data; give "
                "more minutes, let nothing else run on this machine, or choose a smaller architecture"
            )
        return (
            f"{said}: check that the training data has the labels and the values that the model "
            "expects, or give a lower learning rate"
        )


def same_answer(exact: Chunks) -> list[dict[str, Array]]:
    """Return the mean answer for each sample, in chunks of the same sizes.

    Outputs that aren't floats, such as class indices, have no mean: the first answer stands for all.
    """
    fixed = {
        name: np.concatenate([chunk[name] for chunk in exact]).mean(0)
        if first.dtype.kind == "f"
        else first[0]
        for name, first in exact[0].items()
    }
    return [
        {name: np.broadcast_to(fixed[name], a.shape).astype(a.dtype) for name, a in chunk.items()}
        for chunk in exact
    ]
