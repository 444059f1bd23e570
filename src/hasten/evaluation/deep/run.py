"""Run of checks, each in a process of its own, which a crash or a hang ends alone."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from hasten.core.processes import interpreter
from hasten.core.telemetry import OFF
from hasten.errors import HastenError, InputError, first_words, named
from hasten.evaluation.deep.finding import Check, Failing, Finding, NotDone, Place, State

WITHIN_S = 300.0
"""Longest time of all checks together, in seconds: the rest isn't done."""
CUDA = "hasten.evaluation.deep.checks:cuda"
"""Function that yields the checks of an NVIDIA GPU, by name."""
Outcome: TypeAlias = tuple[State, str, tuple[str, ...]]
"""State, sentence and details of a finding."""
_GONE_S = 5.0
_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\w+)')
"""Line of a stack that Python's faulthandler writes."""


def run(
    place: Place = "cuda",
    *,
    within_s: float = WITHIN_S,
    source: str = CUDA,
    listen: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Run all checks, one after another; where the first can't be done, none of the others can.

    Args:
        place: Device that the checks run on.
        within_s: Longest time of all together, in seconds.
        source: Function that yields the checks by name, as "module:function".
        listen: Callback after each check.
    """
    end, findings = time.monotonic() + within_s, list[Finding]()
    for name, check in _checks(source).items():
        began = time.monotonic()
        if findings and findings[0].state == "not done":
            state, said, details = _not_done(findings[0].said)
        elif end - began <= 0:
            state, said, details = _not_done(f"the {within_s:g} s for all checks were over")
        else:
            state, said, details = _apart(source, name, place, min(check.limit_s, end - began))
        finding = Finding(name, state, said, details, round(time.monotonic() - began, 1))
        findings.append(finding)
        listen(finding)
    return findings


def exit_code(findings: list[Finding]) -> int:
    """Return 0 where all holds, 1 where something doesn't, and 3 where something couldn't be checked."""
    states = {finding.state for finding in findings}
    return 1 if states & {"fails", "lost"} else 3 if "not done" in states else 0


def _not_done(why: str) -> Outcome:
    return "not done", why, ()


def _apart(source: str, name: str, place: Place, limit_s: float) -> Outcome:
    """Run one check in a process of its own, and say what came of it."""
    with TemporaryDirectory(prefix="hasten-deep-") as folder:
        told, output = Path(folder, "told"), Path(folder, "output")
        with output.open("wb") as file:
            process = subprocess.Popen(
                [
                    *(*interpreter(), "-X", "faulthandler", "-m", "hasten.evaluation.deep.run"),
                    *(source, name, place, str(told)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **OFF, "TMPDIR": folder},
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        with contextlib.suppress(OSError, ValueError):
            state, said, details = json.loads(told.read_text())
            return state, said, tuple(details)
        return "lost", _lost(code, limit_s, output.read_text(errors="replace")), ()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a check's process and what it started; one that a driver holds is left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GONE_S)


def _lost(code: int | None, limit_s: float, output: str) -> str:
    """Say how a process ended that told nothing, and where."""
    if code is None:
        return f"hung: no answer within {limit_s:.3g} s"
    ended = (
        f"was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"ended with exit code {code}"
    )
    if frame := _FRAME.search(output):
        file, line, function = frame.groups()
        return f"its process {ended} in {function} ({Path(file).name}:{line})"
    lines = output.strip().splitlines()
    return f"its process {ended}" + (f"; its last line: {lines[-1]:.200}" if lines else "")


def _checks(source: str) -> dict[str, Check]:
    module, _, function = source.partition(":")
    return dict(getattr(importlib.import_module(module), function)())


def judged(check: Check, place: Place) -> Outcome:
    """Run one check in this process, and say what came of it."""
    try:
        found = check.run(place)
    except (NotDone, InputError) as error:
        return _not_done(_line(error))
    except Failing as error:
        return "fails", _line(error), error.details
    except HastenError as error:
        return "fails", _line(error), ()
    except Exception as error:  # a runtime may raise anything
        return "fails", named(error), ()
    return "holds", found.said, found.details


def _line(error: Exception) -> str:
    return first_words(str(error)) or "no message"


def _main(source: str, name: str, place: Place, told: str) -> None:
    result = judged(_checks(source)[name], place)
    beside = Path(f"{told}.part")
    beside.write_text(json.dumps(result))
    beside.rename(told)
    os._exit(0)  # what a runtime does at exit is no part of the check


if __name__ == "__main__":
    _main(*sys.argv[1:])  # type: ignore[arg-type]
