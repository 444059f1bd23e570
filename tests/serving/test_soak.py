"""The soak runs once, for seconds: requests and swaps beside each other, none lost."""

import importlib
from pathlib import Path

import pytest
from tests.support import models
from tests.support.servers import bundle_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_server_under_load_and_swaps_loses_nothing_and_keeps_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    soak = importlib.import_module("soak").soak
    bundle = bundle_of(tmp_path, models.solid(tmp_path))
    result = soak(bundle, 6.0, 200.0, 1.0, swaps=3)
    assert len(result.swaps) >= 3
    assert result.beside_swaps.any()
    assert not result.failed
    assert result.outcomes.keys() == {"ok 200"}
    assert result.growth_bytes < 32 << 20
