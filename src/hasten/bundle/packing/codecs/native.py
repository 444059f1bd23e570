"""Coders in C, compiled on this machine and kept, where there is a compiler."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import platform
import threading
from pathlib import Path

import numpy as np

from hasten.core.cache_folder import cache_folder
from hasten.core.tensors import Array
from hasten.errors import CandidateError, InputError, IntegrityError

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
"""What a decoder finds, by the number that the one in C returns."""
FINE, SHORT, TABLE, STREAMS, ENDED, LEFT, STATE, RANGE = range(len(MESSAGES))
_LIMIT_S = 60.0
_LITTLE_BYTES, _MUCH_BYTES = 1 << 16, 1 << 20
"""Bytes up to which decoding in Python takes less than starting a compiler does, and bytes up to which it
takes less than waiting for one."""
_MACHINE = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
"""Lines of /proc/cpuinfo that tell which instructions a processor has."""
_log = logging.getLogger("hasten.packing")


class Native:
    """Coders in C. Calls don't hold the interpreter's lock.

    Args:
        content: Bytes of the shared object.

    Raises:
        OSError: it can't be loaded.
        AttributeError: it is another one.
    """

    def __init__(self, content: bytes) -> None:
        from hasten.engines.compiled.opening import opened

        shared = opened(content, ctypes.CDLL)
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
        self._counts(_address(data), len(data), _address(found))
        return found

    def huffman_decode(self, coded: Array, out: Array) -> None:
        """Decode what `huffman_encode` made."""
        check(self._huffman_decode(_address(coded), len(coded), _address(out), len(out)))

    def huffman_encode(self, data: Array, lengths: Array, first: int, span: int) -> bytes:
        """Code bytes by codes of some lengths: uint8 of shape (256,), those of a full tree."""
        out = np.empty(len(data) * 11 // 8 + 160, np.uint8)
        size = self._huffman_encode(
            _address(data), len(data), _address(lengths), first, span, _address(out), len(out)
        )
        return out[:size].tobytes()

    def rans_decode(self, coded: Array, out: Array) -> None:
        """Decode a table and what `rans_encode` made."""
        if not hasattr(self._tables, "room"):
            self._tables.room = np.empty(self._rans_room, np.uint8)
        room = self._tables.room
        check(
            self._rans_decode(
                _address(coded), len(coded), _address(out), len(out), _address(room), len(room)
            )
        )

    def rans_encode(self, data: Array, freq: Array, precision: int, lanes: int) -> bytes:
        """Code bytes by their frequencies out of 2^precision: uint32 of shape (256,)."""
        out = np.empty(2 * len(data) + 64, np.uint8)
        size = self._rans_encode(
            _address(data), len(data), _address(freq), precision, lanes, _address(out), len(out)
        )
        return out[len(out) - size :].tobytes()

    def spread(self, gaps: Array, values: Array, width: int, out: Array) -> None:
        """Spread values over `out`, which is zero, with as many elements between as `gaps` states."""
        count, elements = len(values) // width, len(out) // width
        check(
            self._spread(
                _address(gaps), len(gaps), _address(values), count, width, _address(out), elements
            )
        )

    def join(self, planes: Array, out: Array) -> None:
        """Make elements of their planes: uint8 of shape (bytes of an element, elements)."""
        width, elements = planes.shape
        check(self._join(_address(planes), elements, width, _address(out)))


def check(said: int) -> None:
    """Raise what a decoder found; nothing for 0.

    Raises:
        IntegrityError: it found something.
    """
    if said:
        raise IntegrityError(MESSAGES[said])


class Making:
    """The coders of a process: none at first, then from the cache or the compiler."""

    def __init__(self) -> None:
        self.made: Native | None = None
        self._lock = threading.Lock()
        self._looked = self._ended = False
        self._thread: threading.Thread | None = None
        self._asked_bytes = 0

    def get(self, n: int | None) -> Native | None:
        """Return the coders; None where there are none, or while they are compiled.

        Args:
            n: Number of bytes to decode, which are done in Python while they are few; None to wait for
                the compiler.
        """
        if not self._looked:  # without the lock, which a process that is forked off would keep
            if (kept := _kept()) is not None:
                self.made = kept
            self._looked = True
        with self._lock:
            self._asked_bytes += n or 0
            if self.made is None and (n is None or self._asked_bytes > _LITTLE_BYTES):
                self._start()
        if self._thread is not None and (n is None or self._asked_bytes > _MUCH_BYTES):
            self._thread.join()
        return self.made

    def _start(self) -> None:
        """Compile in a thread, unless one does or did; it doesn't go on in a forked process."""
        if not self._ended and (self._thread is None or not self._thread.is_alive()):
            thread = threading.Thread(target=self._make, name="hasten-compile")
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                thread.start()
                self._thread = thread

    def _make(self) -> None:
        try:
            self.made = _compiled()
        except (InputError, CandidateError, OSError, AttributeError) as error:
            _log.warning(
                "packed tensors are coded and decoded without compiled C, which is many times "
                "slower: %s",
                error,
            )
        finally:
            self._ended = True


_making = Making()


def for_coding() -> Native | None:
    """Return the coders in C, compiled now if need be; None where there is no compiler."""
    return _making.made or _making.get(None)


def for_decoding(n: int) -> Native | None:
    """Return the coders in C; None where there is no compiler, or while it runs and little was asked for.

    A compiler takes about half a second, in which Python decodes a MB or two.

    Args:
        n: Number of bytes to decode.
    """
    return _making.made or _making.get(n)


def source() -> str:
    """Return the text in C."""
    return Path(__file__).with_name("native.c").read_text()


def _kept() -> Native | None:
    """Return the coders that an earlier process kept."""
    if (folder := cache_folder()) is not None:
        with folder.entry(_key()) as entry:
            if entry is not None:
                try:
                    return Native(entry.content)
                except (OSError, AttributeError):
                    folder.drop(_key())
    return None


def _compiled() -> Native:
    """Compile the coders and keep them.

    Raises:
        InputError: there is no compiler.
        CandidateError: it failed.
    """
    from hasten.engines.compiled.compiler import Compiler

    content = Compiler.find().compile(source(), _LIMIT_S).content
    made = Native(content)
    if (folder := cache_folder()) is not None:
        folder.put(_key(), content)
    return made


def _key() -> str:
    """Return the key in the cache: all that the machine code depends on but for the compiler.

    Arithmetic of integers comes out the same by each compiler, and asking for its version takes longer
    than all of the rest.
    """
    facts = [source(), platform.machine()]
    try:
        with Path("/proc/cpuinfo").open() as file:
            first = file.read(1 << 14).split("\n\n")[0]
        facts += [line for line in first.splitlines() if line.startswith(_MACHINE)]
    except OSError:
        facts.append(platform.node())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _bound(function: ctypes._NamedFuncPointer, *kinds: type) -> ctypes._NamedFuncPointer:
    function.argtypes, function.restype = kinds, ctypes.c_long
    return function


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]
