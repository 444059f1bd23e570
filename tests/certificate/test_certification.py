import numpy as np
import pytest

from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import (
    guarded,
    judge_ladder,
    last_certified,
    prior_of,
)
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.evaluation.agreement import comparing
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.labels_by_output import joined
from hasten.inputs.metrics import named_metric, parse_metric
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.combined import for_labels
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.metrics.unlabelled import scored_where_known

N = 1000


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
