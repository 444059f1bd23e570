"""Commands that make a bundle again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from hasten.measure.environment import INDEX, SOURCE, packages
from hasten.reporting.evidence import Report


def commands(report: Report) -> Iterator[tuple[str, str]]:
    """Yield captions and the lines to type; every word is quoted, since a bundle is untrusted."""
    indexed = report.environment.get(SOURCE) == INDEX
    where = "" if indexed else f", in the folder of hasten's own repository{_release(report)}"
    yield f"To install the same versions{where}:", "\n".join(_installation(report.environment))
    asked = report.result.asked
    if asked is not None:
        yield "To repeat the run:", asked.invocation.in_words()
    bundle = shlex.quote(str(report.result.bundle))
    checks = (
        f"hasten bench {bundle}",
        f"hasten certify {bundle} --data NEW_DATA",
        f"hasten report {bundle} --json",
    )
    yield (
        "To time it here, to certify it on new data, and to print the records behind this page:",
        ("\n".join(checks)),
    )


def _release(report: Report) -> str:
    """Return words for hasten's own version; empty where the bundle states none."""
    stated = report.environment.get("hasten", "").partition("+")[0]
    return f" at version {stated}" if stated else ""


def _installation(environment: dict[str, str]) -> Iterator[str]:
    """Yield the lines that install the versions that the bundle was made with."""
    release = re.match(r"3\.\d+", environment.get("python", ""))
    yield f"python{release[0] if release else '3'} -m venv .venv && . .venv/bin/activate"
    pinned = [
        # An index has no version with a build's own mark, such as 2.7.0+cpu.
        f"{name}=={environment[name].partition('+')[0]}"
        for name in packages()
        if name in environment and name != "hasten"
    ]
    on_gpu = "onnxruntime-gpu" in environment and "onnxruntime" not in environment
    extra = "gpu" if on_gpu else "optimize"  # the other's ONNX Runtime would overwrite it
    hasten = f".[{extra}]"
    if environment.get(SOURCE) == INDEX and "hasten" in environment:
        hasten = f"hasten[{extra}]=={environment['hasten'].partition('+')[0]}"
    yield f"pip install {shlex.join([hasten, *pinned])}"
