import dataclasses
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty
from tests.support.nominal_times import nominal_times

from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Guard
from hasten.core.model import Model
from hasten.core.objects import import_path
from hasten.core.target import Target
from hasten.core.words import lost_in_words
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.metrics.top_k import Top1
from hasten.measure import workbench
from hasten.measure.candidate import Single, Trial
from hasten.measure.exactness import difference
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.screening import Screening, ratio
from hasten.optimization.trials import risk
from hasten.passes.base import Pass, Skipped

ENGINE = OnnxRuntime(threads=1)
QUICK = Faulty(ENGINE)  # its latency is known, whatever the machine does
SLOW = Faulty(ENGINE, busy_ns=300_000)
BASELINE = Single((), SLOW)
PACE = Pace(warmup_ns=0, block_ns=0, at_least=3, at_most=3)


@dataclass(frozen=True)
class Marked(Pass):
    """Leaves a mark each time that it runs, then does as its mode says."""

    mode: str
    marks: str

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator["Marked"]:
        yield from ()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        with Path(self.marks).open("a") as file:
            file.write("x")
        if self.mode == "fail":
            raise CandidateError("it took no effect")
        if self.mode == "skip":
            raise Skipped("nothing to do")
        return model

    def words(self) -> str:
        return f"marked {self.mode}"


@pytest.fixture
def bench(desk: Desk, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    # The workers must find this file's pass by its import path.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    target = desk.bench.target
    folder = desk.bench.folder
    return Workbench(folder, target, model=desk.model, calibration=spool, calibration_hash="0")


class Search:
    """Screening on 200 samples, labelled by the model itself, a fifth of them wrongly."""

    def __init__(self, bench: Workbench, folder: Path) -> None:
        x = np.random.default_rng(1).standard_normal((200, 16), dtype=np.float32)
        (folder / "labelling").mkdir()
        artifact = ENGINE.build(bench.model, bench.target, folder / "labelling")
        with ENGINE.open(artifact, bench.target) as session:
            labels = session.run({"x": x})["logits"].argmax(axis=1)
        labels[::5] = (labels[::5] + 1) % 4
        self.samples = write_spool(ArrayDataset({"x": x}, labels), folder / "search")
        self.bench, self.path = bench, folder / "journal"
        self.open: list[Screening] = []

    def trials(self, guard: Guard = "net", grid: tuple[Single, ...] = (BASELINE,)) -> Screening:
        trials = Screening(
            self.bench,
            Journal(self.path),
            self.samples,
            Promise(Top1(), guard),
            pace=PACE,
            seed=0,
            trusted=(import_path(Faulty), import_path(Marked)),
        )
        self.open.append(trials)
        trials.begin(grid)
        return trials


@pytest.fixture
def search(bench: Workbench, tmp_path: Path) -> Iterator[Search]:
    search = Search(bench, tmp_path)
    try:
        with nominal_times():
            yield search
    finally:
        for trials in search.open:
            trials.close()


def test_a_faster_exact_candidate_is_measured_and_compared(search: Search) -> None:
    trials = search.trials()
    trial = trials.run(Single((), QUICK))
    assert trial.failure is None
    assert ratio(trial).high < 1
    assert trial.exact
    assert trial.changed == 0
    assert trials.drop(trial) == trials.risk(trial) == 0.0
    assert trials.outcome(trial).endswith("x, exact: no answer changed on 200 samples")
    assert trials.notes == []


def test_an_exact_candidate_that_is_slower_is_not_compared_in_full_and_not_exempt(
    search: Search,
) -> None:
    trials = search.trials(grid=(Single((), QUICK),))
    trial = trials.run(BASELINE)
    assert (trial.failure, trial.scores, trial.changed) == (None, None, None)
    assert not trial.exact
    assert trials.drop(trial) == 1.0
    assert trials.outcome(trial).endswith(
        "x, exact settings; not faster, so not every answer was compared"
    )


def test_a_fast_engine_with_wrong_answers_shows_a_large_drop_and_is_left_early(
    search: Search,
) -> None:
    trials = search.trials()
    trial = trials.run(Single((), Faulty(ENGINE, "wrong")))
    assert trial.failure is None
    assert trial.scores is not None
    assert len(trial.scores) == 128
    assert trials.drop(trial) > 0.3


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (Faulty(ENGINE, "kill"), "its process was killed by SIGKILL during 'time'"),
        (Faulty(Null(), "nan"), "output 'logits' has NaN for sample 0"),
        (Faulty(ENGINE, "kill", on_run=0), "its process was killed by SIGKILL during 'open'"),
    ],
)
def test_a_candidate_that_fails_is_recorded_with_its_reason(
    search: Search, engine: Faulty, why: str
) -> None:
    trial = search.trials().run(Single((), engine))
    assert trial.failure == why
    assert Journal(search.path).last("trial") is not None


def test_an_engine_that_is_not_made_for_the_model_is_skipped(search: Search) -> None:
    unfit = Single((), CompiledC(threads=8))
    why = "there is too little to calculate for 8 threads: it would be the same as on one"
    trials = search.trials(grid=(unfit, BASELINE))
    assert trials.baseline == BASELINE
    for trial in (trials.done[unfit.key], search.trials().run(unfit)):
        assert (trial.skipped, trial.failure) == (why, None)
    assert trials.outcome(trials.done[unfit.key]) == f"skipped: {why}"


def test_trials_in_the_journal_are_not_run_again(search: Search) -> None:
    first = search.trials()
    for engine in (ENGINE, Faulty(ENGINE, "kill")):
        first.run(Single((), engine))
    first.close()
    resumed = search.trials()
    assert resumed.done == first.done
    before = len(list(Journal(search.path).events("trial")))
    assert resumed.run(Single((), ENGINE)) == first.done[Single((), ENGINE).key]
    assert len(list(Journal(search.path).events("trial"))) == before


def test_a_resumed_run_asks_in_chunks_as_small_as_the_first_one_did(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbench, "CHUNK_BYTES", 160)  # ten answers of 16 bytes
    search.trials()
    search.bench = dataclasses.replace(search.bench, chunk=workbench.CHUNK)  # as in another process
    again = search.trials()
    assert again.bench.chunk == 10
    assert again.run(Single((), QUICK)).changed == 0


def test_the_baseline_is_no_rival_of_its_own(search: Search) -> None:
    trials = search.trials()
    own = trials.run(BASELINE)
    assert own.measurement is None
    assert own.artifact is not None
    assert own.artifact.path.exists()


def test_an_engine_that_cannot_run_the_model_leaves_the_next_as_baseline(search: Search) -> None:
    bad = Single((), Faulty(ENGINE, "kill", on_run=0))
    trials = search.trials(grid=(bad, BASELINE))
    assert trials.baseline == BASELINE
    assert trials.done[bad.key].failure == "its process was killed by SIGKILL during 'open'"


def test_a_model_that_nothing_runs_leaves_nothing_to_resume(search: Search) -> None:
    with pytest.raises(InputError) as error:
        search.trials(grid=(Single((), Faulty(ENGINE, "kill", on_run=0)),))
    label = Single((), Faulty(ENGINE, "kill", on_run=0)).label
    assert str(error.value) == (
        f"no engine runs this model: {label}: its process was killed by SIGKILL during 'open'"
    )
    assert Journal(search.path).last("trial") is None


def test_a_baseline_that_died_is_started_anew_without_leftovers(search: Search) -> None:
    trials = search.trials()
    gone = trials.opened_baseline().worker
    os.kill(gone.pid, signal.SIGKILL)
    gone._process.wait(60)
    assert trials.run(Single((), ENGINE)).failure is None
    assert gone._channel.fileno() == -1


def test_under_lost_no_gain_makes_up_for_a_loss(search: Search) -> None:
    net, lost = search.trials(), search.trials("lost")
    right = net.exact_scores
    swapped = np.where(np.arange(200) % 10 == 0, 1 - right, right)  # as many gained as may be
    trial = Trial(Single((), Null()), scores=tuple(map(float, swapped)))
    falls = right - swapped
    assert net.drop(trial) == pytest.approx(falls.mean())
    assert lost.drop(trial) == pytest.approx(np.maximum(falls, 0).mean())
    assert lost.drop(trial) > net.drop(trial)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (0.28, "+0.28 points lost"),
        (-3.51, "3.51 points gained"),
        (-0.0, "+0.00 points lost"),
    ],
)
def test_what_is_gained_is_not_called_lost(points: float, words: str) -> None:
    assert lost_in_words(points) == words


def test_a_pass_that_failed_is_not_run_a_second_time(bench: Workbench, tmp_path: Path) -> None:
    step = Marked("fail", str(tmp_path / "marks"))
    for again in (bench, dataclasses.replace(bench)):
        with pytest.raises(CandidateError) as error:
            again.transform((step,))
        assert str(error.value) == "it took no effect"
    assert (tmp_path / "marks").read_text() == "x"


@pytest.mark.parametrize("mode", ["skip", "work"])
def test_a_pass_runs_once_for_all_engines_and_runs(
    bench: Workbench, tmp_path: Path, mode: str
) -> None:
    step = Marked(mode, str(tmp_path / "marks"))
    fresh = Workbench(
        bench.folder,
        bench.target,
        model=bench.model,
        calibration=bench.calibration,
        calibration_hash="0",
    )
    for again in (bench, bench, fresh):
        if mode == "skip":
            with pytest.raises(Skipped) as error:
                again.transform((step,))
            assert str(error.value) == "Marked: nothing to do"
        else:
            assert again.transform((step,)) == dataclasses.replace(bench.model, origin=bench.model)
    assert (tmp_path / "marks").read_text() == "x"


def test_a_candidate_that_failed_leaves_no_artifact(bench: Workbench) -> None:
    with pytest.raises(CandidateError):
        bench.open(Single((), Faulty(ENGINE, "kill", on_run=0)))
    assert list((bench.folder / "artifacts").iterdir()) == []


def test_a_difference_is_relative_to_the_largest_output() -> None:
    own = {"y": np.array([1.0, -10.0]), "i": np.array([1, 2])}
    assert difference(own, own) == 0
    assert difference({**own, "y": np.array([1.5, -10.0])}, own) == pytest.approx(0.05)
    assert difference({**own, "i": np.array([1, 3])}, own) == 1
    assert difference({"y": own["y"]}, own) == np.inf
    assert difference({**own, "y": np.ones((2, 1))}, own) == np.inf


def test_who_flips_least_is_safest_whatever_luck_says() -> None:
    def falls(lost: int, gained: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.repeat([1.0, -1.0, 0.0], [lost, gained, 1500 - lost - gained])

    lucky, steady, unlucky = (risk(falls(*counts), 1500) for counts in ((41, 45), (5, 6), (45, 41)))
    assert steady < lucky < unlucky
    assert risk(falls(0, 0), 1500) == 0.0
    assert risk(falls(15, 0), 1500) < risk(falls(15, 0), 500)  # fewer draws certify less
