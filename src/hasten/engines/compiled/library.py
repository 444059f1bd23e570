"""Shared object of a compiled model in this process, and calls of it without cost."""

from __future__ import annotations

import ctypes
import hashlib
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from hasten.core.forks import ForkedLock
from hasten.core.shared_objects import opened
from hasten.core.tensors import Array
from hasten.engines.compiled.granted import amx_granted
from hasten.engines.compiled.tensors import ALIGNMENT
from hasten.errors import BeyondRange, CandidateError

_LOCK = ForkedLock()
_loaded: dict[str, Library] = {}
"""Libraries of this process by the hash of their content; none is ever unloaded, since its functions
may be anywhere."""


class Library:
    """Loaded shared object.

    Args:
        content: Bytes of the shared object, which this process or an earlier one of this user made.

    Raises:
        CandidateError: it can't be loaded.
    """

    def __init__(self, content: bytes) -> None:
        try:
            self._shared = opened(content, ctypes.PyDLL)
            self._bind = self._shared.hasten_bind
        except (OSError, AttributeError) as error:
            raise CandidateError(f"the compiled model can't be loaded: {error}") from error
        if hasattr(self._shared, "hasten_amx") and not amx_granted():
            raise CandidateError(
                "the compiled model needs AMX, which the system doesn't allow this process to use"
            )
        self._bind.restype = ctypes.py_object
        self._bind.argtypes = [
            ctypes.py_object,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_long,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.py_object,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.py_object,
        ]

    @classmethod
    def load(cls, content: bytes) -> Library:
        """Return the library of some bytes, loaded once."""
        key = hashlib.sha256(content).hexdigest()
        with _LOCK:
            if key not in _loaded:
                _loaded[key] = cls(content)
            return _loaded[key]

    def team(self, threads: int) -> Team:
        """Return a team of threads, of which none is started before the first call.

        Only the C of a source that is `shared` has teams.

        Args:
            threads: Number of threads with the calling one.
        """
        return Team(self._shared, threads)

    def times(self, operations: int) -> Array:
        """Return where a library that keeps times keeps them: int64 of shape (operations,), shared.

        Raises:
            CandidateError: it keeps none.
        """
        try:
            kept = (ctypes.c_int64 * operations).in_dll(self._shared, "hasten_ns")
        except ValueError as error:
            raise CandidateError(f"the compiled model's times can't be read: {error}") from error
        return np.ctypeslib.as_array(kept)

    def answering(
        self, tables: Array, arena_bytes: int, team: Team | None = None
    ) -> Callable[..., None]:
        """Return a function of the inputs' arrays and then the outputs', for one thread at a time.

        It raises BeyondRange where a request names a place beyond a tensor.

        Args:
            tables: Constants, as uint8, aligned.
            arena_bytes: Memory that a call needs in between.
            team: Threads that share a call; None for the calling one alone.
        """
        arena = aligned(arena_bytes)
        kept = (tables, arena, team)
        return self._bind(  # type: ignore[no-any-return]
            kept,
            None,
            None,
            0,
            arena.ctypes.data,
            tables.ctypes.data,
            CandidateError,
            None,
            team and team.address,
            BeyondRange,
        )

    def bound(
        self,
        tables: Array,
        arena_bytes: int,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        rows: int,
        closed: Array,
        team: Team | None = None,
    ) -> Callable[[], None]:
        """Return a function without arguments that answers from and to these arrays each time.

        It raises CandidateError while another thread runs it, and once `closed` says so; and BeyondRange where a
        request names a place beyond a tensor.

        Args:
            tables: Constants, as uint8, aligned.
            arena_bytes: Memory that a call needs in between.
            inputs: Contiguous arrays of the plan's inputs.
            outputs: Contiguous arrays of the plan's outputs, which can be written to.
            rows: Number of rows of all of them.
            closed: int32 of shape (1,), 0 until the function is to refuse.
            team: Threads that share a call; None for the calling one alone.
        """
        arena = aligned(arena_bytes)
        kept = (tables, arena, closed, team, CandidateError, *inputs, *outputs)
        given = (ctypes.c_void_p * len(inputs))(*(array.ctypes.data for array in inputs))
        taken = (ctypes.c_void_p * len(outputs))(*(array.ctypes.data for array in outputs))
        return self._bind(  # type: ignore[no-any-return]
            kept,
            given,
            taken,
            rows,
            arena.ctypes.data,
            tables.ctypes.data,
            CandidateError,
            closed.ctypes.data,
            team and team.address,
            BeyondRange,
        )


class Team:
    """Threads of one session that share a call; a call that finds them busy runs alone.

    They end with the last reference to it. Where there can't be any, calls run alone.

    Args:
        shared: Loaded shared object.
        threads: Number of threads with the calling one.

    Attributes:
        address: Address of the team in C; None where there can't be one.
    """

    def __init__(self, shared: ctypes.PyDLL, threads: int) -> None:
        make, self._dismiss, disband = (
            getattr(shared, f"hasten_{name}") for name in ("team", "dismiss", "disband")
        )
        make.restype, make.argtypes = ctypes.c_void_p, [ctypes.c_long]
        self._dismiss.restype = disband.restype = None
        self._dismiss.argtypes = disband.argtypes = [ctypes.c_void_p]
        self.address: int | None = make(threads)
        # At the end of the interpreter threads that aren't Python's may still be in a call.
        weakref.finalize(self, disband, self.address).atexit = False

    def dismiss(self) -> None:
        """End the threads, unless they are in a call; a later call restarts them."""
        self._dismiss(self.address)


def aligned(size: int) -> Array:
    """Return zeros as uint8 of some bytes, at a multiple of `ALIGNMENT`."""
    whole = np.zeros(size + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + size]
