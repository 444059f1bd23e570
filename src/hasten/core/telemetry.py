"""Environment under which libraries send no telemetry.

OpenVINO and NNCF send events and write an id into the home folder unless a consent file forbids it;
`import openvino` alone does so, and so does each conversion. The only switch that leaves the user's
own settings alone is `CI=true`, which they read each time. ONNX Runtime on Linux does likewise
since 1.29, from its import on; it honours ORT_DISABLE_TELEMETRY if that is set before the import.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from hasten.core.whole_process import while_any_runs

OFF = {"CI": "true", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables that turn telemetry off, in this process or in a child."""
_CONVERTER = "openvino.tools.ovc"
_OPERATORS = re.compile(r"opset\d+")
"""Submodules of OpenVINO that make graphs: a function for each operator, of each version."""


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

    OpenVINO's converter and its sets of operators, more than half of its import, are imported once somebody asks
    for them.

    Raises:
        ImportError: it isn't installed.
    """
    with telemetry_off():
        if name != "openvino" or name in sys.modules or _CONVERTER in sys.modules:
            return importlib.import_module(name)
        from hasten.core.postponed import postponed

        sys.modules[_CONVERTER] = None  # type: ignore[assignment] # which openvino takes for a missing package
        try:
            with postponed(name, _OPERATORS) as later:
                module = importlib.import_module(name)
        finally:
            del sys.modules[_CONVERTER]
        made: dict[str, Callable[[], Any]] = {
            one: partial(importlib.import_module, f"{name}.{one}") for one in later
        }
        if not hasattr(module, "convert_model"):
            made["convert_model"] = _converter
        if hasattr(module, "__getattr__"):  # a later version's own
            for one, make in made.items():
                setattr(module, one, make())
        else:
            module.__getattr__ = partial(_later, made)  # type: ignore[method-assign]
        return module


def _later(made: Mapping[str, Callable[[], Any]], name: str) -> Any:
    """Return what the module openvino has only once that is imported."""
    if name not in made:
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    try:
        with telemetry_off():
            return made[name]()
    except ImportError as error:
        raise AttributeError(f"module 'openvino' has no attribute {name!r}: {error}") from error


def _converter() -> Any:
    return importlib.import_module(_CONVERTER).convert_model
