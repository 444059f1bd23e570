"""Coders in C, compiled on this machine and kept, where there is a compiler."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np

from hasten.core.native import Native, address
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

MESSAGES = (
    "",
    "it ends within its table",
    "its table states no code",
    "its streams are longer than it is",
    "it ends before all bytes are decoded",
    "bits are left after its last byte",
    "its states don't fit its table",
    "its positions don't fit the elements",
)
"""Findings of a decoder, by the number that the one in C returns."""
FINE, SHORT, TABLE, STREAMS, ENDED, LEFT, STATE, RANGE = range(len(MESSAGES))
_LITTLE_BYTES, _MUCH_BYTES = 1 << 16, 1 << 20
"""Bytes up to which decoding in Python takes less than starting a compiler does, and bytes up to which it
takes less than waiting for one."""


class Coders:
    """Coders in C. Calls don't hold the interpreter's lock.

    Args:
        shared: The shared object.

    Raises:
        AttributeError: it is another one.
    """

    def __init__(self, shared: ctypes.CDLL) -> None:
        at, size, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_uint32
        self._counts = _bound(shared.hasten_counts, at, size, at)
        self._counts.restype = None
        self._huffman_decode = _bound(shared.hasten_huffman_decode, at, size, at, size)
        self._huffman_encode = _bound(
            shared.hasten_huffman_encode, at, size, at, number, number, at, size
        )
        self._rans_decode = _bound(shared.hasten_rans_decode, at, size, at, size, at, size)
        self._rans_encode = _bound(
            shared.hasten_rans_encode, at, size, at, number, number, at, size
        )
        wide = ctypes.c_uint64
        self._spread = _bound(shared.hasten_spread, at, size, at, wide, number, at, wide)
        self._join = _bound(shared.hasten_join, at, size, number, at)
        self._rans_room = _bound(shared.hasten_rans_room)()
        self._tables = threading.local()

    def counts(self, data: Array) -> Array:
        """Return how often each byte occurs: uint32 of shape (256,)."""
        found = np.empty(256, np.uint32)
        self._counts(address(data), len(data), address(found))
        return found

    def huffman_decode(self, coded: Array, out: Array) -> None:
        """Decode what `huffman_encode` made."""
        check(self._huffman_decode(address(coded), len(coded), address(out), len(out)))

    def huffman_encode(self, data: Array, lengths: Array, first: int, span: int) -> bytes:
        """Code bytes by codes of some lengths: uint8 of shape (256,), those of a full tree."""
        out = np.empty(len(data) * 11 // 8 + 160, np.uint8)
        size = self._huffman_encode(
            address(data), len(data), address(lengths), first, span, address(out), len(out)
        )
        return out[:size].tobytes()

    def rans_decode(self, coded: Array, out: Array) -> None:
        """Decode a table and what `rans_encode` made."""
        if not hasattr(self._tables, "room"):
            self._tables.room = np.empty(self._rans_room, np.uint8)
        room = self._tables.room
        check(
            self._rans_decode(
                address(coded), len(coded), address(out), len(out), address(room), len(room)
            )
        )

    def rans_encode(self, data: Array, freq: Array, precision: int, lanes: int) -> bytes:
        """Code bytes by their frequencies out of 2^precision: uint32 of shape (256,)."""
        out = np.empty(2 * len(data) + 64, np.uint8)
        size = self._rans_encode(
            address(data), len(data), address(freq), precision, lanes, address(out), len(out)
        )
        return out[len(out) - size :].tobytes()

    def spread(self, gaps: Array, values: Array, width: int, out: Array) -> None:
        """Spread values over `out`, which is zero, with as many elements between as `gaps` states."""
        count, elements = len(values) // width, len(out) // width
        check(
            self._spread(
                address(gaps), len(gaps), address(values), count, width, address(out), elements
            )
        )

    def join(self, planes: Array, out: Array) -> None:
        """Make elements of their planes: uint8 of shape (bytes of an element, elements)."""
        width, elements = planes.shape
        check(self._join(address(planes), elements, width, address(out)))


def check(said: int) -> None:
    """Raise what a decoder found; nothing for 0.

    Raises:
        IntegrityError: it found something.
    """
    if said:
        raise IntegrityError(MESSAGES[said])


def unmade() -> Native[Coders]:
    """Return the coders of a process, which nothing has compiled yet."""
    return Native(
        Path(__file__).with_name("native.c"),
        Coders,
        little=_LITTLE_BYTES,
        much=_MUCH_BYTES,
        log="hasten.packing",
        otherwise="packed tensors are coded and decoded without compiled C, which is many times slower",
    )


coders = unmade()
"""The coders of this process."""


def for_coding() -> Coders | None:
    """Return the coders in C, compiled now if need be; None where there is no compiler."""
    return coders.get(None)


def for_decoding(n: int) -> Coders | None:
    """Return the coders in C; None where there is no compiler, or while it runs and little was asked for.

    A compiler takes about half a second, in which Python decodes a MB or two.

    Args:
        n: Number of bytes to decode.
    """
    return coders.get(n)


def _bound(function: ctypes._NamedFuncPointer, *kinds: type) -> ctypes._NamedFuncPointer:
    function.argtypes, function.restype = kinds, ctypes.c_long
    return function
