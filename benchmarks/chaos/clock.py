"""Wall clock of a server's processes, which jumps while the machine's own stays as it is."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hasten.core.c_compiler import Compiler
from hasten.errors import CandidateError, InputError

_SOURCE = Path(__file__).with_suffix(".c")
_YEAR_S = 365 * 86_400
_TRY_S = 60.0


class Clock:
    """Offset of the wall clock in every program that is started with `env`.

    What libc says is the time moves, and the end of what waits for a time of the wall clock. The
    monotonic clock doesn't, as after a real jump. Neither do the times of files, which the kernel states,
    nor the clock of a program that doesn't ask libc: one that is linked statically, or makes system
    calls by itself.

    Args:
        folder: Folder for its files; it is made.

    Attributes:
        env: Variables for the environment of a program.

    Raises:
        InputError: the clock can't be moved here; the message says why.
    """

    def __init__(self, folder: Path) -> None:
        try:
            built = Compiler.find().compile(_SOURCE.read_text())
        except CandidateError as error:
            raise InputError(str(error)) from error
        folder.mkdir()
        library, page = folder / "clock.so", folder / "offset"
        library.write_bytes(built.content)
        page.write_bytes(bytes(mmap.PAGESIZE))
        with page.open("r+b") as file:
            self._offset_ns = ctypes.c_int64.from_buffer(mmap.mmap(file.fileno(), 0))
        before = os.environ.get("LD_PRELOAD", "")
        self.env: Mapping[str, str] = {
            "LD_PRELOAD": f"{library} {before}".strip(),
            "CHAOS_CLOCK": str(page),
        }
        self._try()

    def jump(self, offset_s: int) -> None:
        """Set the clock so far ahead of the machine's, or behind where it is negative."""
        self._offset_ns.value = offset_s * 1_000_000_000

    def _try(self) -> None:
        self.jump(_YEAR_S)
        before_s = time.time()
        tried = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=_TRY_S,
        )
        self.jump(0)
        if tried.returncode:
            raise InputError(f"Python doesn't start with another clock: {tried.stderr.strip()}")
        if not _YEAR_S <= float(tried.stdout) - before_s < _YEAR_S + _TRY_S:
            raise InputError("Python doesn't ask libc for the time")
