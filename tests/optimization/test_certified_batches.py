"""Batch sizes that a ladder is certified for, of engines that answer otherwise in some batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias
from unittest.mock import patch

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty
from tests.support.jobs import job_in

from hasten.certificate.batches import Batches
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Subset
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.candidate import Single, Trial
from hasten.measure.effort import Effort
from hasten.measure.journal import Journal
from hasten.measure.workbench import OpenWorker
from hasten.optimization import batching
from hasten.optimization.batching import with_batches
from hasten.optimization.judge import Ladder
from hasten.optimization.measured.judge import Measured
from hasten.optimization.ready import Ready
from hasten.optimization.run import certify

pytestmark = pytest.mark.seconds

Whim: TypeAlias = Literal["none", "eights", "mates", "few"]
ENGINE = OnnxRuntime(threads=1)
BASELINE = Single((), ENGINE)
LOUD, SEARCH = 4.9, 64
EVERY = (2, 4, 8, 16, 32)
AGREEMENT = Agreement()


@dataclass(frozen=True)
class Batching(Faulty):
    """ONNX Runtime, with a whim in batches.

    Attributes:
        whim: "eights" answers one class further in batches of 8 and more, "mates" where a number of the
            batch is large, and "few" gives an answer less.
    """

    whim: Whim = "none"
    exact = False

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        with self.inner.open(artifact, target) as session:
            yield Whimsical(session, self.whim)

    def words(self) -> str:
        return f"{super().words()}, {self.whim}"


class Whimsical(Session):
    def __init__(self, inner: Session, whim: Whim) -> None:
        self.inputs, self.outputs, self.batch_sizes = inner.inputs, inner.outputs, inner.batch_sizes
        self._inner, self._whim = inner, whim

    def run(self, inputs: Tensors) -> dict[str, Array]:
        logits, x = self._inner.run(inputs)["logits"], inputs["x"]
        if len(x) > 1 and self._whim == "few":
            return {"logits": logits[:-1]}
        mixed = len(x) > 1 and self._whim == "mates" and np.abs(x).max() > LOUD
        moved = mixed or (len(x) >= 8 and self._whim == "eights")
        return {"logits": np.roll(logits, 1, axis=1) if moved else logits}


class Bout:
    """Runs on samples of which the sealed ones have a few large numbers, and those of the search none."""

    def __init__(
        self,
        desk: Desk,
        folder: Path,
        sealed: int = 400,
        labels: Array | None = None,
        metric: Metric = AGREEMENT,
    ) -> None:
        rng = np.random.default_rng(1)
        x = np.clip(rng.standard_normal((SEARCH + sealed, 16), np.float32), -3, 3)
        x[SEARCH + 37 :: 97, 3] = 5
        self.desk, self.folder, self.runs = desk, folder, list[Measured]()
        self.data, self.metric = ArrayDataset({"x": x}, labels), metric
        self.search = write_spool(Subset(self.data, np.arange(SEARCH)), folder / "search")
        self.sealed = SEARCH + np.arange(sealed)

    def run(self, *whims: Whim, max_drop: float = 0.02) -> tuple[Measured, Ladder]:
        """Judge rivals with these whims on the search split; return them as a ladder."""
        name = f"{len(self.runs)}"
        effort = Effort(warmup_ns=0, block_ns=0, ceilings=False, starts=0)
        journal = Journal(self.folder / f"journal-{name}")
        job = job_in(self.folder, journal, max_drop=max_drop, effort=effort)
        parts = Parts(
            calibration=self.search,
            calibration_hash="0",
            search=self.search,
            search_units=np.arange(SEARCH),
            sealed=Subset(self.data, self.sealed),
            sealed_units=self.sealed,
            sealed_hashes=tuple(f"{i:064x}" for i in self.sealed),
            unit_sizes=np.ones(len(self.sealed), np.int64),
            notes=(),
        )
        ready = Ready(
            model=self.desk.model,
            parts=parts,
            training=None,
            pipeline=None,
            promise=Promise(self.metric, max_drop=max_drop),
            target=self.desk.bench.target,
            small_models=(),
            trained={},
            given_sha256=self.desk.model.sha256,
        )
        run = Measured(job, ready)
        self.runs.append(run)
        run.racing.trials.begin([BASELINE])
        rivals = [Single((), Batching(ENGINE, whim=whim)) for whim in whims]
        for rival in rivals:
            run.racing.trials.keep(Trial(rival, scores=(1.0,) * SEARCH))
        return run, Ladder(BASELINE.key, tuple(rival.key for rival in rivals))


@pytest.fixture
def bout(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bout]:
    # The workers must find this file's engine by its import path.
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    # A model of microseconds is neither quicker nor slower in batches.
    monkeypatch.setattr(batching, "_PAYS", 1e9)
    monkeypatch.setattr(batching, "_LEAST_S", 1e9)  # however long a busy machine takes
    bout = Bout(desk, tmp_path)
    yield bout
    for run in bout.runs:
        run.close()


@pytest.mark.parametrize(
    ("whim", "sizes", "without"),
    [
        ("none", EVERY, ""),
        ("eights", (2, 4), "8 and larger: on the search split answers depend on the batch"),
        ("few", (), "2 and larger: the output 'logits' of a batch of 2 has the shape [1, 4]"),
        (
            "mates",
            (),
            "2 and larger: rows may depend on each other, so each batch is one draw, and 333 batches "
            "would be needed",
        ),
    ],
)
def test_the_search_split_says_at_which_sizes_a_rung_is_tested(
    bout: Bout, whim: Whim, sizes: tuple[int, ...], without: str
) -> None:
    run, ladder = bout.run(whim, max_drop=0.01)
    chosen = with_batches(run, ladder).batches[ladder.rungs[0]]
    assert (chosen.sizes, chosen.without) == (sizes, without)
    assert chosen.rows_apart == (whim in ("none", "eights"))


def test_samples_without_a_label_are_no_reason_against_batches(bout: Bout, tmp_path: Path) -> None:
    labels = np.arange(SEARCH + 400) % 4
    labels[::3] = -1
    (tmp_path / "some").mkdir()
    some = Bout(bout.desk, tmp_path / "some", labels=labels, metric=Top1())
    some.runs = bout.runs
    run, ladder = some.run("none")
    chosen = with_batches(run, ladder).batches[ladder.rungs[0]]
    assert (chosen.sizes, chosen.without) == (EVERY, "")


def test_a_rung_with_smaller_pictures_is_tested_at_the_sizes_of_its_model(bout: Bout) -> None:
    """A server batches requests with whole pixels as the rung that ships says, so its model is tested so, too."""
    run, ladder = bout.run("none", "mates")
    rivals = [run.trials.done[key].candidate for key in ladder.rungs]
    smaller = [replace(rival, least=36) for rival in (rivals[1], BASELINE)]
    for one in smaller:
        run.racing.trials.keep(replace(run.trials.done[replace(one, least=0).key], candidate=one))
    ladder = replace(ladder, rungs=(*ladder.rungs, *(one.key for one in smaller)))
    opened, opens = list[str](), run.opened

    def counted(key: str) -> AbstractContextManager[OpenWorker]:
        opened.append(key)
        return opens(key)

    with patch.object(run, "opened", counted):
        batches = with_batches(run, ladder).batches
    assert tuple(batches) == ladder.rungs
    assert batches[smaller[0].key] is batches[rivals[1].key]
    assert opened == [rivals[0].key, rivals[1].key, smaller[1].key]  # the original is no rung


def test_sizes_at_which_the_sealed_answers_are_wrong_are_not_covered_and_end_the_ladder(
    bout: Bout,
) -> None:
    run, ladder = bout.run("eights", "none")
    eights, _ = ladder.rungs
    frozen = Ladder(ladder.exact, ladder.rungs, batches={eights: Batches(EVERY, rows_apart=True)})
    sealed = certify(run, frozen)
    ((key, judgement),) = sealed.verdicts
    assert key == eights
    assert isinstance(judgement, Judgement)
    assert judgement.verdict is Verdict.CERTIFIED
    assert sealed.covered.sizes == (1, 2, 4)
    assert sealed.covered.in_words().startswith(
        "batches of 1, 2, 4, tested on the same samples (the"
    )
    assert "; not others: 8 and larger: not accurate enough: " in sealed.covered.in_words()
    assert certify(run, frozen).covered == sealed.covered, "a resumed run reads nothing anew"


def test_where_rows_may_mix_one_loud_row_costs_its_whole_batch(bout: Bout) -> None:
    run, ladder = bout.run("mates")
    (mates,) = ladder.rungs
    frozen = Ladder(ladder.exact, ladder.rungs, batches={mates: Batches((2, 32))})
    sealed = certify(run, frozen)
    assert sealed.covered.sizes == (1,)
    assert sealed.covered.in_words().startswith("lone samples only: 2 and larger: not enough data")


def test_a_rung_that_holds_in_all_its_batches_lets_the_ladder_go_on(bout: Bout) -> None:
    run, ladder = bout.run("few", "none")
    few, none = ladder.rungs
    frozen = Ladder(ladder.exact, ladder.rungs, batches={none: Batches(EVERY, rows_apart=True)})
    sealed = certify(run, frozen)
    assert [key for key, _ in sealed.verdicts] == [few, none]
    assert sealed.covered.sizes == (1, *EVERY)
