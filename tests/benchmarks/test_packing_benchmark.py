"""The sizes of benchmarks/packing.py, on a small bundle: what it packs is what a reader takes."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from tests.support import models
from tests.support.servers import bundle_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("packing")


def test_sizes_are_printed_of_tensors_as_they_are_and_in_16_bits(
    packing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(tmp_path, models.depthwise_cnn(tmp_path))
    assert packing.sizes("small", bundle).exists()
    packing.halves("small", bundle)
    whole, *halves = capsys.readouterr().out.splitlines()
    size = int(whole.split("tensors")[1].split("B:")[0].replace(",", ""))
    assert [line.split("tensors")[0].split() for line in halves] == [
        ["small", "bfloat16"],
        ["small", "float16"],
    ]
    for line in halves:
        assert f" {size // 2:,} B: " in line
