"""`certify` again and again: what is a certificate, what a regression check, and what it pays."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.bundles import forge

import hasten
from hasten.certificate.ledger import Ledger
from hasten.certificate.promise import Promise
from hasten.cli import main
from hasten.evaluation import seen
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.metrics.top_k import Top1

pytestmark = pytest.mark.seconds


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "state"))
    return tmp_path / "state"


def test_the_second_time_is_a_regression_check_and_another_limit_a_further_look(
    data: tuple[Path, Path], fresh: Path
) -> None:
    first = hasten.certify(data[0], fresh)
    assert (first.kind, first.passed) == ("fresh data", True)
    again = hasten.certify(data[0], fresh)
    assert (again.kind, again.passed) == ("regression check", True)
    assert again.judgement == first.judgement
    assert "\nsecond look at these data, with the same answers as an earlier one: " in (
        again.in_words()
    )
    stricter = hasten.certify(data[0], fresh, max_drop=0.001)
    assert (stricter.kind, stricter.passed) == ("further look", False)
    assert stricter.judgement.confidence == 0.95  # what was tested before had passed
    laxer = hasten.certify(data[0], fresh, max_drop=0.06)
    assert laxer.look is not None
    assert laxer.look.alpha == pytest.approx(0.0005)
    assert laxer.judgement.confidence == 0.95  # no more is claimed than was asked for
    assert laxer.judgement.bound > first.judgement.bound
    assert "third look at these data: tested at 0.05% instead of 5%" in laxer.in_words()


def test_a_look_without_a_ledger_says_that_earlier_ones_are_not_known(
    data: tuple[Path, Path], fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "first look at these data (no ledger is kept, because HASTEN_LEDGER is off: earlier looks "
        "aren't known)"
    )
    assert "first look" not in hasten.certify(data[0], fresh).in_words()
    monkeypatch.setenv("HASTEN_LEDGER", "off")
    assert line in hasten.certify(data[0], fresh).in_words().splitlines()
    assert "look at these data" not in hasten.certify(*data).in_words()  # a check is no look


def test_the_same_answers_judged_by_other_bets_are_a_further_look(
    data: tuple[Path, Path], fresh: Path, tmp_path: Path
) -> None:
    def certified(bundle: Path, **asked: Any) -> str:
        return hasten.certify(bundle, tmp_path / "pairs.npz", **asked).kind

    np.savez(tmp_path / "pairs.npz", **np.load(fresh), groups=np.arange(400) // 2)
    other = Path(shutil.copytree(data[0], tmp_path / "other.hasten"))
    prior = {"mean": 0.02, "variance": 0.05, "n": 200}
    forge(other, lambda record: record["certificate"]["judgement"].update(prior=prior))
    assert certified(data[0]) == "fresh data"
    assert certified(data[0]) == "regression check"
    assert certified(other) == "further look"
    # Nothing bets on answers that are counted, so what is known beforehand doesn't matter.
    assert hasten.certify(data[0], fresh, max_drop=0.2).kind == "further look"
    assert hasten.certify(other, fresh, max_drop=0.2).kind == "regression check"


def test_what_older_versions_wrote_down_by_their_hashes_is_still_known(state: Path) -> None:
    data = ArrayDataset({"x": np.arange(120).reshape(60, 2)})
    old = [one for one in map(data.former_hash, range(60)) if one is not None]
    assert not set(old) & {data.content_hash(i) for i in range(60)}
    ledger = Ledger.at(state)
    ledger.saw(old[:10])
    ledger.end(ledger.look(old[20:], "answers", asked=0.05), [], held=False)
    made_with = seen.Seen(frozenset({old[10].hex()}), frozenset({old[11].hex()}), frozenset())
    chosen = seen.fresh(data, made_with, ledger.past().earlier(0.05))
    # Eight fresh samples tell less than these with those that were tested on.
    assert (sorted(chosen.samples.indices), chosen.elsewhere) == ([*range(12, 60)], 10)
    promise = Promise(Top1(), confidence=0.95)
    _, kind, look = seen.looked(ledger, chosen, "others", promise, lambda promise: [])
    assert look is not None
    assert (kind, look.number, look.refused) == ("further look", 2, 1)
    assert chosen.hashes[0][:16] in ledger.past().looks[-1].hashes


def test_samples_that_another_run_searched_on_are_left_out(
    data: tuple[Path, Path], fresh: Path, state: Path
) -> None:
    first = hasten.certify(data[0], fresh)
    with np.load(fresh) as arrays:
        loaded = ArrayDataset({"input": arrays["input"]})
        Ledger.at(state).saw(loaded.content_hash(i) for i in range(100))
    second = hasten.certify(data[0], fresh)
    assert (first.used, second.used, second.elsewhere) == (400, 300, 100)
    assert (
        "100 samples were left out, because the bundle, or what other runs made, was made with them"
        in (second.in_words())
    )


def test_a_check_on_what_the_bundle_was_made_with_is_no_look(
    data: tuple[Path, Path], state: Path
) -> None:
    checked = hasten.certify(*data)
    assert (checked.kind, checked.look) == ("regression check", None)
    assert Ledger.at(state).past().looks == ()


def test_the_command_shows_what_is_remembered_and_forgets_it(
    data: tuple[Path, Path], fresh: Path, state: Path
) -> None:
    shown = CliRunner().invoke(main, ["ledger"])
    assert shown.output == f"ledger:       {state}/ledger.jsonl, not started yet\n"
    hasten.certify(data[0], fresh)
    lines = CliRunner().invoke(main, ["ledger"]).output.splitlines()
    assert lines[0].startswith(f"ledger:       {state}/ledger.jsonl, kept since ")
    assert lines[1:5] == [
        "searched on:  0 samples",
        "tested on:    400 samples",
        "looks:        1: 1 certified, 0 not",
        "repeats:      0",
    ]
    emptied = CliRunner().invoke(main, ["ledger", "--forget"])
    assert "; the user emptied it on that day" in emptied.output
    assert "looks:        0: 0 certified, 0 not" in emptied.output
    assert hasten.certify(data[0], fresh).kind == "fresh data"


def test_a_damaged_ledger_ends_it_before_it_begins_and_forgetting_it_goes_on(
    data: tuple[Path, Path], fresh: Path, state: Path
) -> None:
    hasten.certify(data[0], fresh, max_drop=0.001)
    file = state / "ledger.jsonl"
    file.write_bytes(b"\xff" * 1000 + b"\n")
    for command in (["ledger"], ["certify", str(data[0]), "--data", "nowhere.npz"]):
        ended = CliRunner().invoke(main, command)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert ended.stderr == (
            f"hasten: the ledger {file} can't be used: it is damaged; nothing is certified without it: run "
            "`hasten ledger --forget` to set it aside, or set HASTEN_LEDGER to a folder that only you can write, "
            'or to "off" to go on without a memory, as the certificate then says\n'
        )
    assert file.read_bytes() == b"\xff" * 1000 + b"\n"
    emptied = CliRunner().invoke(main, ["ledger", "--forget"])
    (aside,) = state.glob("*.damaged-*")
    assert f"; the old one, which couldn't be used, is kept as {aside.name}\n" in emptied.output
    checked = hasten.certify(data[0], fresh)
    assert (checked.kind, checked.passed) == ("fresh data", True)
    assert checked.look is not None
    assert checked.look.kept.endswith(f"couldn't be used, is kept as {aside.name}")


def test_a_ledger_that_was_named_and_can_not_be_used_ends_it_before_it_begins(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis").write_text("years of work")
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "thesis"))
    for command in (["ledger"], ["certify", str(data[0]), "--data", "nowhere.npz"]):
        ended = CliRunner().invoke(main, command)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert ended.stderr.startswith(
            f"hasten: the ledger {tmp_path}/thesis/ledger.jsonl can't be"
        )
    assert (tmp_path / "thesis").read_text() == "years of work"
