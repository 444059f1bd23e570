"""Keeps the libraries that report home from doing so.

OpenVINO and NNCF send events, and write an id into the home folder, where no file of consent says
otherwise: already `import openvino` does, and each conversion. What decides is looked at then; the
one switch that leaves the user's own settings alone is `CI=true`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def telemetry_off() -> Iterator[None]:
    """Run OpenVINO's converter, or NNCF, without telemetry."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def import_quietly(name: str) -> Any:
    """Import a library that sends telemetry when it is imported: "openvino", "nncf".

    Raises:
        ImportError: it isn't installed.
    """
    with telemetry_off():
        return importlib.import_module(name)
