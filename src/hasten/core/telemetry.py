"""Environment under which libraries send no telemetry.

OpenVINO and NNCF send events and write an id into the home folder unless a consent file forbids it;
`import openvino` alone does so, and so does each conversion. The only switch that leaves the user's
own settings alone is `CI=true`, which they read each time. ONNX Runtime on Linux does likewise
since 1.29, from its import on; it honours ORT_DISABLE_TELEMETRY if that is set before the import.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import ExitStack
from typing import Any

from hasten.core.whole_process import while_any_runs

OFF = {"CI": "true", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables that turn telemetry off, in this process or in a child."""
_CONVERTER = "openvino.tools.ovc"


@while_any_runs
def telemetry_off(stack: ExitStack) -> None:
    """Turn telemetry off while a block runs, then put the environment back once the last block ends that overlaps."""
    for name, value in OFF.items():
        stack.callback(_put_back, name, os.environ.get(name))
        os.environ[name] = value


def _put_back(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def import_quietly(name: str) -> Any:
    """Import a library that would send telemetry on import: "onnxruntime", "openvino", "nncf".

    OpenVINO's converter, almost half of its import, is imported once somebody asks for it.

    Raises:
        ImportError: it isn't installed.
    """
    with telemetry_off():
        if name != "openvino" or name in sys.modules or _CONVERTER in sys.modules:
            return importlib.import_module(name)
        sys.modules[_CONVERTER] = None  # type: ignore[assignment] # which openvino takes for a missing package
        try:
            module = importlib.import_module(name)
        finally:
            del sys.modules[_CONVERTER]
        if hasattr(module, "__getattr__"):  # a later version's own
            module.convert_model = _converter()  # type: ignore[attr-defined]
        elif not hasattr(module, "convert_model"):
            module.__getattr__ = _later  # type: ignore[method-assign]
        return module


def _later(name: str) -> Any:
    """Return what the module openvino has only once its converter is imported."""
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    try:
        with telemetry_off():
            return _converter()
    except ImportError as error:
        raise AttributeError(f"module 'openvino' has no attribute {name!r}: {error}") from error


def _converter() -> Any:
    return importlib.import_module(_CONVERTER).convert_model
