"""Environment under which libraries send no telemetry.

OpenVINO and NNCF send events and write an id into the home folder unless a consent file forbids it;
`import openvino` alone does so, and so does each conversion. The only switch that leaves the user's
own settings alone is `CI=true`, which they read each time. ONNX Runtime on Linux does likewise
since 1.29, from its import on; it honours ORT_DISABLE_TELEMETRY if that is set before the import.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OFF = {"CI": "true", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables that turn telemetry off, in this process or in a child."""


@contextmanager
def telemetry_off() -> Iterator[None]:
    """Turn telemetry off while the block runs, then put the environment back."""
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
    """Import a library that would send telemetry on import: "onnxruntime", "openvino", "nncf".

    Raises:
        ImportError: it isn't installed.
    """
    with telemetry_off():
        return importlib.import_module(name)
