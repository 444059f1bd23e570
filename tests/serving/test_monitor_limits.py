"""Limits that a bundle's answers are held to, for each kind of certificate."""

from __future__ import annotations

import asyncio
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.support import models
from tests.support.bundles import built, stated

from hasten.bundle import Part
from hasten.certificate.monitor import ALPHA, BOUND_ALPHA
from hasten.core.records import to_record
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.auroc import Auroc
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.iou import Iou
from hasten.inputs.metrics.top_k import Top1
from hasten.serving.models.shadow import Shadow
from hasten.serving.models.statistics import Statistics
from hasten.serving.monitoring.judging import Judging

PROMISE, BOUND = 0.02, 0.05
UNSTATED = (
    "the bundle's certificate is about a drop, and its record states no limit on changed answers: "
    "give --shadow-limit to have them watched"
)
CUSTOM = {"type": "custom", "path": "mine.py:score"}


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    folder = tmp_path_factory.mktemp("part")
    return built(folder, models.solid(folder), OnnxRuntime(threads=1))


def judging(
    part: Part,
    metric: Metric | dict[str, Any],
    judged: dict[str, Any],
    bound: object = BOUND,
    *,
    limit: float = 0.0,
    confidence: float = 1 - BOUND_ALPHA,
) -> Judging:
    judgement = {"guard": "net", "max_drop": PROMISE, "groups": None, "over": "samples", **judged}
    certificate: dict[str, Any] = {"judgement": judgement}
    if bound is not None:
        certificate["changed"] = {"share": 0.03, "bound": bound, "confidence": confidence}
    record = metric if isinstance(metric, dict) else to_record(metric)
    return Judging(stated(part, None, metric=record, certificate=certificate), limit)


def limits(found: Judging) -> dict[str, tuple[float, float]]:
    """Return each limit with the chance of a false alarm that it may have."""
    return {each.what: (each.null.limit, each.alpha) for each in found.limits}


GROUPS = {"groups": 600, "lost": None, "gained": None, "method": "betting"}
DROPS = [
    pytest.param(Top1(), {"lost": 3, "gained": 2}, id="counts"),
    pytest.param(Top1(), GROUPS, id="groups"),
    pytest.param(Brier(), {}, id="fractional scores"),
    pytest.param(Iou(), {}, id="parts of an answer"),
    pytest.param(Embedding(), {"guard": "lost"}, id="no labels"),
    pytest.param(Auroc(), {"groups": 90, "over": "groups"}, id="auroc"),
    pytest.param(CUSTOM, {}, id="custom"),
]


@pytest.mark.parametrize(("metric", "judged"), DROPS)
def test_a_promise_about_a_drop_allows_the_changes_that_the_sealed_data_show(
    part: Part, metric: Metric, judged: dict[str, Any]
) -> None:
    found = judging(part, metric, judged)
    assert limits(found)["changed"][0] == BOUND
    assert found.why == ""
    # What the bound may be wrong by, and what each limit may, sum up to the promised 5%.
    assert sum(alpha for _, alpha in limits(found).values()) + BOUND_ALPHA == pytest.approx(ALPHA)
    assert found.meaning("changed", BOUND) == "this traffic isn't the traffic that was certified"


@pytest.mark.parametrize(("metric", "judged"), DROPS)
@pytest.mark.parametrize(
    "record",
    [None, 1.0, 0.0, -0.1, float("nan"), "0.05", True],
)
def test_a_record_that_states_no_share_gives_no_limit_and_one_line(
    part: Part, metric: Metric, judged: dict[str, Any], record: object
) -> None:
    found = judging(part, metric, judged, record)
    assert found.answers is None
    assert found.why == UNSTATED
    assert sum(alpha for _, alpha in limits(found).values()) in (0, ALPHA)
    given = judging(part, metric, judged, record, limit=0.3)
    assert limits(given)["changed"][0] == 0.3
    assert sum(alpha for _, alpha in limits(given).values()) == ALPHA


def test_a_bound_that_is_less_sure_than_the_monitor_counts_on_gives_none(part: Part) -> None:
    assert judging(part, Top1(), {}, confidence=0.95).answers is None


def test_the_promise_is_the_least_limit_where_only_a_changed_answer_loses(part: Part) -> None:
    found = limits(judging(part, Top1(), {}, 0.001))
    assert found == {"changed": (PROMISE, ALPHA / 2), "net": (PROMISE, ALPHA / 2)}
    # A score of one's own may fall although no decision changes: the promise says nothing of changes.
    assert limits(judging(part, CUSTOM, {}, 0.001)) == {"changed": (0.001, ALPHA - BOUND_ALPHA)}


@pytest.mark.parametrize("judged", [{"guard": "changed"}, {"guard": "net"}])
def test_a_promise_about_changes_is_their_limit_whatever_the_sealed_data_showed(
    part: Part, judged: dict[str, Any]
) -> None:
    for bound in (None, 0.001, BOUND):
        found = judging(part, Agreement(), judged, bound)
        assert limits(found) == {"changed": (PROMISE, ALPHA)}
        assert found.meaning("changed", PROMISE) == "the certificate doesn't hold for this traffic"


@pytest.mark.parametrize("over", ["groups", None])
def test_a_mean_over_groups_promises_nothing_of_single_answers(
    part: Part, over: str | None
) -> None:
    """One group of many may be as large as all others together, and no server knows the groups."""
    judged = {**GROUPS, "over": over}
    found = judging(part, Top1(), judged)
    assert limits(found) == {"changed": (BOUND, ALPHA - BOUND_ALPHA)}
    changes = judging(part, Agreement(), {**judged, "guard": "changed"})
    assert limits(changes) == {"changed": (BOUND, ALPHA - BOUND_ALPHA)}
    assert judging(part, Top1(), judged, None).limits == ()


def test_a_metric_that_a_server_lacks_counts_otherwise_than_the_record(part: Part) -> None:
    found = judging(part, {"type": "somebodys"}, {})
    assert (found.answers, found.why) == (None, UNSTATED)


def test_an_answer_without_a_batch_axis_is_one_sample_as_in_the_certificate(part: Part) -> None:
    """Here a fifth of the rows differ by more than 5% of their largest number, but not of the answer's."""
    exact = np.ones((5, 4), np.float32)
    exact[0] *= 100
    other = exact.copy()
    other[4] = 1.2
    assert judging(part, CUSTOM, {}).changed({"y": other}, {"y": exact}) == 0
    other[0] = 120
    assert judging(part, CUSTOM, {}).changed({"y": other}, {"y": exact}) == 1


def test_an_answer_that_is_too_large_to_wait_is_not_copied() -> None:
    skipped: list[bytes] = []
    watch: Any = SimpleNamespace(skip=skipped.append, labels=None)
    loop = asyncio.new_event_loop()
    shadow = Shadow(lambda inputs, _: inputs, loop, Statistics(), lambda: False, watch)
    large = {"x": np.zeros((2, 65 << 20), np.uint8)}
    for rows in (0, 2):
        tracemalloc.start()
        shadow.look(large, large, "", rows, 0)
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most_bytes < 1 << 20
    assert skipped == [b"", b""]
    shadow.close()
    loop.close()
