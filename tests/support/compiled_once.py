"""Each text of C is compiled once, for this suite and later ones: the same compiler makes the same object again.

Where hasten's own code around the compiler is another, all is compiled anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from hasten.core import c_compiler
from hasten.core.c_compiler import Built, Compiler

MOST_BYTES = 256 << 20
"""Size of all that is kept between suites."""
_HANGS_ON = ("HOME", "PATH")
"""Environment variables without which a compiler may fail."""


@contextlib.contextmanager
def compiled_once(folder: Path, lasting: Path | None) -> Iterator[None]:
    """Keep what is compiled inside, in folders which several processes may share.

    Args:
        folder: Folder of this suite, below its temporary one: for compilers that tests make there, and for the one
            from PyPI, whose home and linker no version tells of.
        lasting: Folder for what other compilers make, which later suites read, too.
    """
    compiled = Compiler._compiled
    own = hashlib.sha256(Path(c_compiler.__file__).read_bytes()).hexdigest()
    folder.mkdir(exist_ok=True)
    if lasting is not None:
        forget_the_oldest(lasting, MOST_BYTES)

    @functools.wraps(compiled)
    def kept(self: Compiler, source: str | tuple[str, ...], limit_s: float) -> Built:
        if not os.access(tempfile.gettempdir(), os.W_OK):  # as a test may have it
            return compiled(self, source, limit_s)
        around = (own, _processor(), *(str(bool(os.environ.get(name))) for name in _HANGS_ON))
        text = source if isinstance(source, str) else "".join(source)
        words = "\0".join((*self.command, self.version, *self.flags, *around, text))
        program = shutil.which(self.command[0]) or self.command[0]
        passing = program == sys.executable or Path(program).is_relative_to(folder.parent)
        place = folder if lasting is None or passing else lasting
        file = place / hashlib.sha256(words.encode()).hexdigest()
        with contextlib.suppress(FileNotFoundError, EOFError, pickle.UnpicklingError):
            built = Built(*pickle.loads(file.read_bytes()))
            os.utime(file)
            return built
        built = compiled(self, source, limit_s)
        part = file.with_suffix(f".{os.urandom(4).hex()}")
        part.write_bytes(pickle.dumps((built.content, built.seconds)))
        part.replace(file)
        return built

    with patch.object(Compiler, "_compiled", kept):
        yield


def forget_the_oldest(folder: Path, most_bytes: int) -> None:
    """Remove the files of a folder that were used least recently, until the others fit."""
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process is at it, too
            found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    for _, size_bytes, file in sorted(found, reverse=True):
        most_bytes -= size_bytes
        if most_bytes < 0:
            file.unlink(missing_ok=True)


@functools.cache
def _processor() -> str:
    """Return what `-march=native` hangs on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return " ".join(
            sorted({line for line in lines if line.startswith(("model name", "flags"))})
        )
    return platform.processor()
