"""Findings of a device's checks, as one page of text or one record."""

from __future__ import annotations

import platform
import textwrap
from collections import Counter
from dataclasses import asdict
from importlib import metadata
from typing import Any

from hasten.core.devices import find_target
from hasten.evaluation.deep.finding import Finding
from hasten.evaluation.deep.run import exit_code
from hasten.measure.environment import environment

_PACKAGES = (
    *("cuda-bindings", "torch", "triton", "onnxruntime", "onnxruntime-gpu", "tensorrt"),
    *("tensorrt-cu12-bindings", "tensorrt-cu13-bindings", "tensorrt-rtx-cu13-bindings"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "numpy", "onnx"),
)
_HOST = ("device", "driver", "processor", "system", "python")
_WIDTH = 110


def facts(device: str) -> dict[str, str]:
    """Return what the checks ran on: the machine, and the versions of packages that matter.

    Args:
        device: Kind of the device: "cuda".
    """
    target = find_target(device)
    here = environment(target, of=_PACKAGES)
    shown = {name: here[name] for name in (*_HOST, *_PACKAGES) if name in here}
    if target.kind != "attached":
        shown = {"device": "none that the kernel shows", **shown}
    return {"hasten": metadata.version("hasten"), "machine": platform.machine(), **shown}


def heading(device: str) -> str:
    """Return the page's first lines."""
    lines = [f"hasten doctor --deep {device}"]
    lines += [f"{name + ':':28}{value}" for name, value in facts(device).items()]
    return "\n".join(lines) + "\n"


def entry(finding: Finding) -> str:
    """Return the lines of one check."""
    first = (
        f"{finding.state:10}{finding.check}: {finding.said} ({finding.took_s:g}\N{NO-BREAK SPACE}s)"
    )
    wrap = textwrap.TextWrapper(_WIDTH, subsequent_indent=" " * 12, break_long_words=False)
    own = wrap.wrap(first)
    wrap.initial_indent = " " * 10
    return "\n".join(own + [line for detail in finding.details for line in wrap.wrap(detail)])


def ending(findings: list[Finding]) -> str:
    """Return the page's last line."""
    counts = Counter[str](finding.state for finding in findings)
    parts = [
        f"{counts[state]} {words}"
        for state, words in (
            ("holds", "hold"),
            ("fails", "fail"),
            ("lost", "were lost"),
            ("not done", "couldn't be done"),
        )
        if counts[state]
    ]
    return f"\n{', '.join(parts)}"


def record(device: str, findings: list[Finding]) -> dict[str, Any]:
    """Return the page as a record for JSON."""
    return {
        "device": device,
        "facts": facts(device),
        "findings": [asdict(finding) for finding in findings],
        "exit_code": exit_code(findings),
    }
