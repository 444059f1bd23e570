"""A run under a time limit: what gives way, what stays whole, and what is said."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from tests.support import ragged
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.progress import Progress
from hasten.errors import OutOfTime
from hasten.measure.candidate import Trial
from hasten.measure.deadline import Deadline, Need
from hasten.measure.race import BASELINE, Standings
from hasten.measure.workbench import OpenWorker
from hasten.optimization import delivery
from hasten.optimization.judge import Ladder
from hasten.optimization.measured.racing import Racing
from hasten.optimization.measured.screening import Screening
from hasten.optimization.measured.spending import Spending
from hasten.optimization.trials import Trials
from hasten.reporting.result import Result
from hasten.testing import models

X = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
BEFORE_THE_END = "the time limit came before the sealed data was answered"


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(races=False):
        yield


def optimize(folder: Path, **options: Any) -> Result:
    return hasten.optimize(
        models.linear_classifier(folder),
        X,
        out=folder / "b.hasten",
        engines=("tests.support.rivals:Rival",),
        metric="agreement",
        max_drop=0.05,
        **options,
    )


def spending(
    racing: Mapping[str, Any],
    *,
    sealed: int,
    answer_s: float,
    left_s: float,
    given: object = None,
    searched: int = 0,
    read_s: float = 0.0,
    done: Mapping[str, Any] = {},
) -> tuple[Spending, list[str]]:
    """Spending of a run with so many sealed samples, each answered in so long, with so much time left."""
    deadline = Deadline(left_s)
    deadline.saw("answer", answer_s)
    deadline.enter("certify")
    notes: list[str] = []
    fake: Any = SimpleNamespace(
        job=SimpleNamespace(deadline=deadline, notes=notes),
        ready=SimpleNamespace(
            parts=SimpleNamespace(read_s=read_s, sealed=range(sealed), search=range(searched)),
            given=given,
        ),
        trials=SimpleNamespace(baseline=SimpleNamespace(key="original"), done=done),
        open_forked_s=0.0,
        **racing,
    )
    return Spending(fake), notes


def test_a_ladder_is_shortened_to_what_there_is_time_to_certify() -> None:
    whole = Ladder("original", ("safest", "safe", "fast", "fastest"))
    plenty, said = spending({}, sealed=1000, answer_s=0.01, left_s=1000)
    assert plenty.affordable(whole) == whole
    assert said == []
    some, said = spending({}, sealed=1000, answer_s=0.01, left_s=45)
    assert some.affordable(whole).rungs == ("safest", "fastest")
    assert said == ["the time limit left out 2 of 4 candidates that were worth certifying"]
    for left in ("safest", "fastest"):
        better = {
            "outdoes": lambda fast, safe, left=left: (
                (fast, safe, left) == ("fastest", "safest", fast)
            )
        }
        one, _ = spending(better, sealed=1000, answer_s=0.01, left_s=30)
        assert one.affordable(whole).rungs == (left,)


@pytest.mark.parametrize(
    ("changed", "fast", "safe", "outdoes"),
    [
        (0, 0.8, 0.9, True),  # it surely passes, and any gain will do
        (1, 0.3, 0.8, True),  # it passes in about half of the cases, and gains far more
        (1, 0.7, 0.8, False),
        (9, 0.1, 0.8, False),
    ],
)
def test_of_two_candidates_the_better_bet_is_certified(
    changed: int, fast: float, safe: float, outdoes: bool
) -> None:
    """Only bf16 was certified, 1.2 times as fast, where int8 was 2.9 times as fast and accurate enough."""
    ratios = {"fast": fast, "safe": safe}

    def passes(trial: object, units: object, draws: int, doubt: float) -> bool:
        assert (trial, draws) == ("fast", 200)
        return changed + doubt * math.sqrt(changed) <= 2

    racing: Any = SimpleNamespace(
        ready=SimpleNamespace(parts=SimpleNamespace(search_units=np.arange(100)), sealed_draws=200),
        trials=SimpleNamespace(
            done={"fast": "fast", "safe": "safe"},
            ratio=lambda trial: SimpleNamespace(estimate=ratios[trial]),
            probably_certified=passes,
        ),
    )
    assert Racing.outdoes(racing, "fast", "safe") is outdoes


def test_a_smaller_decoding_takes_time_for_all_that_is_read_and_answered_with_it() -> None:
    """Samples are answered in 0.01 s and read in 1 s; what depends on the host has a margin of 1.3."""
    done = {
        key: SimpleNamespace(candidate=SimpleNamespace(least=least))
        for key, least in {"exact": 0, "int8": 0, "36": 36}.items()
    }

    def needed_s(ladder: Ladder, key: str) -> float:
        some, _ = spending(
            {}, sealed=1000, answer_s=0.01, left_s=1000, searched=500, read_s=1.0, done=done
        )
        return some.decoding_s(ladder, key)

    alone, exact = Ladder("original", ()), Ladder("exact", ())
    assert needed_s(alone, "new") == pytest.approx(1.3 * (1000 * (2 + 0.02) + 500 * (1 + 0.01)))
    assert needed_s(alone, "36") == pytest.approx(1.3 * 1000 * (2 + 0.02))  # answered before a stop
    assert needed_s(exact, "36") == pytest.approx(1.3 * 1000 * (2 + 0.03))  # compared, too
    both = Ladder("original", ("int8", "36"))
    assert needed_s(both, "new") == pytest.approx(1.3 * (1000 * (3 + 0.04) + 500 * (1 + 0.01)))


def test_without_time_for_the_sealed_data_the_original_ships() -> None:
    none, said = spending({}, sealed=1000, answer_s=0.01, left_s=20)
    left = none.affordable(Ladder("exact", ("int8",), threads=2))
    assert left == Ladder("original", (), threads=2)
    assert said == [
        "the sealed data was not read, because that would take about 26 s and the time limit "
        "left 20 s; the original ships, and nothing is certified"
    ]


def test_a_form_of_the_original_that_cant_be_compared_in_time_is_no_original() -> None:
    alone = Ladder("original", ())
    in_time, said = spending({}, sealed=1000, answer_s=0.01, left_s=27, given="as given")
    assert in_time.affordable(alone) == alone
    assert said == []
    late, said = spending({}, sealed=1000, answer_s=0.01, left_s=25, given="as given")
    assert late.affordable(alone) == Ladder("", ())
    assert late.affordable(Ladder("exact", ("int8",))) == Ladder("", ())
    assert said[0].startswith("the sealed data was not read, because that would take about 26 s")


@pytest.mark.seconds
def test_an_original_that_answers_too_slowly_ships_by_itself(tmp_path: Path) -> None:
    def answer(self: Trials, opened: OpenWorker) -> None:
        raise OutOfTime("the time limit ended it")

    with patch.object(Trials, "answer", answer):
        result = optimize(tmp_path, time_limit_s=10_000.0, keep_exact=False)
    assert result.status == "exact"
    assert [row.role for row in result.rows] == ["default engine", "fastest exact"]
    assert any(note.endswith("so nothing else was tried") for note in result.notes)
    assert read(result.bundle).winner.label == result.rows[0].label


def test_a_candidate_that_the_time_ran_out_for_is_untried_and_not_failed(tmp_path: Path) -> None:
    def screen(self: Screening, trial: Trial, opened: OpenWorker) -> Trial:
        raise OutOfTime("the time limit came before it was timed")

    with patch.object(Screening, "_screen", screen):
        result = optimize(tmp_path)
    assert "the time limit left 1 of 2 candidates untried" in result.notes


@pytest.mark.seconds
def test_what_the_time_limit_left_of_exact_and_inexact_candidates_is_one_note(
    tmp_path: Path,
) -> None:
    def screen(self: Screening, trial: Trial, opened: OpenWorker) -> Trial:
        raise OutOfTime("the time limit came before it was timed")

    with patch.object(Screening, "_screen", screen), quick_runs(passes=True, races=False):
        result = hasten.optimize(
            ragged.encoder(tmp_path),
            ragged.sentences(120),
            out=tmp_path / "b.hasten",
            engines=("onnxruntime", "tests.support.rivals:Rival"),
            passes=("dynamic_quantization",),
        )
    [note] = [one for one in result.notes if "untried" in one]
    found = re.fullmatch(r"the time limit left (\d+) of (\d+) candidates untried", note)
    assert found is not None
    assert int(found[1]) == int(found[2]) - 1 > 1  # all but the baseline
    assert not any(why.startswith("failed") for why in result.tried.values())


@pytest.mark.seconds
@pytest.mark.parametrize("steps_are_cut", [True, False])
def test_sealed_data_that_were_not_answered_to_the_end_are_not_judged(
    tmp_path: Path, steps_are_cut: bool
) -> None:
    kinds: list[str] = []

    def look(progress: Progress) -> None:
        journal = tmp_path / "b.hasten.work" / "journal.jsonl"
        if progress.stage == "figures" and journal.exists():
            kinds.extend(line.split('"')[3] for line in journal.read_text().splitlines())

    real = Deadline.most_s

    def most_s(self: Deadline) -> float:
        return 0.0 if self.stage == "certify" else real(self)

    step_s = Deadline.step_s if steps_are_cut else lambda self, limit_s: limit_s
    with patch.multiple(Deadline, most_s=most_s, step_s=step_s):
        result = optimize(tmp_path, listen=look)
    assert result.status == "exact"
    assert result.winner.role == "fastest exact"
    assert result.winner.ratio.estimate == pytest.approx(1.0, abs=0.5)
    assert any(BEFORE_THE_END in note for note in result.notes)
    assert "sealed read" in kinds
    assert "judged" not in kinds
    assert result.look is None
    assert read(result.bundle).certificate is None


@pytest.mark.seconds
def test_a_report_without_time_is_left_to_its_command(tmp_path: Path) -> None:
    with patch.object(delivery, "rendered_within", return_value=None):
        result = optimize(tmp_path, time_limit_s=10_000.0)
    assert result.status == "certified"
    assert delivery.UNREPORTED in result.notes
    assert not (result.bundle / "report.html").exists()
    assert read(result.bundle).status == "certified"


@pytest.mark.seconds
def test_when_it_was_decided_is_said_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    result = optimize(tmp_path, listen=lambda p: told.append(p.news or ""))
    assert result.decided_s is not None
    assert 0 < result.decided_s <= result.seconds
    assert any(line.startswith("decided after") and "ships, certified" in line for line in told)


class Timed:
    """A racing whose times are known, with so much left for the stage at work."""

    def __init__(self, left_s: float, most_s: float) -> None:
        self.open_s, self.open_forked_s, self.turn_s = 2.0, 0.5, 0.1
        self.effort = SimpleNamespace(processes=5)
        deadline: Any = SimpleNamespace(left_s=lambda share=1.0: share * left_s, limited=True)
        deadline.most_s = lambda: most_s
        self.job = SimpleNamespace(deadline=deadline, notes=[])
        exact, lossy = SimpleNamespace(exact=True), SimpleNamespace(exact=False)
        self.trials = SimpleNamespace(done={"e": exact, "s": lossy, "m": lossy, "f": lossy})


@dataclasses.dataclass(frozen=True)
class Named:
    key: str

    @property
    def label(self) -> str:
        return self.key


def named(key: str) -> Any:
    return Named(key)


@pytest.mark.parametrize(
    ("left_s", "field"), [(100.0, "esmf"), (4.6, "esf"), (2.8, "e"), (1.0, "")]
)
def test_a_race_takes_whom_there_is_time_for_the_safest_and_fastest_first(
    left_s: float, field: str
) -> None:
    racing: Any = Timed(left_s, left_s)
    found = Racing.affordable(racing, [named(key) for key in "esmf"])
    assert "".join(one.key for one in found) == field


def test_fresh_rounds_are_first_for_what_may_ship() -> None:
    needed, wanted = [named("s")], [named("s"), named("e")]
    for left_s, most_s, kept in ((100.0, 100.0, 2), (20.0, 20.0, 1), (1.0, 7.0, 1), (1.0, 1.0, 0)):
        racing: Any = Timed(left_s, most_s)
        assert len(Racing.timed_again(racing, needed, wanted)) == kept
    assert "the original ships" in racing.job.notes[0]


@pytest.mark.parametrize(("left_s", "sets"), [(100.0, 5), (28.0, 4), (15.0, 1), (1.0, 1)])
def test_processes_are_three_or_more_or_one(left_s: float, sets: int) -> None:
    racing: Any = Timed(left_s, left_s)
    assert Racing.sets_in_time(racing, [named("s")])[0] == sets


def test_rounds_on_several_threads_leave_half_of_the_time_for_one_thread() -> None:
    several: Any = SimpleNamespace(target=SimpleNamespace(threads=2))
    one: Any = SimpleNamespace(target=SimpleNamespace(threads=1))
    racing: Any = Timed(0.3, 0.3)
    fresh, counted = Standings("race", 2), Standings("race", 2)
    fresh.add(0, {BASELINE: (1,), "a": (1,)}, {}, counts=False)
    for number in range(2):
        counted.add(number, {BASELINE: (1,), "a": (1,)}, {}, counts=True)
    assert Racing.stop(racing, several)(fresh)
    assert not Racing.stop(racing, one)(fresh)
    assert not Racing.stop(racing, several)(counted)


def test_needs_grow_with_what_was_measured(tmp_path: Path) -> None:
    plain: Any = SimpleNamespace(
        job=SimpleNamespace(
            deadline=(deadline := Deadline(60.0)), order=SimpleNamespace(objective="p50")
        ),
        ready=SimpleNamespace(
            parts=SimpleNamespace(read_s=0.0, sealed=range(100)), given=None, files=()
        ),
        effort=hasten.Effort(),
        limited=True,
        open_s=2.0,
        open_forked_s=0.5,
        turn_s=0.1,
        slow=1.0,
    )
    before = Spending(plain).plan()
    deadline.saw("answer", 1.0)
    slower = Spending(SimpleNamespace(**{**vars(plain), "open_s": 8.0, "slow": 4.0})).plan()  # type: ignore[arg-type]
    assert slower["certify"].least_s > before["certify"].least_s + 100
    assert slower["figures"].least_s > before["figures"].least_s
    assert slower["deliver"].wish_s > before["deliver"].wish_s
    assert before["further"].least_s == 0
    assert all(isinstance(need, Need) and need.wish_s >= need.least_s for need in before.values())
