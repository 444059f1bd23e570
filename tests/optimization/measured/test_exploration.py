"""When the search ends: what is left to gain is set against the least that the machine can take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.jobs import job_in

from hasten.certificate.promise import Promise
from hasten.core.progress import Progress
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import OutOfTime
from hasten.inputs.data.spool import Spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.measure.candidate import Candidate, Measurement, Single, Trial
from hasten.measure.latency import Pace
from hasten.measure.roofline import Floor, LayerFloor
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.exploration import Exploration
from hasten.optimization.measured.screening import Screening
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization

SAMPLES = 1000
EACH_NS = 1_000_000
FIRST = NncfQuantization("performance")


@dataclass
class Searched:
    """What was tried beyond the grid, and what was said."""

    tried: list[Candidate]
    notes: list[str]
    told: list[Progress]


def explored(
    desk: Desk,
    spool: Spool,
    folder: Path,
    floor: Floor | None,
    wrong: int,
    *,
    frozen: bool = False,
    sealed_draws: int = 2000,
    others: Sequence[Single] = (),
    first: NncfQuantization = FIRST,
    known: Mapping[NncfQuantization, int] | None = None,
    late: NncfQuantization | None = None,
) -> Searched:
    """Explore where one candidate takes half of the baseline's time, and answers so many otherwise.

    Args:
        frozen: Whether the run was stopped after it had frozen what it certifies.
        sealed_draws: Number of draws that will decide.
        others: Other candidates of the grid, which fail.
        first: Pass of the candidate.
        known: Passes of further candidates on the same engine, as fast, and how many answers each changes.
        late: Pass of the candidate for which too little time is left when it is first tried.
    """
    bench = Workbench(
        folder,
        desk.bench.target.with_threads(2),
        model=desk.model,
        calibration=spool,
        calibration_hash="0",
    )
    promise = Promise(Agreement(), "changed", max_drop=0.03)
    job = job_in(folder)
    if frozen:
        job.journal.append("ladder", choice={}, sha256="")
    trials = Screening(bench, job.journal, spool, promise, pace=Pace(), seed=0)
    trials.exact_scores = np.ones(SAMPLES)
    trials.baseline = Single((), OpenVino())
    candidate = Single((first,), OpenVino())

    def taking(each_ns: int) -> Measurement:
        return Measurement("measured", 2, dict.fromkeys(range(6), (each_ns,) * 9))

    def changing(one: Candidate, changed: int) -> Trial:
        return Trial(
            one,
            measurement=taking(EACH_NS),
            baseline=taking(2 * EACH_NS),
            scores=(0.0,) * changed + (1.0,) * (SAMPLES - changed),
        )

    trials.done[candidate.key] = changing(candidate, wrong)
    rivals = {Single((step,), OpenVino()).key: n for step, n in (known or {}).items()}
    found = Searched([], job.notes, [])
    job = replace(job, listen=found.told.append)

    def run(candidate: Candidate, beat: float = 1.0) -> Trial:
        if candidate.key not in trials.done:
            found.tried.append(candidate)
            own = (
                candidate.passes[-1] if isinstance(candidate, Single) and candidate.passes else None
            )
            if late is not None and own == late and found.tried.count(candidate) == 1:
                raise OutOfTime("the time limit came before it was timed")
        if candidate.key in rivals:
            trials.done[candidate.key] = changing(candidate, rivals[candidate.key])
        return trials.done.setdefault(candidate.key, Trial(candidate, failure="not run here"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "run", run)
        patch.setattr(Exploration, "_transform", lambda self, candidates: None)
        Exploration(
            trials,
            job,
            units=np.arange(SAMPLES),
            sealed_draws=sealed_draws,
            on_better=lambda trial: None,
            least=lambda precision: floor,
        ).explore([*others, candidate])
    trials.close()
    return found


def least(floor_ns: float) -> Floor:
    return Floor((LayerFloor("n", "Conv", "i8", floor_ns - 1000, 0.0),), 1000.0, threads=2)


def test_the_search_ends_where_what_is_left_is_less_than_a_few_turns_tell(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    found = explored(desk, spool, tmp_path, least(0.97 * EACH_NS), wrong=2)
    assert found.tried == []
    assert any(
        "1.03 times the shortest time that this machine allows" in note for note in found.notes
    )


@pytest.mark.parametrize("share", [0.5, 0.9, 1.5, None])
def test_it_goes_on_where_more_is_left_or_the_least_is_unknown_or_too_high(
    desk: Desk, spool: Spool, tmp_path: Path, share: float | None
) -> None:
    floor = None if share is None else least(share * EACH_NS)
    found = explored(desk, spool, tmp_path, floor, wrong=2)
    assert found.tried
    assert not any("times the least time" in note for note in found.notes)


def test_it_goes_on_where_a_part_of_the_work_is_not_counted(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    part = replace(least(0.97 * EACH_NS), uncounted=("m",))
    assert explored(desk, spool, tmp_path, part, wrong=2).tried


def test_it_goes_on_where_the_fastest_is_not_right_enough(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    assert explored(desk, spool, tmp_path, least(0.97 * EACH_NS), wrong=80).tried


def test_a_resumed_run_that_froze_what_it_certifies_tries_nothing_new(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    found = explored(desk, spool, tmp_path, None, wrong=2, frozen=True)
    assert found.tried == []
    assert not any("untried" in note for note in found.notes)


@pytest.mark.parametrize(("wrong", "varied"), [(0, False), (1, True)])
def test_a_variant_of_the_fastest_is_made_only_where_it_could_be_seen_to_be_safer(
    desk: Desk, spool: Spool, tmp_path: Path, wrong: int, varied: bool
) -> None:
    found = explored(desk, spool, tmp_path, None, wrong=wrong, sealed_draws=50)
    first = NncfQuantization("performance")
    others = {
        step for one in found.tried for step in one.passes if isinstance(step, NncfQuantization)
    }
    assert bool(others - {first}) == varied


@pytest.mark.parametrize(
    ("wrong", "changed", "strengths"),
    [
        (80, {0.65: 60, 0.5: 50}, [0.65, 0.5]),  # each is safer than the one before
        (80, {0.65: 90, 0.5: 50}, [0.65]),  # the second is no safer
        (2, {0.65: 1, 0.5: 0}, []),  # the first would surely be certified
    ],
)
def test_transformers_that_lose_answers_are_smoothed_less_as_long_as_that_helps(
    desk: Desk,
    spool: Spool,
    tmp_path: Path,
    wrong: int,
    changed: dict[float, int],
    strengths: list[float],
) -> None:
    first = NncfQuantization("mixed", transformer=True, smoothing=0.8)
    known = {replace(first, smoothing=strength): count for strength, count in changed.items()}
    found = explored(desk, spool, tmp_path, None, wrong, first=first, known=known)
    steps = [one.passes[-1] for one in found.tried if one.passes]
    smoothed = [step.smoothing or 1 for step in steps if isinstance(step, NncfQuantization)]
    assert [one for one in dict.fromkeys(smoothed) if one < 0.8] == strengths


def test_other_variants_of_a_pass_whose_first_failed_are_tried(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    failing = Single((StaticQuantization(),), OnnxRuntime())
    found = explored(desk, spool, tmp_path, least(0.5 * EACH_NS), wrong=300, others=[failing])
    varied = [
        one
        for one in found.tried
        if isinstance(one, Single) and one.passes and type(one.passes[-1]) is StaticQuantization
    ]
    assert varied[0] == failing
    assert len(varied) > 1
    assert {one.engine for one in varied} == {failing.engine}


def test_what_the_time_doesnt_suffice_for_is_proposed_once(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    first = NncfQuantization("mixed", transformer=True, smoothing=0.8)
    after = replace(first, smoothing=0.65)
    known = {after: 90}
    found = explored(desk, spool, tmp_path, None, 80, first=first, known=known, late=after)
    assert found.tried.count(Single((after,), OpenVino())) == 1


def test_one_counter_goes_through_exact_forms_other_forms_and_variants(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    exact = [Single((), OnnxRuntime(threads=threads)) for threads in (1, 2)]
    found = explored(desk, spool, tmp_path, None, wrong=2, others=exact)
    outcomes = [one for one in found.told if one.outcome]
    assert [one.done for one in outcomes] == list(range(1, len(outcomes) + 1))
    assert [(one.stage, one.total) for one in outcomes[:3]] == [("exact", 3)] * 2 + [("try", 3)]
    assert len(outcomes) == outcomes[-1].total > 3
