"""The simulations of the certificate's figures run once, on little: what they print is made, not judged."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.certificate.betting import fewest_unchanged
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE, differences

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def table(out: str) -> list[list[str]]:
    """Return the cells of a printed table's rows, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[2:]]


def test_bounds_of_chosen_rungs_have_a_row_for_each_ladder(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = load("certificate_bounds")
    arguments = ["--runs", "5", "--ladders", "2", "--scan", "2"]
    monkeypatch.setattr(sys, "argv", ["certificate_bounds.py", *arguments])
    assert bounds.main() == 0
    rows = table(capsys.readouterr().out)
    assert [row[0].split(" rung")[0] for row in rows] == [*"12344", *"234"]


def test_a_bound_is_wrong_at_least_where_the_limit_is(load: Load) -> None:
    bounds = load("certificate_bounds")
    with bounds.judged_once():
        alone = bounds.simulated(bounds.Rungs((0.02,)), 200, np.random.default_rng(0))
        good = bounds.simulated(bounds.Rungs((0.001, 0.0199)), 40, np.random.default_rng(0))
    assert alone.shipped == alone.bounds == alone.limits < 30
    assert good.shipped == 40
    assert good.limits == 0  # the last rung keeps the limit, though its bound may say too much


def test_rungs_have_the_drops_that_they_state(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = load("certificate_bounds")
    monkeypatch.setattr(bounds, "SEALED", 200_000)
    for nested in (False, True):
        rungs = bounds.Rungs((0.01, 0.03), 0.01, nested)
        original, theirs = rungs.scores(np.random.default_rng(0))
        falls = [float((original - theirs[key]).mean()) for key in "01"]
        assert falls == pytest.approx([0.01, 0.03], abs=0.002)
        both = np.mean((original > theirs["0"]) & (original > theirs["1"]))
        assert bool(both > 0.015) is nested


def test_each_table_of_bets_has_its_rows(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bets = load("certificate_bets")
    monkeypatch.setattr(bets, "FLIPS", bets.FLIPS[2:3])
    monkeypatch.setattr(bets, "GROUPS", bets.GROUPS[2:4])
    kinds = {"aim": 1 + 1, "prior": 2, "ways": 5}
    for name, rows in kinds.items():
        bets.TABLES[name](2, np.random.default_rng(0))
        assert len(table(capsys.readouterr().out)) == rows


def test_draws_needed_are_those_of_a_power_of_80_percent(load: Load) -> None:
    bets = load("certificate_bets")
    rng = np.random.default_rng(0)
    drawn = bets.Drawn("0/1", 0.02, 0.01)
    found = bets.needed(drawn, 200, rng, lambda falls: rng.random() < len(falls) / 500)
    assert found.low < found.draws < found.high
    assert found.draws == pytest.approx(400, rel=0.15)
    assert bets.earlier(np.zeros(336), 0.01)
    assert not bets.earlier(np.zeros(335), 0.01)
    assert bets.today(np.zeros(fewest_unchanged(0.01, bets.ALPHA)), 0.01)


def test_differences_have_the_mean_drop_that_was_asked_for(load: Load) -> None:
    bets = load("certificate_bets")
    for drawn in (*bets.FLIPS, *bets.GROUPS):
        for drop in (0.0, drawn.limit):
            falls = drawn.draw(np.random.default_rng(0), 10, 40_000, drop)
            assert falls.mean() == pytest.approx(drop, abs=0.002)
            assert np.abs(falls).max() == drawn.size


def test_near_copies_have_a_row_for_each_change(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = load("near_copies")
    digits = copies.datasets.load_digits().images
    data = [
        copies.Samples("digits", "images", copies.distinct(digits)),
        copies.Samples("cells", "rows", copies.datasets.load_breast_cancer().data),
    ]
    copies.alarms(data, 1, 0)
    assert [row[-2][:3] for row in table(capsys.readouterr().out)] == ["0: "] * 2
    copies.copies(data, 40, 0)
    rows = table(capsys.readouterr().out)
    assert len(rows) == len(copies.CHANGES["images"]) + len(copies.CHANGES["rows"])
    assert rows[1] == ["digits", "/ 255", "100.0% (91.2 to 100.0) of 40"]
    monkeypatch.setattr(copies, "LARGE", 200)
    monkeypatch.setattr(copies, "JUDGED", 50)
    copies.timed(np.random.default_rng(0))
    assert len(table(capsys.readouterr().out)) == 2


def test_tables_become_numbers_and_mails_become_words(load: Load, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas isn't installed")
    copies = load("near_copies")
    rows = {"row": [1, 2, 3], "kind": ["b", None, "a"], "size": [0.5, 2.0, np.nan]}
    numbers = copies.numbers(pandas.DataFrame(rows))
    assert np.array_equal(numbers, [[1, 0.5], [np.nan, 2], [0, np.nan]], equal_nan=True)
    for name, text in (("1", "From: a\n\nBuy this now"), ("2", "From: b\n\nthis now Buy")):
        file = tmp_path / "spam-1" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"text": text}), encoding="utf-8")
    (samples,) = copies.mails(tmp_path)
    assert samples.values[:, :4].tolist() == [[1, 2, 3, 0], [2, 3, 1, 0]]
    assert list(copies.mails(None)) == []


def test_a_candidate_within_the_tolerance_changes_answers_and_is_found(load: Load) -> None:
    exact = load("exact_answers")
    outputs = exact.constructed(np.random.default_rng(0), 2200)
    moved, changed = outputs.swapped()
    largest = np.abs(outputs.scores).max()
    assert differences({"y": moved}, {"y": outputs.scores}).max() < EXACT_TOLERANCE
    assert np.abs(moved - outputs.scores).max() < EXACT_TOLERANCE * largest
    assert changed.sum() >= 20
    assert exact.exact_before(moved, outputs.scores)
    assert exact.changed(moved, outputs.scores) == changed.sum()


def test_exact_answers_have_a_row_for_each_share_and_split(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend", reason="mlxtend isn't installed")
    exact = load("exact_answers")
    monkeypatch.setattr(sys, "argv", ["exact_answers.py", "--runs", "1"])
    assert exact.main() == 0
    rows = table(capsys.readouterr().out)
    assert len(rows) == 2 * 3 * len(exact.SPLITS)
    assert {row[3] for row in rows} == {"100.0% (2.5 to 100.0)"}
