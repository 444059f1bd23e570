"""Text from a network that was trained by connectionist temporal classification (CTC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_between,
    check_finite,
    check_shape,
    output_of,
)


@dataclass(frozen=True)
class Ctc(PostStep):
    """Read a text along its likeliest path: `{"text", "confidence", "weakest"}`.

    At each time the likeliest class is taken; repetitions count once, and blanks are left out. A
    character's probability is the highest one among the times that it stands for. `confidence` is
    their mean and `weakest` the lowest of them; of an empty text, those of the blanks.

    With `least` the step may abstain, and the decision has `abstained` in either case: it is then
    `{"abstained": true, "least", "likeliest": {...}}`, so that no program takes a guess for an answer.

    Source: Graves et al., Connectionist temporal classification, ICML 2006, section 3.2.1, "best path
    decoding".

    Attributes:
        alphabet: Text of each class in order, without the blank's: characters, or longer pieces.
        blank: Class of the blank; -1 where it is the last.
        activation: Function that turns the model's numbers into probabilities: "softmax", "exp" where they are
            logarithms of probabilities, or "none".
        least: Lowest probability of a text's weakest character, in [0, 1], below which the step
            abstains; 0 for a step that never does.
        output: Name of the model's output [times, classes]; by default its only one.
    """

    alphabet: tuple[str, ...]
    blank: int = 0
    activation: Literal["softmax", "exp", "none"] = "softmax"
    least: float = 0.0
    output: str = ""
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check that there is an alphabet, and that the blank is one of its classes."""
        if not self.alphabet:
            raise InputError("ctc.alphabet is empty: give the text of each class except the blank")
        if not -1 <= self.blank <= len(self.alphabet):
            raise InputError(
                f"ctc.blank={self.blank!r}: give a class from 0 to {len(self.alphabet)}, or -1"
            )
        if self.activation not in ("softmax", "exp", "none"):
            raise InputError(f"ctc.activation={self.activation!r}: give 'softmax', 'exp' or 'none'")
        check_between("ctc.least", self.least, 0, 1)

    @property
    def _needs(self) -> str:
        count = len(self.alphabet)
        return f"ctc has {count} texts and a blank, and needs [times, {count + 1}]"

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with a score for each class at each time.

        Raises:
            InputError: there is none; the message says what is needed.
        """
        spec = output_of(outputs, self.output, "ctc")
        check_shape(spec, (None, len(self.alphabet) + 1), f"{self._needs} after the batch axis")

    def __call__(self, value: Any, origin: Origin) -> dict[str, Any]:
        scores = array_of(value, self.output, "ctc")
        classes = len(self.alphabet) + 1
        if scores.ndim != 2 or scores.shape[1] != classes or not len(scores):
            raise InputError(f"{self._needs}; got {list(scores.shape)}")
        path = scores.argmax(axis=1)  # the place of the first NaN, where there is one
        peaks = scores[np.arange(len(path)), path].astype(np.float32)
        check_finite(peaks, "ctc", self.output)
        if self.activation == "softmax":
            below = scores.astype(np.float32)
            below -= peaks[:, None]
            peaks = 1 / np.exp(below, out=below).sum(axis=1)
        elif self.activation == "exp":
            peaks = np.exp(np.minimum(peaks, 0))
        starts = np.flatnonzero(np.diff(path, prepend=-1))
        highest, kinds = np.maximum.reduceat(peaks, starts), path[starts]
        blank = self.blank % classes
        read = kinds != blank
        certain = highest[read] if read.any() else peaks
        texts = self.alphabet
        told = {
            "text": "".join([texts[k - (k > blank)] for k in kinds[read].tolist()]),
            "confidence": float(certain.mean()),
            "weakest": float(certain.min()),
        }
        if not self.least:
            return told
        if certain.min() < self.least:
            return {"abstained": True, "least": self.least, "likeliest": told}
        return {"abstained": False, **told}

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether both read the same text, and both abstain or neither does."""
        if decision.get("abstained") != exact.get("abstained"):
            return False
        mine, read = (one.get("likeliest", one) for one in (decision, exact))
        return bool(mine["text"] == read["text"])
