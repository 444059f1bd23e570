"""A server's description of a model's inputs and outputs, and checks that outputs are complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.errors import InputError
from hasten.serving.protocol.datatypes import DATATYPES, count_of, item_size

_LENGTH_BYTES = 4
"""Bytes of the little-endian length before each element of BYTES."""
SENDABLE = {name: kind for name, kind in DATATYPES.items() if name not in ("BF16", "BYTES")}
"""Datatypes that can be made and read from data here: the protocol's name -> numpy's."""


@dataclass(frozen=True)
class Described:
    """A tensor as the server describes it.

    Attributes:
        name: Name in the model.
        datatype: Datatype by the protocol's name: "FP32", "INT64", "BYTES", ...
        shape: One size per axis; -1 is open.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Return numpy's name of the datatype.

        Raises:
            InputError: a load test can't make such numbers.
        """
        if self.datatype not in SENDABLE:
            raise InputError(
                f"input {self}: a load test sends the data types {', '.join(SENDABLE)}, not "
                f"{self.datatype!r:.40}"
            )
        return SENDABLE[self.datatype]

    def __str__(self) -> str:
        return f"{self.name}: {self.datatype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Metadata:
    """A server's description of a model.

    Attributes:
        inputs: Inputs of the model.
        outputs: Outputs of the model.
    """

    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]


def check_bytes(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> None:
    """Check that an output has as many bytes as its type and shape require.

    Raises:
        ValueError: it doesn't, or the type isn't one of the protocol's.
    """
    count = element_count(shape)
    try:
        item_bytes = item_size(datatype)
    except InputError as error:
        raise ValueError(f"output {name!r:.100}: {error}") from error
    if item_bytes is None:
        found = _texts(raw)
        if found != count:
            raise ValueError(
                f"output {name!r:.100}: {list(shape)} of BYTES are announced, but {found} of "
                "them came"
            )
    elif len(raw) != count * item_bytes:
        raise ValueError(
            f"output {name!r:.100}: {list(shape)} of {datatype} are {count * item_bytes} bytes, "
            f"but {len(raw)} came"
        )


def check_elements(name: str, shape: Sequence[int], found: int) -> None:
    """Check that an output that isn't raw has as many elements as its shape requires.

    Raises:
        ValueError: it doesn't.
    """
    count = element_count(shape)
    if found != count:
        raise ValueError(
            f"output {name!r:.100}: {list(shape)} are {count} elements, but {found} came"
        )


def check_names(wanted: Sequence[str], names: Sequence[str]) -> None:
    """Check that every output is present.

    Raises:
        ValueError: one is missing.
    """
    for name in wanted:
        if name not in names:
            raise ValueError(f"the output {name!r} is missing; {', '.join(names) or 'none'} came")


def element_count(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape.

    Raises:
        ValueError: a size is negative.
    """
    if any(size < 0 for size in shape):
        raise ValueError(f"a size in {list(shape)} is negative")
    return count_of(shape)


def _texts(raw: memoryview) -> int:
    """Count the elements of a tensor of BYTES."""
    count = at = 0
    while at < len(raw):
        at += _LENGTH_BYTES + int.from_bytes(raw[at : at + _LENGTH_BYTES], "little")
        count += 1
    if at != len(raw):
        raise ValueError("a tensor of BYTES is cut short")
    return count
