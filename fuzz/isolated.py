"""Check inputs in processes of their own, which may crash, hang, and take memory up to a limit."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import resource
import select
import signal
import struct
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.surface import Finding, Surface, checked

_LIMIT_BYTES = 2 << 30
"""Memory that a process may take beside what it had before its first input."""
_PATIENCE_S = 120.0
"""Time after which a process is ended that is still at the same input."""
_AGAIN = 3
_PROGRESS = struct.Struct("<q")


@dataclass
class Outcome:
    """What came of some inputs.

    Attributes:
        counts: Number of inputs by what came of them, in a word.
        findings: Inputs that did what no input may do, with the reasons.
        most_s: Most seconds of a processor that an input took.
        most_kib: Most memory that an input took, in KiB.
    """

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    most_s: float = 0.0
    most_kib: int = 0

    def add(self, other: Outcome) -> None:
        """Take another's in."""
        self.counts.update(other.counts)
        self.findings += other.findings
        self.most_s = max(self.most_s, other.most_s)
        self.most_kib = max(self.most_kib, other.most_kib)


@dataclass(frozen=True)
class _Told:
    """What a process told of one input: a word, the reason of a fault, seconds and KiB."""

    word: str
    why: str
    seconds: float
    kib: int


def attack(surface: Surface, inputs: Sequence[bytes]) -> Outcome:
    """Check inputs; what seems to take too much is checked again by itself, and the least of it counts."""
    outcome = Outcome()
    rest = list(inputs)
    while rest:
        told, ended = _in_child(surface, rest)
        for data, one in zip(rest, told, strict=False):
            _judge(outcome, surface, data, one)
        if not ended:
            break
        data, rest = rest[len(told)], rest[len(told) + 1 :]
        outcome.counts["FOUND"] += 1
        kind = "hang" if "still at it" in ended else "crash"
        outcome.findings.append(Finding(surface.name, data, kind, ended))
    return outcome


def _judge(outcome: Outcome, surface: Surface, data: bytes, one: _Told) -> None:
    """Count an input, and add what it did to the findings."""
    seconds, kib = one.seconds, one.kib
    for _ in range(_AGAIN):
        if seconds <= surface.most_s and kib <= surface.most_mib << 10:
            break
        again, ended = _in_child(surface, [data])
        if ended:
            break
        seconds, kib = min(seconds, again[0].seconds), min(kib, again[0].kib)
    outcome.most_s, outcome.most_kib = max(outcome.most_s, seconds), max(outcome.most_kib, kib)
    found = [("fault", one.why)] if one.why else []
    if seconds > surface.most_s:
        found.append(("time", f"{one.word}: it took more than {surface.most_s:g} s"))
    if kib > surface.most_mib << 10:
        found.append(("memory", f"{one.word}: it took more than {surface.most_mib} MiB"))
    outcome.counts["FOUND" if found else one.word] += 1
    outcome.findings += [Finding(surface.name, data, kind, why) for kind, why in found]


def _in_child(surface: Surface, inputs: Sequence[bytes]) -> tuple[list[_Told], str]:
    """Check inputs in a process; return what it told, and how it ended if that was before the last."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # of threads: the child uses none of the parent's
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _work(surface, inputs, writing)
        finally:
            os._exit(0)
    os.close(writing)
    lines, late = _lines(reading)
    os.close(reading)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told = [_Told(*json.loads(line)) for line in lines]
    if len(told) == len(inputs):
        return told, ""
    if late:
        return told, f"it was still at it after {_PATIENCE_S:g} s"
    said = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
    return told, f"the process died: {said}"


def _lines(reading: int) -> tuple[list[bytes], bool]:
    """Read lines to the end; also return whether the writer was silent for too long."""
    data = b""
    while select.select([reading], [], [], _PATIENCE_S)[0]:
        piece = os.read(reading, 1 << 16)
        if not piece:
            return data.split(b"\n")[:-1], False
        data += piece
    return data.split(b"\n")[:-1], True


def _work(surface: Surface, inputs: Sequence[bytes], writing: int) -> None:
    """Check inputs one after another, and tell of each in a line."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit_bytes = pages * mmap.PAGESIZE + _LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of broken files
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
    for data in inputs:
        give_back(0)  # else memory that was used and freed before would hide what this takes
        before_kib = reset_peak()
        began_s = time.process_time()
        word, why = checked(surface, data)
        took_s = time.process_time() - began_s
        line = json.dumps([word, why, took_s, max(0, peak_kib() - before_kib)])
        os.write(writing, line.encode() + b"\n")


def reset_peak(process: int | str = "self") -> int:
    """Forget the most memory that a process has taken; return what it takes now, in KiB."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
    return _kib(process, "VmRSS")


def peak_kib(process: int | str = "self") -> int:
    """Return the most memory that a process has taken since `reset_peak`, in KiB."""
    return _kib(process, "VmHWM")


def _kib(process: int | str, what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) if found else 0
