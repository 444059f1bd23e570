"""A report that is drawn in a process of its own, which is ended where the time is up."""

from __future__ import annotations

import pickle
import subprocess
import sys

from hasten.reporting.evidence import Report

_PROGRAM = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
report = pickle.load(sys.stdin.buffer)
from hasten.reporting.page import render
sys.stdout.buffer.write(render(report))
"""


def rendered_within(report: Report, within_s: float) -> bytes | None:
    """Write a report as HTML; None where the time doesn't suffice, or the process fails.

    Args:
        report: Records of the run.
        within_s: Time for it, in seconds. Drawing takes a few seconds, and many on a busy machine.
    """
    if within_s <= 0:
        return None
    given = pickle.dumps(sys.path) + pickle.dumps(report)
    try:
        drawn = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=within_s,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return drawn.stdout
