"""The original model beside what ships, on the same rows: figures over the set, scores, decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from hasten.errors import IntegrityError

_ROUNDING = 1e-12
"""Change of a figure below which only the last bits of float64 differ."""
_MOST = 100
"""Largest number of figures, or notes, of a comparison that is read."""
_LARGEST = 1e300
_SHOWN = 5
"""Largest number of outputs whose differences are told."""


@dataclass(frozen=True)
class Figure:
    """One figure over a set of rows, before and after.

    Attributes:
        noun: Name of the figure: "AUROC".
        before: Figure of the original model.
        after: Figure of the model that it is compared with.
        low: Lower end of an approximate interval of after - before, by a paired bootstrap.
        high: Upper end of that interval.
        higher_is_better: Whether a model with a higher figure is the better one.
        reading: Words for the way in which outputs became scores; empty where they were read as they are.
        bound: Upper bound on how much worse the figure is, exact in finite samples; None where no
            exact bound is known for the figure.
        draws: Number of independent draws behind the bound; 0 without one.
        per_group: Whether the bound is of a mean in which each group counts once.
    """

    noun: str
    before: float
    after: float
    low: float
    high: float
    higher_is_better: bool = True
    reading: str = ""
    bound: float | None = None
    draws: int = 0
    per_group: bool = False

    def change(self, confidence: float) -> str:
        """Return the change with its approximate interval, in words.

        Args:
            confidence: Confidence of the interval, such as 0.95.
        """
        if self.before == self.after and self.low == self.high == 0:
            return "unchanged"
        if max(abs(self.after - self.before), abs(self.low), abs(self.high)) < _ROUNDING:
            return f"unchanged, but for roundings below {_ROUNDING:g}"
        return (
            f"{_signed(self.after - self.before)} (about {_signed(self.low)} to {_signed(self.high)}, "
            f"{100 * confidence:.6g}%)"
        )

    def bounded(self, confidence: float) -> str:
        """Return the exact bound in words; empty where there is none.

        Args:
            confidence: Confidence of the bound, such as 0.95.
        """
        if self.bound is None:
            return ""
        worse = "falls" if self.higher_is_better else "rises"
        each = ", each group once" if self.per_group else ""
        return f"{worse} by at most {_up(self.bound)} ({100 * confidence:.6g}%, exact, {self.draws:,} draws{each})"

    def in_words(self, confidence: float) -> str:
        """Return the figure in one line.

        Args:
            confidence: Confidence of the interval and of the bound, such as 0.95.
        """
        how = f" [{self.reading}]" if self.reading else ""
        sure = self.bounded(confidence)
        return (
            f"{self.noun}{how} {self.before:.4f} before, {self.after:.4f} after: "
            f"{self.change(confidence)}{f'; {sure}' if sure else ''}"
        )


@dataclass(frozen=True)
class Moved:
    """Distances by which scores moved, and the number of decisions that changed with them.

    Attributes:
        equal: Number of rows whose score is equal bit for bit.
        largest: Largest difference of a score.
        mean: Mean difference of a score, without its sign.
        threshold: Threshold of the step that decides; None where no step does.
        changed: Number of rows decided otherwise; 0 where no step decides.
    """

    equal: int
    largest: float
    mean: float
    threshold: float | None = None
    changed: int = 0

    def in_words(self, rows: int) -> str:
        """Return the differences in one line.

        Args:
            rows: Number of rows that were compared.
        """
        if self.equal == rows:
            scores = f"every score of {rows:,} is bit-equal"
        else:
            scores = (
                f"scores differ by at most {self.largest:.3g}, {self.mean:.3g} on average, and "
                f"{self.equal:,} of {rows:,} are bit-equal"
            )
        if self.threshold is None:
            return scores
        share = f" ({100 * self.changed / rows:.3g}%)" if self.changed else ""
        return (
            f"{scores}; {self.changed:,} of {rows:,} decisions{share} change at the threshold "
            f"{self.threshold:.6g}"
        )


@dataclass(frozen=True)
class OutputMoved:
    """Distances by which the numbers of one output moved.

    Attributes:
        output: Name of the output.
        equal: Number of rows whose numbers are all equal bit for bit.
        largest: Largest difference of a number.
        mean: Mean over the rows of their largest difference.
    """

    output: str
    equal: int
    largest: float
    mean: float

    def in_words(self, rows: int) -> str:
        """Return the differences in a few words.

        Args:
            rows: Number of rows that were compared.
        """
        if self.equal == rows:
            return f"{self.output} is bit-equal"
        return (
            f"{self.output} differs by at most {self.largest:.3g}, {self.mean:.3g} on average, and is "
            f"bit-equal in {self.equal:,}"
        )


@dataclass(frozen=True)
class Comparison:
    """The original model and another on the same rows, which no choice was made by.

    Attributes:
        label: Description of the other model, for people.
        rows: Number of rows.
        groups: Number of groups that the rows are of; None where every row stands alone.
        confidence: Confidence of each interval and of each bound, in (0, 1).
        figures: Figures over the rows.
        moved: Differences of the scores; None where the model has no such scores.
        missing: Reasons why a figure is missing, one line each.
        outputs: Differences of the outputs of floats, without the one that `moved` is about.
    """

    label: str
    rows: int
    groups: int | None
    confidence: float
    figures: tuple[Figure, ...] = ()
    moved: Moved | None = None
    missing: tuple[str, ...] = ()
    outputs: tuple[OutputMoved, ...] = ()

    @property
    def how(self) -> str:
        """Words for the method of the intervals; empty without figures."""
        if not self.figures:
            return ""
        unit = "rows" if self.groups is None else f"{self.groups:,} groups"
        return (
            f"The intervals of a change come from a paired bootstrap over {unit}: they are "
            "approximate, not certified. Each bound is exact in finite samples, and it holds for "
            "any candidate that ships."
        )

    def in_words(self) -> tuple[str, ...]:
        """Return the comparison in a few lines; none where there is nothing to say."""
        lines = [figure.in_words(self.confidence) for figure in self.figures]
        if self.moved is not None:
            lines.append(self.moved.in_words(self.rows))
        if self.outputs:
            lines.append(self.outputs_in_words())
        return (*lines, *self.missing)

    def outputs_in_words(self) -> str:
        """Return how far the outputs moved, in one line."""
        if all(one.equal == self.rows for one in self.outputs):
            named = "of" if self.moved is None else "of the other outputs of"
            return f"every number {named} {self.rows:,} rows is bit-equal"
        told = [one.in_words(self.rows) for one in self.outputs[:_SHOWN]]
        more = len(self.outputs) - len(told)
        others = [f"{more:,} more output{'s'[: more > 1]}"] if more else []
        return f"of {self.rows:,} rows: {'; '.join((*told, *others))}"

    def check(self) -> None:
        """Check a comparison that was read from a file.

        Raises:
            IntegrityError: a number is impossible; the message says which.
        """
        if not (0 < self.rows < 2**53 and 0 < self.confidence < 1):
            raise IntegrityError(
                f"a comparison of {self.rows} rows at the confidence {self.confidence:g} is impossible"
            )
        if self.groups is not None and not 0 < self.groups <= self.rows:
            raise IntegrityError(
                f"a comparison of {self.rows} rows can't have {self.groups} groups"
            )
        if max(len(self.figures), len(self.missing), len(self.outputs)) > _MOST:
            raise IntegrityError(f"a comparison has more than {_MOST} figures")
        for what, bounds in self._ascending():
            if not all(low <= high for low, high in pairwise(bounds)):
                raise IntegrityError(f"a comparison's {what} is out of range")

    def _ascending(self) -> Iterator[tuple[str, tuple[float, ...]]]:
        """Yield names of numbers, and tuples that must ascend; NaN in one never does."""
        for one in self.figures:
            yield f"{one.noun:.100}", (-_LARGEST, one.before, _LARGEST)
            yield f"{one.noun:.100}", (-_LARGEST, one.after, _LARGEST)
            yield f"interval of {one.noun:.100}", (-_LARGEST, one.low, one.high, _LARGEST)
            yield f"bound of {one.noun:.100}", (0, one.bound or 0, 1)
            yield f"number of draws of {one.noun:.100}", (0, one.draws, self.rows)
        for output in self.outputs:
            yield f"difference of {output.output:.100}", (0, output.mean, output.largest, _LARGEST)
            yield f"number of equal rows of {output.output:.100}", (0, output.equal, self.rows)
        if self.moved is not None:
            yield "difference of scores", (0, self.moved.mean, self.moved.largest, _LARGEST)
            yield "number of equal scores", (0, self.moved.equal, self.rows)
            yield "number of changed decisions", (0, self.moved.changed, self.rows)
            yield "threshold", (-_LARGEST, self.moved.threshold or 0, _LARGEST)


def _signed(change: float) -> str:
    """Write a change with its sign and four decimals; more where four would show nothing."""
    if change and abs(change) < 5e-5:
        return f"{change:+.1e}"
    return f"{change + 0.0:+.4f}"


def _up(bound: float) -> str:
    """Write a bound with four decimals, rounded up."""
    return f"{-(-bound * 1e4 // 1) / 1e4:.4f}"
