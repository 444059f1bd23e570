"""C compiler of this machine: the system's own, or the one in the package ziglang."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hasten.core.cache_folder import cache_folder, key_of
from hasten.errors import CandidateError, InputError

VARIABLE = "HASTEN_CC"
"""Environment variable with the compiler to use, by name or path, or "off"."""
OFF = "off"
LIMIT_S = 120.0
"""Longest time in seconds that a compiler may take for one model."""
_ASKING_S = 60.0
"""Longest time in seconds for a compiler's version, and for `_LEAST`; the one from PyPI unpacks itself at first."""
_KNOWN = ("cc", "gcc", "clang")
FLAGS = (
    "-std=gnu11",
    "-march=native",
    "-shared",
    "-fPIC",
    "-nostdlib",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fwrapv",
    "-fno-stack-protector",
    "-fno-sanitize=all",
    "-ffp-contract=fast",
    "-fno-semantic-interposition",
    "-fopenmp-simd",
    "-w",
)
"""Flags that keep the arithmetic's meaning: NaN and infinities stay as written, and so does the order of sums,
but for the loops whose pragma says that it doesn't matter. Whole numbers wrap, or a compiler drops the bounds of
places that only an overflow could leave."""
_OPTIMIZED = {"gcc": ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-fpeel-loops")}
"""Flags by which a kind of compiler optimizes; others take `-O3`. Of that, gcc needs these flags for code as fast, and
half the time or less where there are many small loops."""
_OWN_ATOMICS = {"gcc": 10, "clang": 12}
"""First versions whose atomic operations call functions of their library, for ARM processors that lack instructions:
a Raspberry Pi 4 does. A shared object without a library can't be loaded then."""
_TOLD_LETTERS = 300
_FOLDERS = ("TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
"""Environment variables with the folder for what a compiler leaves: zig's keeps objects, and fails without a home."""
_LEAST = "int works;\n"
"""Text that each compiler is tried with: one without its assembler or linker knows its version too."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler that is installed.

    Attributes:
        command: Words that it is started with.
        version: Kind and version: "gcc-12.2.0".
    """

    command: tuple[str, ...]
    version: str

    @classmethod
    def find(cls) -> Compiler:
        """Return the compiler to use: what HASTEN_CC names, the system's own, or ziglang's.

        Raises:
            InputError: there is none, the one that is named doesn't work, or HASTEN_CC is "off".
        """
        return _find(os.environ.get(VARIABLE, ""), os.environ.get("PATH", ""))

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags that C is compiled with."""
        kind, _, number = self.version.partition("-")
        major = number.partition(".")[0]
        own = major.isdecimal() and int(major) >= _OWN_ATOMICS.get(kind, sys.maxsize)
        inline = ("-mno-outline-atomics",) if own and platform.machine() == "aarch64" else ()
        return (*FLAGS, *inline, *_OPTIMIZED.get(kind, ("-O3",)))

    def compile(self, source: str | tuple[str, ...], limit_s: float = LIMIT_S) -> Built:
        """Compile C into a shared object for this machine's processor.

        Args:
            source: Text in C, of one file, that includes nothing; or its parts in order.
            limit_s: Longest time in seconds.

        Raises:
            CandidateError: the compiler failed, or didn't end in time; the message is its first line.
                Or it can't be run, as without room for temporary files.
        """
        try:
            return self._compiled(source, limit_s)
        except OSError as error:  # no room for temporary files, or the compiler went away
            raise CandidateError(
                f"the C compiler ({self.version}) can't be run: {error}"
            ) from error

    def _compiled(self, source: str | tuple[str, ...], limit_s: float) -> Built:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="hasten-c-") as folder:
            made = Path(folder, "model.so")
            with Path(folder, "model.c").open("w") as file:
                file.writelines((source,) if isinstance(source, str) else source)
            words = [*self.command, *self.flags, "-o", made.name, "model.c"]
            code, said = _run(words, folder, limit_s)
            if code is None:
                raise CandidateError(
                    f"the C compiler ({self.version}) didn't end within {limit_s:g} s"
                )
            if code or not made.is_file():
                lines = (line.strip() for line in said.splitlines())
                first = next((line for line in lines if "error" in line), "") or said.strip()
                first = first.split("\n")[0][:_TOLD_LETTERS] or f"it ended with {code}"
                raise CandidateError(f"the C compiler ({self.version}) failed: {first}")
            return Built(made.read_bytes(), time.perf_counter() - began)


@dataclass(frozen=True)
class Built:
    """A shared object, and what it took to make it.

    Attributes:
        content: Bytes of the shared object.
        seconds: Seconds that the compiler took.
    """

    content: bytes
    seconds: float


@functools.cache
def _find(named: str, path: str) -> Compiler:
    """Return the compiler; the arguments are what the answer depends on."""
    if named == OFF:
        raise InputError(f"{VARIABLE}={OFF}: nothing is compiled")
    if named:
        try:
            return _tried((named,))
        except CandidateError as error:
            raise InputError(
                f"{VARIABLE}={named!r} doesn't name a working C compiler: unset it ({error})"
            ) from error
    commands: list[tuple[str, ...]] = [(name,) for name in _KNOWN if shutil.which(name)]
    if importlib.util.find_spec("ziglang"):
        commands.append((sys.executable, "-P", "-m", "ziglang", "cc"))
    broken = ""
    for command in commands:
        try:
            return _tried(command)
        except CandidateError as error:
            broken = broken or f" that works ({error})"
    raise InputError(
        f"there is no C compiler here{broken}: install one (apt-get install gcc), or pip install "
        "'hasten[compiler]', which installs one"
    )


def _tried(command: tuple[str, ...]) -> Compiler:
    """Return a compiler that has compiled something: now, or before, as the user's cache says.

    Raises:
        CandidateError: it can't be run, or doesn't compile.
    """
    compiler = _asked(command)
    program = Path(shutil.which(command[0]) or command[0])
    changed = program.stat().st_mtime_ns if program.exists() else 0
    facts = (str(program), changed, compiler, compiler.flags, _LEAST)
    key = key_of(repr(facts))
    if (folder := cache_folder()) is not None:
        with folder.entry(key) as entry:
            if entry is not None:
                return compiler
    compiler.compile(_LEAST, _ASKING_S)
    if folder is not None:
        folder.put(key, b"")
    return compiler


def _asked(command: tuple[str, ...]) -> Compiler:
    """Return a compiler with the version that it states.

    Raises:
        CandidateError: it can't be run, or states none.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="hasten-c-") as folder:
            code, said = _run([*command, "--version"], folder, _ASKING_S)
    except OSError as error:
        raise CandidateError(f"{command[0]} can't be run: {error.strerror or error}") from error
    if code or not said.strip():
        raise CandidateError(f"{' '.join(command)} --version fails")
    first = said.strip().splitlines()[0]
    number = re.search(r"\d+(\.\d+)+", first)
    kind = "clang" if "clang" in first else "gcc" if "Free Software" in said else command[0]
    return Compiler(command, f"{Path(kind).name}-{number.group() if number else 'unknown'}")


def _run(command: list[str], folder: str, limit_s: float) -> tuple[int | None, str]:
    """Run a program and all that it starts; return its status, None past the limit, and its words."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C", **dict.fromkeys(_FOLDERS, folder)},
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
        return process.returncode, said.decode(errors="replace")
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
