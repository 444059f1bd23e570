"""Specs of a model's inputs, in the form that requests are checked against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hasten.bundle.covered import cut
from hasten.core.growth import RowsTogether
from hasten.core.shapes import Extent
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import counted
from hasten.errors import InputError
from hasten.serving.protocol.datatypes import datatype_of
from hasten.serving.protocol.errors import Kind, ProtocolError

_TIMES = 2
"""Size of an open dimension in a request, as a multiple of the largest one in the data, up to which it is answered."""
_USUAL = 1024
"""Size up to which an open dimension is answered, however small it was in the data, and all multiplied."""


@dataclass(frozen=True)
class Lengths:
    """Sizes that an input's open dimensions may have in a request, each and all together.

    Their product may be twice that of the largest sizes in the data, or `_USUAL` if that is more. If the operator gives
    a size, it may be as large as if only the longest of them had that size. Otherwise `together` bounds them besides.

    Attributes:
        known: Axis -> largest size in the data that the bundle was made with, which may be made up. The axis of rows
            which run together is among them only where no other dimension is open.
        given: Largest size that the operator allows; None for the one that follows from the data.
        rows: Whether the first axis is that of rows which run together, however many.
        together: Rows that may run together by their size, from a count of the model's memory; None where the bundle
            states none, or the operator gives a size.
    """

    known: dict[int, int]
    given: int | None = None
    rows: bool = False
    together: RowsTogether | None = None

    @classmethod
    def of(
        cls,
        spec: TensorSpec,
        request: TensorSpec,
        extents: Sequence[Extent],
        *,
        batched: bool,
        rows: bool,
        alone: bool = False,
        given: int | None = None,
        together: RowsTogether | None = None,
    ) -> Lengths:
        """Return the sizes for an input.

        Args:
            spec: Spec of the input; open dimensions have names.
            request: The input in the request that was certified, without open dimensions.
            extents: Dimensions in which the samples of the data differ.
            batched: Whether the first axis is that of a batch, which the server cuts where it is large.
            rows: Whether the first axis is that of rows, which are no length either.
            alone: Whether no input has an open dimension but that; then rows which run together are a length.
            given: Largest size that the operator allows; None for the one that follows from the data.
            together: Rows that may run together by their size; None where the bundle doesn't state their memory.
        """
        known = {
            axis: known
            for axis, (size, known) in enumerate(zip(spec.shape, request.sizes, strict=True))
            if isinstance(size, str) and not ((batched or rows) and axis == 0)
        }
        for one in extents:
            if one.input == spec.name and one.axis in known:
                known[one.axis] = one.most
        if rows and not batched and alone:
            known = {0: 1}
        return cls(known, given, rows and not batched, together if given is None else None)

    def refusal(self, name: str, shape: tuple[int, ...]) -> ProtocolError | None:
        """Return the error for a shape that is too far beyond the data; None if it isn't.

        Args:
            name: Name of the input.
            shape: Shape in the request, of the spec's rank.
        """
        for axis, known in self.known.items():
            usual = self._most(known)
            most = math.floor(min(usual, max(1, known) * self._most_times))
            if shape[axis] > most:
                return self._error(
                    f"input {name!r:.100}: at most {counted(most, 'row')} can be run together here"
                    if self.rows and axis == 0
                    else f"input {name!r:.100}: dimension {axis} has at most {most:,} here",
                    f"{known:,}",
                    f"{shape[axis]:,}: the server's option --max-length allows more",
                    by_memory=most < usual,
                )
        sizes = [shape[axis] for axis in self.known]
        if math.prod(sizes) > self._allowed:
            return self._error(
                f"input {name!r:.100}: the sizes of its open dimensions are at most {self._allowed:,} here when "
                "multiplied",
                _times(self.known.values()),
                f"{_times(sizes)}: the server's option --max-length {self._enough(sizes)} allows it",
            )
        if self.excess(shape) > self._most_times:
            return self._error(
                f"input {name!r:.100}: its open dimensions may exceed those of the data by a factor of "
                f"{math.floor(self._most_times * 10) / 10:,} here when multiplied",
                _times(self.known.values()),
                f"{_times(sizes)}: the server's option --max-length {self._enough(sizes)} allows it",
                by_memory=True,
            )
        return self._refusal_of_rows(name, shape) if self.rows and 0 not in self.known else None

    def _refusal_of_rows(self, name: str, shape: tuple[int, ...]) -> ProtocolError | None:
        """Return the error for too many rows that run together; None if there aren't too many."""
        sizes = [shape[axis] for axis in self.known]
        wanted = math.prod(sizes)
        if not wanted:
            return None
        # Work may grow with a row's square, and a little with that of the number of rows.
        usual = min(self._allowed**2 // wanted**2, max(_USUAL, self.given or 0))
        most = usual
        if self.together is not None:
            most = min(usual, max(1, math.floor(self.together.rows(self._times(shape)))))
        if shape[0] <= most:
            return None
        grown = shape[0] * (wanted * max(1, *self.known.values())) ** 2
        enough = max(*sizes, math.isqrt(grown - 1) // self._product + 1)
        if shape[0] > _USUAL:
            enough = max(enough, shape[0])
        return self._error(
            f"input {name!r:.100}: at most {counted(most, 'row')} of {_times(sizes)} can be run together here",
            _times(self.known.values()),
            f"{shape[0]:,}: the server's option --max-length {enough} allows it",
            by_memory=most < usual,
        )

    def _enough(self, sizes: Sequence[int]) -> int:
        """Return the least size for the operator to give that allows some sizes together."""
        longest = max(1, *self.known.values())
        return max(*sizes, -(-math.prod(sizes) * longest // self._product))

    def excess(self, shape: tuple[int, ...]) -> float:
        """Return how many times as large as in the data a shape is.

        That is the product of the ratios by which open sizes exceed those in the data. Smaller ones make up for nothing,
        since work may grow with one dimension's square alone.
        """
        return math.prod(
            [max(1, shape[axis] / max(1, known)) for axis, known in self.known.items()]
        )

    def _times(self, shape: tuple[int, ...]) -> float:
        """Return a shape's size as a multiple of that in the data; if no dimension is larger, the largest of the ratios."""
        largest = max(shape[axis] / max(1, known) for axis, known in self.known.items())
        return largest if largest <= 1 else self.excess(shape)

    @property
    def allowed_excess(self) -> float:
        """Largest ratio to the size in the data that a shape may have."""
        return self._allowed / self._product

    @cached_property
    def _most_times(self) -> float:
        """Largest `excess` of a row, by the count of the model's memory; infinite without one."""
        if self.together is None:
            return math.inf
        return self.together.most_times(
            max(self._most(one) / max(1, one) for one in self.known.values())
        )

    @cached_property
    def _allowed(self) -> int:
        if self.given is None:
            return self._most(self._product)
        return self.given * self._product // max(1, *self.known.values())

    @cached_property
    def _product(self) -> int:
        return math.prod(max(1, known) for known in self.known.values())

    def _most(self, known: int) -> int:
        """Return the largest size of a dimension, or of their product, that is at most `known` in the data."""
        return max(_TIMES * known, _USUAL) if self.given is None else self.given

    def _error(self, what: str, known: str, got: str, *, by_memory: bool = False) -> ProtocolError:
        why = "" if self.given is not None else f", since the bundle was made with up to {known}"
        if by_memory:
            why += " and more may take over 64 MiB beyond a batch of such samples"
        return ProtocolError(Kind.INVALID, f"{what}{why}; got {got}")


class InputSpec:
    """Spec of an input in the form that requests are checked against.

    Args:
        spec: Spec of the input.
        batched: Whether its first axis is that of a batch.
        lengths: Sizes that its open dimensions may have.

    Attributes:
        name: Name of the input.
        batched: Whether its first axis is that of a batch.
        dtype: Type of its elements.
        datatype: The same in the protocol's terms.
        words: Type and shape for messages.
    """

    __slots__ = ("_lengths", "_shape", "batched", "datatype", "dtype", "name", "words")

    def __init__(self, spec: TensorSpec, batched: bool, lengths: Lengths) -> None:
        self.name, self.batched, self._lengths = spec.name, batched, lengths
        self.dtype = np.dtype(spec.dtype)
        self._shape = tuple(size if isinstance(size, int) else None for size in spec.shape)
        shape = ", ".join(map(str, spec.shape))
        self.datatype = datatype_of(spec.dtype)
        self.words = f"{self.datatype}[{shape}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape has the spec's rank and every fixed size."""
        if len(shape) != len(self._shape):
            return False
        for want, size in zip(self._shape, shape, strict=True):
            if want != size and want is not None:
                return False
        return True

    def mismatch(self, datatype: str, shape: tuple[int, ...]) -> ProtocolError:
        """Return the error that states what the model takes and what it got."""
        return ProtocolError(
            Kind.INVALID,
            f"input {self.name!r}: the model takes {self.words}; got {datatype}{list(shape)}",
        )

    def check_lengths(self, shape: tuple[int, ...]) -> None:
        """Check that a shape that fits isn't far beyond the data.

        Raises:
            ProtocolError: it is; the message names the option that allows it.
        """
        lengths = self._lengths
        if lengths.known and (refusal := lengths.refusal(self.name, shape)):
            try:
                raise refusal
            finally:
                del refusal  # it keeps this frame

    def excess(self, shape: tuple[int, ...]) -> float:
        """Return how many times as large as in the data a shape is, whatever its batch; 1 without open dimensions."""
        return self._lengths.excess(shape) if self._lengths.known else 1.0

    @property
    def allowed_excess(self) -> float:
        """Largest ratio to the size in the data that a shape may have, whatever its batch; 1 without open dimensions."""
        return self._lengths.allowed_excess if self._lengths.known else 1.0


class Parts:
    """Cutting of batches whose samples are larger than in the data, so that none takes more memory than usual ones.

    A part takes no more than the largest batch of the data's longest samples, or than the largest sample that is
    allowed, even if a model's work grows with the square of its input's size.

    Args:
        specs: Inputs of the model, which share the axis of rows.
        sizes: Sizes of batches that the model is warmed up for.
        together: Rows that may run together by their size; None to follow from the largest sample that is allowed.
    """

    def __init__(
        self, specs: Sequence[InputSpec], sizes: Sequence[int], together: RowsTogether | None = None
    ) -> None:
        self._specs, self._sizes, self._together = specs, sizes, together
        self._most = [max(*sizes, spec.allowed_excess**2) for spec in specs]

    def of(self, inputs: Tensors) -> list[dict[str, Array]]:
        """Return the parts that a batch is run in, in their order; none if it is run as it is.

        Args:
            inputs: Arrays by input name, which fit the specs.
        """
        rows = len(inputs[self._specs[0].name])
        if rows == 1:
            return []
        most = math.inf
        for spec, work in zip(self._specs, self._most, strict=True):
            times = spec.excess(inputs[spec.name].shape)
            if times > 1:
                together = self._together
                most = min(most, work / times**2 if together is None else together.rows(times))
        if rows <= most:
            return []
        return cut(inputs, rows, [size for size in self._sizes if size <= most] or [1])


def _times(sizes: Iterable[int]) -> str:
    return " x ".join(f"{size:,}" for size in sizes)


def datatype_of_array(array: Array) -> str:
    """Return the protocol's datatype of an array; numpy's where the protocol has none."""
    try:
        return datatype_of(array.dtype.name)
    except InputError:
        return array.dtype.name
