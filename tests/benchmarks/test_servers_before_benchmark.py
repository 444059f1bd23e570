"""The comparison with an earlier server runs once, with these sources on both sides."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parents[2]

for _needed in ("grpc", "httptools", "uvloop"):
    pytest.importorskip(_needed)


def test_both_servers_answer_each_way_of_asking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("servers_before")
    out = tmp_path / "out.json"
    few = ("--starts", "1", "--rounds", "2", "--seconds", "0.02", "--json", str(out))
    monkeypatch.setattr(sys, "argv", ["servers_before.py", str(ROOT), *few])
    benchmark.main()
    head, _, *rows = capsys.readouterr().out.splitlines()
    ways = [
        f"{way}, {clients}"
        for way in ("JSON", "tensors as bytes", "gRPC")
        for clients in ("1 client", "16 clients")
    ]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {way}", server] for way in ways for server in ("now", "before again")
    ]
    assert {row.count("|") for row in rows} == {head.count("|")}
    (start,) = json.loads(out.read_text())
    assert list(start) == ways
    for turns in start.values():
        assert sorted(turns) == ["before", "before again", "now"]
        for one in (one for each in turns.values() for one in each):
            assert one["p50_ns"] > 0
            assert one["rate_per_s"] > 0
            assert one["processor_ns"] >= 0


def test_a_ratio_is_the_median_of_a_starts_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("servers_before")
    now = [benchmark.Turn(ns, 1.0, 1.0) for ns in (2.0, 9.0, 4.0)]
    before = [benchmark.Turn(ns, 1.0, 1.0) for ns in (1.0, 1.0, 4.0)]
    starts = [{"now": now, "before": before}, {"now": before, "before": before}]
    assert benchmark.ratios(starts, "now", "p50_ns") == [2.0, 1.0]
    assert benchmark.in_words([2.0, 1.0]) == "1.500 (1.250 to 1.750)"


def test_a_checkout_that_serves_nothing_is_an_error_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("servers_before")
    missing = tmp_path / "no.hasten"
    with (
        pytest.raises(RuntimeError, match=r"the server 'before' isn't ready: .*no\.hasten"),
        benchmark.served("before", ROOT, missing, tmp_path / "log.txt"),
    ):
        pass
