"""The benchmark of second starts runs once on a small bundle, and tells a ratio from paired starts."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hasten.bundle.cold import ColdStart, Starts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("second_start")


def test_a_bundle_is_started_with_and_without_what_was_kept(
    benchmark: Any,
    exact_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "starts.json"
    given = ["second_start.py", str(exact_bundle), "--starts", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    benchmark.main()
    (record,) = json.loads(out.read_text()).values()
    assert [row["from_cache"] for row in record["starts"]["rows"]] == [False, True, False]
    assert record["wall"]["low"] <= record["wall"]["estimate"] <= record["wall"]["high"]
    *_, head, line = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "bundle"
    assert line.split("  ")[0] == exact_bundle.stem


def test_the_second_start_is_paired_with_the_first_of_its_round(benchmark: Any) -> None:
    spans_ms = (800, 1600, 400, 800)  # the host is now slow, now fast
    first, second = (
        Starts(
            label,
            tuple((0, span * factor * 10_000, 0, 0) for span in spans_ms),
            tuple(span * factor * 10_000 for span in spans_ms),
            from_cache=factor < 100,
        )
        for label, factor in (("empty", 100), ("filled", 30))
    )
    found = ColdStart((first, second), 0)
    for ratio in benchmark.ratios(found):
        assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((0.3, 0.3, 0.3))
    line = benchmark.line("small", found)
    assert line[1:3] == ("800 ms", "240 ms")
    assert line[-1] == "a second, 40%"
