"""Keeps the libraries that report home from doing so.

OpenVINO and NNCF send events, and write an id into the home folder, where no file of consent says
otherwise: already `import openvino` does, and each conversion. The one switch that leaves the
user's own settings alone is `CI=true`, looked at each time. ONNX Runtime does the same on Linux
since 1.29, from its import on; ORT_DISABLE_TELEMETRY counts if it is set then.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OFF = {"CI": "true", "ORT_DISABLE_TELEMETRY": "1"}
"""The environment under which none of them sends anything; also for a child process's."""


@contextmanager
def telemetry_off() -> Iterator[None]:
    """Run OpenVINO's converter, or NNCF, without telemetry; the environment is put back after."""
    before = {name: os.environ.get(name) for name in OFF}
    os.environ.update(OFF)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def import_quietly(name: str) -> Any:
    """Import a library that sends telemetry on import: "onnxruntime", "openvino", "nncf".

    Raises:
        ImportError: it isn't installed.
    """
    with telemetry_off():
        return importlib.import_module(name)
