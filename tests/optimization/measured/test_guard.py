"""A rival that wins as often as it loses: right under `net`, and not under `lost`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty
from tests.support.jobs import job_in
from tests.support.nominal_times import nominal_times

from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Guard
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Subset
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.candidate import Single, Trial
from hasten.measure.effort import Effort
from hasten.measure.journal import Journal
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.judge import Measured
from hasten.optimization.ready import Ready

pytestmark = pytest.mark.seconds

ENGINE = OnnxRuntime(threads=1)
BASELINE = Single((), Faulty(ENGINE, busy_ns=300_000))


@dataclass(frozen=True)
class Trading(Faulty):
    """Answers one class further where a sample's first number is one of `moved`."""

    moved: tuple[float, ...] = ()
    exact = False

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        with self.inner.open(artifact, target) as session:
            yield Moving(session, self.moved)

    def words(self) -> str:
        return f"{super().words()}, {len(self.moved)} moved"


class Moving(Session):
    def __init__(self, inner: Session, moved: tuple[float, ...]) -> None:
        self.inputs, self.outputs, self.batch_sizes = inner.inputs, inner.outputs, inner.batch_sizes
        self._inner, self._moved = inner, moved

    def run(self, inputs: Tensors) -> dict[str, Array]:
        logits = self._inner.run(inputs)["logits"]
        moved = np.isin(inputs["x"][:, :1], self._moved)
        return {"logits": np.where(moved, np.roll(logits, 1, axis=1), logits)}

    def properties(self) -> Mapping[str, str]:
        return {}


class Rivalry:
    """Measureds on 200 samples whose labels are the model's own answers, but one class further each fifth."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.x = np.random.default_rng(1).standard_normal((200, 16), dtype=np.float32)
        with ENGINE.open(desk.open(ENGINE).artifact, desk.bench.target) as session:
            labels = session.run({"x": self.x})["logits"].argmax(axis=1)
        labels[::5] = (labels[::5] + 1) % 4
        self.data = ArrayDataset({"x": self.x}, labels)
        self.samples = write_spool(self.data, folder / "search")
        self.bench = Workbench(
            desk.bench.folder,
            desk.bench.target,
            model=desk.model,
            calibration=self.samples,
            calibration_hash="0",
        )
        self.folder = folder
        self.runs: list[Measured] = []

    def rival(self, swapped: int) -> Single:
        """One that loses so many answers and gains as many, all over the samples."""
        wrong = np.arange(0, 200, 200 // swapped)
        moved = self.x[np.concatenate((wrong, wrong + 1)), 0]
        return Single((), Trading(ENGINE, moved=tuple(moved.tolist())))

    def tried(self, rival: Single, guard: Guard) -> tuple[Measured, Trial]:
        units = np.arange(200)
        job = job_in(
            self.folder,
            Journal(self.folder / f"journal-{guard}"),
            guard=guard,
            max_drop=0.02,
            effort=Effort(warmup_ns=0, block_ns=0, ceilings=False, starts=0),
        )
        ready = Ready(
            model=self.bench.model,
            parts=Parts(
                calibration=self.samples,
                calibration_hash="0",
                search=self.samples,
                search_units=units,
                sealed=Subset(self.data, units),
                sealed_units=units,
                sealed_hashes=(),
                unit_sizes=np.ones(len(units), np.int64),
                notes=(),
            ),
            training=None,
            pipeline=None,
            promise=Promise(Top1(), guard, max_drop=0.02),
            target=self.bench.target,
            small_models=(),
            trained={},
            given_sha256=self.bench.model.sha256,
        )
        run = Measured(job, ready)
        self.runs.append(run)
        run.racing.trials.begin([BASELINE])
        return run, run.racing.trials.run(rival)


@pytest.fixture
def rivalry(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rivalry]:
    # The workers must find this file's engine by its import path.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    rivalry = Rivalry(desk, tmp_path)
    with nominal_times():
        yield rivalry
    for run in rivalry.runs:
        run.close()


@pytest.mark.parametrize(("guard", "drop"), [("net", 0.0), ("lost", 0.025)])
def test_five_lost_for_five_gained_race_under_net_and_not_under_lost(
    rivalry: Rivalry, guard: Guard, drop: float
) -> None:
    rival = rivalry.rival(5)
    run, trial = rivalry.tried(rival, guard)
    assert trial.failure is None
    assert trial.scores is not None
    changes = np.array(trial.scores) - run.racing.trials.exact_scores
    assert ((changes < 0).sum(), (changes > 0).sum()) == (5, 5)
    assert run.racing.trials.drop(trial) == pytest.approx(drop)
    assert (rival in run.racing.field()) == (guard == "net")


@pytest.mark.parametrize(("guard", "scored"), [("net", 200), ("lost", 128)])
def test_one_that_loses_many_is_left_early_under_lost_whatever_it_gains(
    rivalry: Rivalry, guard: Guard, scored: int
) -> None:
    _, trial = rivalry.tried(rivalry.rival(40), guard)
    assert trial.scores is not None
    assert len(trial.scores) == scored
