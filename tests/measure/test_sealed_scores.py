from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty

from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.accuracy import sealed_scores

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
