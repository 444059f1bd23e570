"""The exact commands that make a bundle again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from hasten.measure.environment import packages
from hasten.reporting.evidence import Report


def commands(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what to say, and the lines to type or run. A bundle is untrusted: every word is quoted."""
    yield "The same versions:", "\n".join(_installation(report.environment))
    asked = report.result.asked
    if asked is not None:
        yield "The same run:", asked.invocation.in_words()
    bundle = shlex.quote(str(report.result.bundle))
    checks = (
        f"hasten bench {bundle}",
        f"hasten certify {bundle} --data NEW_DATA",
        f"hasten report {bundle} --json",
    )
    yield (
        "Its speed here and now, its accuracy on new data, and the records behind this page:",
        ("\n".join(checks)),
    )


def _installation(environment: dict[str, str]) -> Iterator[str]:
    """The lines that install what the bundle was made with."""
    release = re.match(r"3\.\d+", environment.get("python", ""))
    yield f"python{release[0] if release else '3'} -m venv .venv && . .venv/bin/activate"
    pinned = [
        # A build's own mark, as in 2.7.0+cpu, is no version that an index has.
        f"{name}=={environment[name].partition('+')[0]}"
        for name in packages()
        if name in environment and name != "hasten"
    ]
    hasten = "hasten[optimize]"
    if "hasten" in environment:
        hasten += f"=={environment['hasten'].partition('+')[0]}"
    yield f"pip install {shlex.join([hasten, *pinned])}"
