"""Specs of a model's inputs, in the form that requests are checked against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.shapes import Extent
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.serving.protocol.datatypes import datatype_of
from hasten.serving.protocol.errors import Kind, ProtocolError

_TIMES = 2
"""Size of an open dimension in a request, as a multiple of the largest one in the data, up to which it is answered."""
_USUAL = 1024
"""Size up to which an open dimension is answered, however small it was in the data: texts and pictures as they are."""


@dataclass(frozen=True)
class Lengths:
    """Sizes that an input's open dimensions may have in a request.

    Attributes:
        known: Axis -> largest size in the data that the bundle was made with, which may be made up.
        given: Largest size that the operator allows; None for the one that follows from the data.
    """

    known: dict[int, int]
    given: int | None = None

    @classmethod
    def of(
        cls,
        spec: TensorSpec,
        request: TensorSpec,
        extents: Sequence[Extent],
        *,
        batched: bool,
        given: int | None = None,
    ) -> Lengths:
        """Return the sizes for an input.

        Args:
            spec: Spec of the input; open dimensions have names.
            request: The input in the request that was certified, without open dimensions.
            extents: Dimensions in which the samples of the data differ.
            batched: Whether the first axis is that of a batch, which isn't a length.
            given: Largest size that the operator allows; None for the one that follows from the data.
        """
        known = {
            axis: known
            for axis, (size, known) in enumerate(zip(spec.shape, request.sizes, strict=True))
            if isinstance(size, str) and not (batched and axis == 0)
        }
        for one in extents:
            if one.input == spec.name and one.axis in known:
                known[one.axis] = one.most
        return cls(known, given)

    def refusal(self, name: str, shape: tuple[int, ...]) -> ProtocolError | None:
        """Return the error for a shape that is too far beyond the data; None if it isn't.

        Args:
            name: Name of the input.
            shape: Shape in the request, of the spec's rank.
        """
        for axis, known in self.known.items():
            most, why = self.given, ""
            if most is None:
                most, why = (
                    max(_TIMES * known, _USUAL),
                    f", since the bundle was made with up to {known:,}",
                )
            if shape[axis] > most:
                return ProtocolError(
                    Kind.INVALID,
                    f"input {name!r:.100}: dimension {axis} has at most {most:,} here{why}; got "
                    f"{shape[axis]:,}: the server's option --max-length allows more",
                )
        return None


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
        if self._lengths.known and (refusal := self._lengths.refusal(self.name, shape)):
            try:
                raise refusal
            finally:
                del refusal  # it keeps this frame


def datatype_of_array(array: Array) -> str:
    """Return the protocol's datatype of an array; numpy's where the protocol has none."""
    try:
        return datatype_of(array.dtype.name)
    except InputError:
        return array.dtype.name
