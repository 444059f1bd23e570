"""A whole run on LiteRT, by a clock of its own."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import models
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.measure.latency import Round


def steady(entrants: dict[str, Any], *_: Any, first: int = 0, **__: Any) -> Iterator[Round]:
    """The baseline takes 8 ms, all else 1."""
    for number in itertools.count(first):
        block = {who: 8_000_000 if who.startswith("baseline") else 1_000_000 for who in entrants}
        yield Round(number, {who: (ns,) * 3 for who, ns in block.items()}, {}, True)


def test_litert_is_searched_certified_bundled_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("hasten.optimization.measured.screening", "hasten.measure.race"):
        monkeypatch.setattr(f"{place}.rounds", steady)
    data = np.random.default_rng(0).standard_normal((300, 16, 16, 16), dtype=np.float32)
    with quick_runs(passes=True, races=False):
        result = hasten.optimize(
            models.depthwise_cnn(tmp_path),
            data,
            max_drop=0.3,
            metric="agreement",
            out=tmp_path / "b.hasten",
            engines=("litert",),
        )
    tried = result.tried
    assert not tried["original, LiteRT"].startswith("failed")
    assert not tried["int8 (AI Edge Quantizer), LiteRT"].startswith("failed")
    assert not any("(ONNX Runtime" in name for name in tried)
    assert result.status == "certified", result.why
    winner = read(tmp_path / "b.hasten").winner
    assert winner.engine["type"] == "litert"
    with hasten.load(tmp_path / "b.hasten") as fast:
        assert fast.properties()["xnnpack"].endswith(" operators")
        assert fast(data[:1])["logits"].shape == (1, 8)
