from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty

from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import (
    guarded,
    judge_ladder,
    last_certified,
    prior_of,
    sealed_scores,
)
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.evaluation.agreement import comparing
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.labels_by_output import joined
from hasten.inputs.metrics import named_metric, parse_metric
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.combined import for_labels
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.metrics.unlabelled import scored_where_known

N = 1000
ENGINE = OnnxRuntime(threads=1)


class Counting(Dataset):
    """Another data set that counts how often each sample's inputs are read."""

    def __init__(self, inner: Dataset) -> None:
        self.inner = inner
        self.names, self.labels, self.groups = inner.names, inner.labels, inner.groups
        self.read: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.inner)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        self.read.update(int(i) for i in indices)
        return self.inner.inputs(indices)

    def content_hash(self, index: int) -> bytes:
        return self.inner.content_hash(index)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def sealed() -> Counting:
    x = np.random.default_rng(0).standard_normal((130, 16), dtype=np.float32)
    return Counting(ArrayDataset({"x": x}, np.arange(130) % 4))


def test_sealed_data_is_read_once_however_many_are_judged(desk: Desk, sealed: Counting) -> None:
    rungs = {name: desk.open(ENGINE) for name in ("one", "two")}
    heard: list[int] = []
    own, scores = sealed_scores(
        desk.bench, desk.open(ENGINE), rungs, sealed, Agreement(), heard.append
    )
    assert sealed.read == dict.fromkeys(range(130), 1)
    assert heard == [64, 128, 130]
    np.testing.assert_array_equal(own, np.ones(130))
    for score in scores.values():
        np.testing.assert_array_equal(score, np.ones(130))
    assert not (desk.bench.folder / "sealed-chunk").exists()


def test_scores_are_those_of_each_sample_in_order(desk: Desk, sealed: Counting) -> None:
    exact = desk.open(ENGINE)
    own, scores = sealed_scores(
        desk.bench, exact, {"wrong": desk.open(Faulty(ENGINE, "wrong"))}, sealed, Top1()
    )
    with ENGINE.open(exact.artifact, desk.bench.target) as session:
        answers = [
            int(session.run({"x": sealed.inner.inputs([i])["x"]})["logits"].argmax())
            for i in range(130)
        ]
    assert sealed.labels is not None
    np.testing.assert_array_equal(own, np.array(answers) == sealed.labels)
    assert not isinstance(scores["wrong"], str)
    assert float(np.mean(scores["wrong"])) < 0.5


def test_a_rung_that_takes_samples_of_its_own_answers_these_and_is_compared_on_all(
    desk: Desk, sealed: Counting
) -> None:
    """Alone and in batches it reads them once; what can't be read so is its failure alone."""

    class Unreadable(Counting):
        def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
            if 70 in indices:
                raise InputError("sample 70 can't be read")
            return super().inputs(indices)

    other = {"x": -sealed.inner.inputs(range(130))["x"]}
    apart, unreadable = Counting(ArrayDataset(other)), Unreadable(sealed.inner)
    rungs = {name: desk.open(ENGINE) for name in ("same", "own", "own, again", "unreadable")}
    _, scores = sealed_scores(
        desk.bench,
        exact := desk.open(ENGINE),
        rungs,
        sealed,
        Agreement(),
        apart={"own": apart, "own, again": apart, "unreadable": unreadable},
    )
    assert sealed.read == apart.read == dict.fromkeys(range(130), 1)
    assert scores["unreadable"] == "sample 70 can't be read"
    np.testing.assert_array_equal(scores["same"], np.ones(130))
    with ENGINE.open(exact.artifact, desk.bench.target) as session:
        theirs, ours = (
            [int(session.run({"x": row[None]})["logits"].argmax()) for row in inputs["x"]]
            for inputs in (other, sealed.inner.inputs(range(130)))
        )
    for name in ("own", "own, again"):
        np.testing.assert_array_equal(scores[name], np.equal(theirs, ours))


@pytest.mark.parametrize("on_run", [1, 100])
def test_a_rung_that_dies_fails_alone(desk: Desk, sealed: Counting, on_run: int) -> None:
    rungs = {"bad": desk.open(Faulty(ENGINE, "kill", on_run=on_run)), "good": desk.open(ENGINE)}
    own, scores = sealed_scores(desk.bench, desk.open(ENGINE), rungs, sealed, Agreement())
    assert scores["bad"] == "its process was killed by SIGKILL during 'predict'"
    assert len(own) == len(scores["good"]) == 130
    assert sealed.read == dict.fromkeys(range(130), 1)


SCORE = """import numpy as np
def score(outputs, labels, exact):
    same = np.array_equal(outputs["logits"], exact["logits"])
    return np.full(len(labels), {own} if same else {other})
"""


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("np.nan", "{metric} returned nan for sample 0 of 64; a score lies in [0, 1]"),
        (
            "[0.0][1]",
            "{metric} failed: IndexError at line 4 of mine.py: list index out of range",
        ),
    ],
)
def test_a_rung_whose_answers_get_no_score_fails_alone(
    desk: Desk, sealed: Counting, tmp_path: Path, other: str, why: str
) -> None:
    (tmp_path / "mine.py").write_text(SCORE.format(own=1.0, other=other))
    rungs = {"bad": desk.open(Faulty(ENGINE, "wrong")), "good": desk.open(ENGINE)}
    metric = Custom(f"{tmp_path}/mine.py:score")
    own, scores = sealed_scores(desk.bench, desk.open(ENGINE), rungs, sealed, metric)
    said = why.format(metric=metric.path)
    told, _, came = str(scores["bad"]).partition("; it was given the outputs ")
    assert told == f"its answers can't be scored: {said}"
    assert came.startswith("logits float32 [64, 4] (")
    assert len(own) == len(scores["good"]) == 130
    assert sealed.read == dict.fromkeys(range(130), 1)


def test_an_original_whose_answers_get_no_score_is_the_callers_to_know(
    desk: Desk, sealed: Counting, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(SCORE.format(own=2.0, other=1.0))
    rungs = {"other": desk.open(Faulty(ENGINE, "wrong"))}
    metric = Custom(f"{tmp_path}/mine.py:score")
    with pytest.raises(InputError) as error:
        sealed_scores(desk.bench, desk.open(ENGINE), rungs, sealed, metric)
    assert str(error.value).startswith(
        f"{tmp_path}/mine.py:score returned 2 for sample 0 of 64; a score lies in [0, 1]; it was given "
        "the outputs logits float32 [64, 4] ("
    )


def test_an_answer_that_is_not_finite_is_named_by_the_samples_own_number(
    desk: Desk, sealed: Counting
) -> None:
    class Overflowing(Counting):
        def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
            inputs = super().inputs(indices)
            inputs["x"][np.array(indices) == 70] = 3e38  # finite, but no product of it is
            return inputs

    with pytest.raises(InputError) as error:
        sealed_scores(desk.bench, desk.open(ENGINE), {}, Overflowing(sealed.inner), Embedding())
    assert str(error.value).startswith(
        "the original model's output 'logits' has Inf for sample 70, which this metric can't read: "
    )
    assert not (desk.bench.folder / "sealed-chunk").exists()


def test_an_original_that_fails_is_the_callers_to_know(desk: Desk, sealed: Counting) -> None:
    exact = desk.open(Faulty(ENGINE, "kill", on_run=3))
    with pytest.raises(InputError) as error:
        sealed_scores(desk.bench, exact, {}, sealed, Agreement())
    assert str(error.value) == (
        "the original model can't answer the data: its process was killed by SIGKILL during "
        "'predict'"
    )


def scores_with(lost: int) -> Array:
    scores = np.ones(N)
    scores[:lost] = 0
    return scores


def judged(*rungs: int | str, units: Array | None = None) -> list[tuple[str, Judgement | str]]:
    """Judge rungs, each given by how many it loses, or why it failed."""
    names = [str(i) for i in range(len(rungs))]
    scores = {
        name: rung if isinstance(rung, str) else scores_with(rung)
        for name, rung in zip(names, rungs, strict=True)
    }
    units = np.arange(N) if units is None else units
    return judge_ladder(
        np.ones(N),
        names,
        scores,
        units,
        {name: BettingPrior() for name in names},
        Promise(Top1(), max_drop=0.01),
    )


def verdicts(*rungs: int | str) -> list[str]:
    return [e if isinstance(e, str) else e.verdict.value for _, e in judged(*rungs)]


def test_a_ladder_is_tested_up_to_its_first_failure() -> None:
    assert verdicts(0, 0, 50, 0) == ["certified", "certified", "not accurate enough"]
    assert verdicts(9, 0) == ["not enough data"]
    assert verdicts(0, "it crashed", 0) == ["certified", "it crashed"]
    assert verdicts() == []


def test_the_last_rung_that_passed_ships() -> None:
    passed = last_certified(judged(0, 1, 50, 0))
    assert passed is not None
    assert passed[0] == "1"
    assert passed[1].verdict is Verdict.CERTIFIED
    assert last_certified(judged(50, 0)) is None
    assert last_certified(judged("it crashed", 0)) is None
    assert last_certified([]) is None


def test_samples_drawn_together_are_one_draw() -> None:
    (_, alone), (_, together) = judged(0)[0], judged(0, units=np.arange(N) // 10)[0]
    assert isinstance(alone, Judgement)
    assert isinstance(together, Judgement)
    assert (alone.n, alone.groups) == (N, None)
    assert (together.n, together.groups) == (N // 10, N // 10)
    assert together.verdict is Verdict.NOT_ENOUGH_DATA


def test_changed_asks_for_agreement_whatever_the_metric() -> None:
    assert guarded(Top1(), "changed") == Agreement()
    assert guarded(Top1(), "net") == guarded(Top1(), "lost") == Top1()
    assert guarded(Regression(1.0), "changed") == Agreement()


def test_changed_watches_every_output_that_several_metrics_read() -> None:
    own = {"a": np.eye(3), "b": np.eye(3)}
    turned = {"a": np.eye(3), "b": np.eye(3)[[1, 1, 2]]}
    for asked in (["top1@a", "top5@b"], "top1@all"):
        metric = guarded(named_metric(asked), "changed")
        assert metric.score(turned, own, np.zeros(3, int)).tolist() == [0, 1, 1], asked
        assert metric.score(turned, own, None).tolist() == [0, 1, 1], asked
    assert guarded(named_metric(["top1@a", "top5@a"]), "changed") == Agreement("a")
    labels = joined({"a": np.zeros(3, int)})
    alone = guarded(for_labels(Top1("a"), labels), "changed")
    assert scored_where_known(alone, own, own, labels).tolist() == [1, 1, 1]


@pytest.mark.parametrize("asked", [["top1@a", "regression:1@b"], "regression:1@all"])
def test_changed_refuses_several_metrics_of_which_one_reads_no_classes(
    asked: str | list[str],
) -> None:
    with pytest.raises(InputError) as error:
        guarded(named_metric(asked), "changed")
    assert str(error.value) == (
        "the guard 'changed' counts the answers whose class changes, and regression reads no "
        "classes: choose another guard, or only metrics of classes, such as agreement@OUTPUT"
    )


def test_without_labels_each_of_several_metrics_of_classes_compares_its_output() -> None:
    data = ArrayDataset({"x": np.zeros((3, 1))}, None)
    both = named_metric(["top1@a", "regression:1@b"])
    assert comparing(both, data) == named_metric(["agreement@a", "regression:1@b"])
    assert comparing(parse_metric("top1@all"), data) == parse_metric("agreement@all")
    assert comparing(Top1("a"), data) == Agreement("a")


def test_bets_are_set_by_groups_where_there_are_any() -> None:
    differences = np.array([1.0, 0.0, 0.0, 0.0])
    assert prior_of(differences, np.array([0, 0, 1, 1])) == BettingPrior(0.25, 0.0625, 2)
    assert prior_of(differences[:2], np.arange(4)).n == 2
