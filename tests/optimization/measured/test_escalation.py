"""Cascades on a classifier whose coarse version is quick and errs where two classes are close."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty
from tests.support.nominal_times import BASE_NS, Asked, busy_on_purpose, nominal_times

from hasten.certificate.promise import Promise
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.cascade import Cascade
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.models.onnx import load
from hasten.measure.accuracy import beside
from hasten.measure.candidate import Single, Trial
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.workbench import Workbench
from hasten.optimization.measured import escalation
from hasten.optimization.measured.escalation import Escalation
from hasten.optimization.measured.screening import Screening
from hasten.passes.base import Pass
from hasten.passes.onnx_files import read_onnx, write_onnx
from hasten.passes.small_model import SmallModel

pytestmark = pytest.mark.seconds

FAST = OnnxRuntime(threads=1)
SLOW = Faulty(FAST, busy_ns=1_000_000)
LIMIT = 0.005
SAMPLES = 600


@dataclass(frozen=True)
class Coarse(Pass):
    """Rounds weights to a few levels."""

    levels: int = 8

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator["Coarse"]:
        yield cls()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        for tensor in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            scale = np.abs(values).max() / self.levels
            rounded = (np.round(values / scale) * scale).astype(values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
        return write_onnx(proto, model, workdir / "coarse.onnx")

    def words(self) -> str:
        return f"{self.levels} levels"


COARSE = Single((Coarse(),), FAST)


class Search:
    """The search for a threshold, on real engines."""

    def __init__(self, desk: Desk, folder: Path, metric: Metric, samples: Spool) -> None:
        bench = Workbench(
            desk.bench.folder,
            desk.bench.target,
            model=desk.model,
            calibration=samples,
            calibration_hash="0",
        )
        self.trials = Screening(
            bench,
            Journal(folder / "journal"),
            samples,
            Promise(metric, max_drop=0.999),
            pace=Pace(warmup_ns=0, block_ns=0, at_least=64, at_most=64),
            seed=0,
        )
        self.notes: list[str] = []
        self.tried: list[Trial] = []
        self.trials.begin([Single((), SLOW)])
        self.trials.run(COARSE)

    def likely(self, trial: Trial, scale: float) -> bool:
        return trial.candidate.exact or scale * self.trials.drop(trial) < 0.8 * LIMIT

    def surely(self, trial: Trial, scale: float) -> bool:
        return trial.candidate.exact or scale * self.trials.drop(trial) < 0.4 * LIMIT

    def run(self) -> list[Trial]:
        ranked = sorted(self.trials.measured(), key=lambda t: self.trials.ratio(t).estimate)
        Escalation(self.trials, self.attempt, self.likely, self.surely, self.notes).escalate(ranked)
        return self.tried

    def attempt(self, candidates: Sequence[Single]) -> None:
        self.tried += [self.trials.run(candidate) for candidate in candidates]


def latencies_of(asked: Asked) -> Sequence[int]:
    """Return what the original takes; a quick model a hundredth of it, and a cascade asks again each fourth time."""
    if known := busy_on_purpose(asked):
        return known
    if "careful" in asked["engine"]:
        return (BASE_NS,) * 3 + (BASE_NS + SLOW.busy_ns,)
    return (BASE_NS,)


def beginning(search: Search) -> Search:
    """Return a search on the same trials, of which none but the first two is done."""
    own, trials = copy.copy(search), copy.copy(search.trials)
    trials.done = {
        key: trial
        for key, trial in trials.done.items()
        if trial.candidate == COARSE or trial.measurement is None
    }
    own.trials, own.notes, own.tried = trials, [], []
    return own


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """One that has run; don't change it."""
    folder = tmp_path_factory.mktemp("searched")
    x = np.random.default_rng(1).standard_normal((SAMPLES, 16), dtype=np.float32)
    samples = write_spool(ArrayDataset({"x": x}), folder / "search")
    with Desk(folder) as desk, nominal_times(latencies_of), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        search = Search(desk, folder, Agreement(), samples)
        try:
            search.run()
            yield search
        finally:
            search.trials.close()


@pytest.fixture
def search(searched: Search) -> Search:
    return beginning(searched)


def test_the_mistakes_of_a_quick_model_are_mended_by_asking_again(searched: Search) -> None:
    search = searched
    quick = search.trials.done[COARSE.key]
    assert not search.likely(quick, 1.0)
    tried = search.tried
    assert [type(trial.candidate.engine) for trial in tried] == [Cascade, Cascade]
    assert all(trial.failure is None for trial in tried)
    first, safer = tried
    assert search.likely(first, 1.0)
    assert search.trials.drop(safer) <= search.trials.drop(first) < search.trials.drop(quick)
    # It asks the original again for some requests, the safer one for more.
    engines = [trial.candidate.engine for trial in tried]
    thresholds = [engine.threshold for engine in engines if isinstance(engine, Cascade)]
    assert 0 < thresholds[0] < thresholds[1] < np.inf


def test_its_cost_is_the_mean_with_what_is_asked_again(searched: Search) -> None:
    search = searched
    first = search.tried[0]
    engine = first.candidate.engine
    assert isinstance(engine, Cascade)
    assert first.measurement is not None
    assert first.baseline is not None
    # Most requests are quick: the median wouldn't show what the others cost.
    requests: tuple[int, ...] = (1_000, 1_000, 1_000, 7_000)
    rounds = dict.fromkeys(first.measurement.rounds, requests)
    theirs = dict.fromkeys(first.baseline.rounds, (5_000,) * len(requests))
    known = dataclasses.replace(
        first,
        measurement=dataclasses.replace(first.measurement, rounds=rounds),
        baseline=dataclasses.replace(first.baseline, rounds=theirs),
    )
    assert search.trials.ratio(known).estimate == pytest.approx(2_500 / 5_000)


def test_a_threshold_is_as_low_as_it_may_be(searched: Search, search: Search) -> None:
    engine = searched.tried[0].candidate.engine
    assert isinstance(engine, Cascade)
    lower = dataclasses.replace(engine, threshold=engine.threshold * 0.8)
    trial = search.trials.run(Single(COARSE.passes, lower))
    assert not search.likely(trial, 1.0)


def test_a_metric_that_no_margin_says_anything_about_gets_no_cascade(search: Search) -> None:
    search.trials.promise = Promise(Embedding(), max_drop=0.999)
    assert search.run() == []


def test_what_is_accurate_enough_alone_gets_no_cascade(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("likely", "surely"):
        monkeypatch.setattr(search, name, lambda trial, scale: True)
    assert search.run() == []


def test_what_is_accurate_enough_by_a_hair_is_backed_by_a_safer_cascade(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "likely", lambda trial, scale: True)
    (safer,) = search.run()
    assert search.surely(safer, 1.0)
    assert not search.surely(search.trials.done[COARSE.key], 1.0)


def test_a_small_model_is_backed_by_the_original_beside_a_quantized_one(search: Search) -> None:
    beside = Single((SmallModel(Path("little.onnx"), (), "0"),), FAST)
    coarse = search.trials.done[COARSE.key]
    search.trials.done[beside.key] = dataclasses.replace(coarse, candidate=beside)
    proposed: list[Single] = []
    ranked = [t for t in search.trials.measured() if t.candidate.passes]
    Escalation(search.trials, proposed.extend, search.likely, search.surely, search.notes).escalate(
        ranked
    )
    assert {candidate.passes for candidate in proposed} == {COARSE.passes, beside.passes}


def test_a_small_model_whose_scores_are_of_another_kind_gets_no_cascade(
    search: Search, tmp_path: Path
) -> None:
    """Some rows of the answers would be probabilities, and others logits."""
    original = search.trials.bench.model
    proto = read_onnx(original)
    (scores,) = proto.graph.output
    proto.graph.node.append(onnx.helper.make_node("Softmax", [scores.name], ["shares"], axis=1))
    scores.name = "shares"
    onnx.save(proto, tmp_path / "shares.onnx")
    little = SmallModel.of(load(tmp_path / "shares.onnx"), original, "little")
    made = search.trials.run(Single((little,), FAST))
    coarse = search.trials.done[COARSE.key]
    beside = dataclasses.replace(coarse, candidate=made.candidate, artifact=made.artifact)
    search.trials.done[made.candidate.key] = beside  # it isn't accurate enough alone
    proposed: list[Single] = []
    Escalation(search.trials, proposed.extend, search.likely, search.surely, search.notes).escalate(
        [beside, beside, coarse]
    )
    assert {candidate.passes for candidate in proposed} == {COARSE.passes}
    assert search.notes == [
        "no cascade was tried: small model little gives probabilities and the original logits, so some answers "
        "would be of one kind and some of the other: give a small model that gives logits"
    ]


def test_logits_of_a_first_sample_that_lie_in_0_and_1_are_logits(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes one sample at a time answers them alone."""
    little = SmallModel.of(search.trials.bench.model, search.trials.bench.model, "little")
    made = search.trials.run(Single((little,), FAST))
    real = beside

    def one_first(*given: Any) -> Iterator[Any]:
        batches = list(real(*given))
        outputs, own, labels = batches[0]
        low = {name: np.full_like(array[:1], 0.5) for name, array in outputs.items()}
        yield low, {name: array[:1] for name, array in own.items()}, labels
        yield from batches

    monkeypatch.setattr(escalation, "beside", one_first)
    coarse = search.trials.done[COARSE.key]
    trial = dataclasses.replace(coarse, candidate=made.candidate, artifact=made.artifact)
    _, close, _ = Escalation(
        search.trials, lambda _: None, search.likely, search.surely, search.notes
    )._margins(trial, 1)
    assert len(close) > 1


def test_kinds_of_scores_are_told_apart_by_their_values() -> None:
    from hasten.optimization.measured.escalation import _check_kind, _kind

    logits = 3 * np.random.default_rng(0).standard_normal((50, 10))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rounded = np.round(shares * 60) / 60  # as int8 does, so that sums are far from 1
    with np.errstate(divide="ignore"):
        kinds = [_kind(each) for each in (logits, shares, rounded, np.log(shares), np.log(rounded))]
    named = "logarithms of probabilities"
    assert kinds == ["logits", "probabilities", "probabilities", named, named]
    assert _kind(1 / (1 + np.exp(-logits))) == "probabilities"
    _check_kind("little", np.log(shares), logits)


def test_a_model_that_chooses_the_class_itself_gets_no_cascade(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((SAMPLES, 16), dtype=np.float32)
    samples = write_spool(ArrayDataset({"x": x}), tmp_path / "search")
    with Desk(tmp_path) as desk, nominal_times(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        proto = read_onnx(desk.model)
        (scores,) = proto.graph.output
        proto.graph.node.append(
            onnx.helper.make_node("ArgMax", [scores.name], ["class"], axis=1, keepdims=0)
        )
        proto.graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info("class", onnx.TensorProto.INT64, [1])
        )
        onnx.save(proto, tmp_path / "deciding.onnx")
        desk.model = load(tmp_path / "deciding.onnx").settled_by({"x": x[0]})
        search = Search(desk, tmp_path, Agreement(), samples)
        try:
            assert search.run() == []
            assert search.notes == ["no cascade was tried: the model gives no class scores"]
        finally:
            search.trials.close()


def test_samples_without_a_label_have_a_part_in_the_threshold(tmp_path: Path) -> None:
    """They count as lost where the answer changes, as everywhere in a run; -1 is no class."""
    x = np.random.default_rng(1).standard_normal((SAMPLES, 16), dtype=np.float32)
    labels = np.where(np.arange(SAMPLES) % 6, -1, 0)
    samples = write_spool(ArrayDataset({"x": x}, labels), tmp_path / "search")
    with Desk(tmp_path) as desk, nominal_times(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        search = Search(desk, tmp_path, Top1(), samples)
        try:
            tried = search.run()
            assert [type(trial.candidate.engine) for trial in tried] == [Cascade, Cascade]
            assert search.trials.drop(tried[0]) < search.trials.drop(search.trials.done[COARSE.key])
        finally:
            search.trials.close()


def test_no_cascade_merges_answers_whose_rows_belong_to_nobody_knows_which_sample(
    search: Search,
) -> None:
    search.trials.bench = dataclasses.replace(search.trials.bench, varying=("boxes",))
    assert search.run() == []
    assert search.notes == [
        "no cascade was tried: nothing says which sample of a batch each row belongs to in the output 'boxes', whose size "
        "depends on the sample's values"
    ]
