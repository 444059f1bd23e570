"""When the search ends: what is left to gain is set against the least that the machine can take."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hasten.candidate import Candidate, Measurement, Single, Trial
from hasten.data.spool import Spool
from hasten.engines.openvino import OpenVino
from hasten.measure.latency import Pace
from hasten.measure.roofline import Floor, LayerFloor
from hasten.measure.workbench import Workbench
from hasten.metrics.agreement import Agreement
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.search.exploration import Exploration
from hasten.search.journal import Journal
from hasten.search.order import Order
from hasten.search.trials import Trials
from hasten.testing.desk import Desk

SAMPLES = 1000
EACH_NS = 1_000_000


@dataclass
class Searched:
    """What was tried beyond the grid, and what was said."""

    tried: list[Candidate]
    notes: list[str]


def explored(desk: Desk, spool: Spool, folder: Path, floor: Floor | None, wrong: int) -> Searched:
    """Explore where one candidate takes half of the baseline's time, and answers so many otherwise."""
    bench = Workbench(
        folder,
        desk.bench.target.with_threads(2),
        model=desk.model,
        calibration=spool,
        calibration_hash="0",
    )
    trials = Trials(
        bench, Journal(folder / "journal"), spool, Agreement(), max_drop=0.03, pace=Pace(), seed=0
    )
    trials.exact_scores = np.ones(SAMPLES)
    trials.baseline = Single((), OpenVino())
    candidate = Single((NncfQuantization("performance"),), OpenVino())

    def taking(each_ns: int) -> Measurement:
        return Measurement("measured", 2, dict.fromkeys(range(6), (each_ns,) * 9))

    trials.done[candidate.key] = Trial(
        candidate,
        measurement=taking(EACH_NS),
        baseline=taking(2 * EACH_NS),
        scores=(0.0,) * wrong + (1.0,) * (SAMPLES - wrong),
    )
    found = Searched([], [])

    def run(candidate: Candidate, beat: float = 1.0) -> Trial:
        if candidate.key not in trials.done:
            found.tried.append(candidate)
        return trials.done.setdefault(candidate.key, Trial(candidate, failure="not run here"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "run", run)
        patch.setattr(Exploration, "_transform", lambda self, candidates: None)
        Exploration(
            trials,
            Order(Agreement(), "changed", 0.03, 0.95, 0),
            units=np.arange(SAMPLES),
            sealed_draws=2000,
            sealed_samples=2000,
            listen=lambda progress: None,
            on_better=lambda trial: None,
            least=lambda precision: floor,
            notes=found.notes,
        ).explore([candidate])
    trials.close()
    return found


def least(floor_ns: float) -> Floor:
    return Floor((LayerFloor("n", "Conv", "i8", floor_ns - 1000, 0.0),), 1000.0, threads=2)


def test_the_search_ends_where_what_is_left_is_less_than_a_few_turns_tell(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    found = explored(desk, spool, tmp_path, least(0.97 * EACH_NS), wrong=2)
    assert found.tried == []
    assert any("1.03 times the least that this machine can" in note for note in found.notes)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.5, None])
def test_it_goes_on_where_more_is_left_or_the_least_is_unknown_or_too_high(
    desk: Desk, spool: Spool, tmp_path: Path, share: float | None
) -> None:
    floor = None if share is None else least(share * EACH_NS)
    found = explored(desk, spool, tmp_path, floor, wrong=2)
    assert found.tried
    assert not any("times the least" in note for note in found.notes)


def test_it_goes_on_where_a_part_of_the_work_is_not_counted(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    part = replace(least(0.97 * EACH_NS), uncounted=("m",))
    assert explored(desk, spool, tmp_path, part, wrong=2).tried


def test_it_goes_on_where_the_fastest_is_not_right_enough(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    assert explored(desk, spool, tmp_path, least(0.97 * EACH_NS), wrong=80).tried
