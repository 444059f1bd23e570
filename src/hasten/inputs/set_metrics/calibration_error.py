"""Expected calibration error: how far probabilities are from how often things happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.set_metrics.scores import Cases, ScoreMetric


@dataclass(frozen=True)
class CalibrationError(ScoreMetric):
    """Mean distance of probabilities from frequencies, over bins of equal width.

    Of two classes the probability of class 1 is compared with how often class 1 happened. Of more
    it is the highest probability, with how often that class was right (Guo et al., ICML 2017).

    Attributes:
        bins: Number of bins that [0, 1] is divided into.
    """

    bins: int = 10
    noun: ClassVar[str] = "calibration error"
    spellings: ClassVar[tuple[str, ...]] = ("calibration_error[:BINS]",)
    higher_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number of bins."""
        if not 1 <= self.bins <= 1000:
            raise InputError(f"calibration_error:{self.bins}: give 1 to 1000 bins")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "calibration_error", or "calibration_error:15" with the number of bins."""
        if setting and not setting.isdecimal():
            raise InputError(f"metric {text!r}: {setting!r} isn't a number of bins")
        return cls(bins=int(setting)) if setting else cls()

    @property
    def reading(self) -> str:
        how = super().reading
        return f"{self.bins} bins{f', {how}' if how else ''}"

    def figure(self, cases: Cases, counts: Array) -> float:
        if cases.binary:
            sure, right = cases.probabilities[:, 1], cases.classes == 1
        else:
            sure = cases.probabilities.max(axis=1)
            right = cases.probabilities.argmax(axis=1) == cases.classes
        place = np.minimum((sure * self.bins).astype(np.int64), self.bins - 1)
        apart = np.bincount(place, weights=counts * (sure - right), minlength=self.bins)
        return float(np.abs(apart).sum() / counts.sum())
