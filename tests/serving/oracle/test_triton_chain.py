"""The chain that `benchmarks/chains.py` times under Triton's Python back end: it decides as hasten's does."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tests.serving.oracle.conftest import free_ports, triton_python
from tests.support import chains
from tests.support.chains import png, squares

import hasten

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module that starts Triton."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("triton_chain.server")


def test_a_chain_under_triton_decides_as_hastens_chain_does(tmp_path: Path, server: Any) -> None:
    environment = server.Environment.of(triton_python())
    detect, classify = chains.detector(tmp_path), chains.classifier(tmp_path)
    body = png(squares({(0, 0): "red", (2, 5): "green", (7, 7): "blue"}))
    with hasten.chain(f"{detect}+crop+{classify}") as chain:
        expected = chain.decide(body)
    place = tmp_path / "triton"
    with (
        server.served(environment, place, detect, classify, (1, 4), free_ports().http) as address,
        triton.InferenceServerClient(address) as client,
    ):
        tensor = triton.InferInput("raw", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([body], object))
        (decision,) = client.infer(server.NAME, [tensor]).as_numpy("decision")
    found = json.loads(decision)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["box"], other["box"])
        assert one["classifier"][0]["label"] == other["colour"][0]["label"]


def test_an_environment_without_triton_is_named(server: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        server.Environment.of(tmp_path / "python")
    assert str(ended.value) == f"{tmp_path / 'python'} can't be run: No such file or directory"
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import missing"\n')
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(SystemExit) as ended:
        server.Environment.of(tmp_path / "python")
    assert str(ended.value) == (
        f"{tmp_path / 'python'} hasn't what triton_chain/requirements.txt lists: "
        "ModuleNotFoundError: No module named 'missing'"
    )
