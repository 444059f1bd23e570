"""Probabilities of classes from those of each pair of them, as support vector machines give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.engines.compiled.plan import Operation, Plan

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

MOST_CLASSES = 1_000
"""Largest number of classes: the memory and the work grow by its square."""
_ROUNDS = 100
"""Largest number of rounds, as in `couplings.c`."""
_CLOSE = 0.005
"""Largest error at which the rounds end, times the number of classes."""


@dataclass(frozen=True)
class Couple(Operation):
    """Probabilities that fit those of the pairs best, by rounds that end once they are close.

    ONNX Runtime ends its rounds likewise, so that its answers are as far from the best ones.

    Source: Wu, Lin and Weng, "Probability Estimates for Multi-class Classification by Pairwise Coupling", 2004,
    algorithm 2.

    Attributes:
        input: Tensor of the probability of each pair's first class as float32, of the classes 0 and 1, 0 and 2,
            ..., 1 and 2, ...
        output: Tensor of the probability of each class as float32.
        classes: Number of classes, from 2 to `MOST_CLASSES`.
    """

    input: str
    output: str
    classes: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return _ROUNDS * self.classes**2

    def check(self, plan: Plan) -> None:
        if not 2 <= self.classes <= MOST_CLASSES:
            self.refuse(f"{self.classes} classes")
        pairs = self.classes * (self.classes - 1) // 2
        self.check_sizes(plan, "float32", (self.input, pairs), (self.output, self.classes))

    def emit(self, writer: Writer) -> None:
        writer.part("couplings.c")
        count = self.classes
        chances, made = writer.read(self.input), writer.write(self.output)
        matrix, row = writer.scratch("float32", count**2), writer.scratch("float32", count)
        writer.line(f"couple({chances}, {count}, {_CLOSE / count:.9g}f, {matrix}, {row}, {made});")
