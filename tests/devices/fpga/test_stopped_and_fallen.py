"""Runs for an FPGA that are stopped, or whose designs can't be simulated or answer otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support import tasks

import hasten
from hasten.core.progress import UNKNOWN, Listener, Progress, nobody
from hasten.engines.fpga import toolchain
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.spool import Spool
from hasten.measure.candidate import Trial
from hasten.optimization.estimated import comparison, fixed_point
from hasten.optimization.estimated.fixed_point import FixedPointSearch
from hasten.optimization.estimated.trials import Estimation
from hasten.reporting.result import Result

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")
pytestmark = pytest.mark.skipif(
    any(toolchain.find(tool) is None for tool in ("verilator", "yosys", "nextpnr-ice40")),
    reason="needs Debian's verilator, yosys and nextpnr-ice40",
)


class StoppedError(Exception):
    """Somebody pressed a key."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Search one program of few bits, which is routed soon, and one design of it."""
    patch.setattr(fixed_point, "WIDTHS", (4,))
    patch.setattr(fixed_point, "_REFINED", 0)
    patch.setattr(FixedPointSearch, "_cut_otherwise", lambda *_: None)


@pytest.fixture(scope="module")
def network() -> Any:
    return tasks.perceptron((3,), 30)


def run(network: Any, out: Path, listen: Listener = nobody, **more: Any) -> Result:
    _, (x, y) = tasks.cancer()
    return hasten.optimize(
        network,
        ({"input": x}, y),
        target="fpga:ice40-hx8k",
        max_drop=0.1,
        out=out,
        listen=listen,
        **more,
    )


def compared(made: Result) -> str:
    assert made.estimates is not None
    return made.estimates.compared


@pytest.fixture(scope="module")
def stopped(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of a run that was stopped before its design was compared or certified; don't change it, copy it."""
    out = tmp_path_factory.mktemp("stopped") / "made.hasten"

    def stop(progress: Progress) -> None:
        if progress.stage == "certify":
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        with pytest.raises(StoppedError):
            run(network, out, stop)
    return out.with_name("made.hasten.work")


@pytest.fixture
def out(stopped: Path, tmp_path: Path) -> Path:
    """Place of a bundle whose run was stopped, to be resumed."""
    shutil.copytree(stopped, tmp_path / "made.hasten.work")
    return tmp_path / "made.hasten"


def kinds(journal: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in journal.read_text().splitlines()]


def test_a_stopped_run_goes_on_where_it_was(network: Any, out: Path) -> None:
    journal = out.with_name("made.hasten.work") / "journal.jsonl"
    before = kinds(journal)
    assert "trial" in before
    after: list[str] = []
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        after[:] = kinds(journal)
        seen.append(progress)

    made = run(network, out, watch, resume=True)
    assert made.status == "certified", made.why
    # One program and its design: made once, the design once more with what place and route said.
    assert after[: len(before)] == before
    assert after.count("trial") == 3
    assert after.count("sealed read") <= 1
    assert not journal.exists()
    (outline,) = (one.outline for one in seen if one.outline)
    assert dict(outline.facts)["time"].startswith("a few minutes to half an hour")
    assert {one.total for one in seen if one.stage in ("widths", "design")} == {UNKNOWN}


def test_what_nobody_simulated_is_not_certified(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = toolchain.find
    monkeypatch.setattr(
        toolchain, "find", lambda name: None if name == "verilator" else found(name)
    )
    made = run(network, tmp_path / "made.hasten")
    assert made.status == "uncertified"
    assert made.why.startswith(
        "Verilator isn't installed, so the RTL was not simulated; the program that it was made from"
    )
    assert compared(made) == ""
    _, (x, y) = tasks.cancer()
    with pytest.raises(
        InputError, match=r"isn't here, and verilator, which simulates RTL, isn't installed"
    ):
        hasten.certify(tmp_path / "made.hasten", ({"input": x}, y), max_drop=0.05)


@pytest.mark.parametrize("where", ["search", "sealed"])
def test_rtl_that_answers_otherwise_than_its_program_never_ships(
    where: str, network: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = comparison.compare

    def differing(board: Estimation, one: Trial, other: Trial, samples: Spool) -> int:
        if (samples is board.samples) == (where == "search"):
            raise CandidateError(f"{other.candidate.label} answers sample 0 otherwise")
        return compare(board, one, other, samples)

    monkeypatch.setattr(comparison, "compare", differing)
    made = run(network, out, resume=True, accept_uncertified=True)
    assert (made.status, made.shipped) == ("exact", None)
    assert "answers sample 0 otherwise" in made.why
    assert compared(made) == ""
