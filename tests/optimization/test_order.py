"""What is asked of a run, as one value: its fields are the keywords, and each is checked."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.errors import InputError
from hasten.measure.effort import EFFORTS, Effort
from hasten.optimization.order import Options, Order, order_of


def test_the_keywords_are_the_orders_fields() -> None:
    assert [*Options.__annotations__] == [field.name for field in dataclasses.fields(Order)]


def test_an_order_by_keywords_is_the_order_by_fields() -> None:
    order = order_of(max_drop=0.02, engines="openvino", passes=[], out="b", effort="quick")
    assert order == Order(
        max_drop=0.02,
        engines=("openvino",),
        passes=(),
        out=Path("b"),
        effort=EFFORTS["quick"],
    )
    assert order.changed(seed=3) == dataclasses.replace(order, seed=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guard": "gross"}, "the guard is net, lost or changed: got 'gross'"),
        ({"objective": "p95"}, "the objective is p50, p99 or mean: got 'p95'"),
        ({"effort": "hard"}, "the effort is quick, normal, thorough, or an Effort: got 'hard'"),
        ({"time_limit_s": 0.0}, "the time limit is in seconds, above 0: got 0.0"),
        ({"trial_limit_s": float("nan")}, "the trial limit is in seconds, above 0: got nan"),
        ({"budget_s": "3ms"}, "the budget is in seconds, above 0: got '3ms'"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        order_of(**options)
    assert str(error.value) == said


def test_an_option_that_there_is_none_of_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="budget_ms"):
        order_of(budget_ms=3)  # type: ignore[call-arg]


def test_an_effort_says_what_a_normal_run_does_besides() -> None:
    assert EFFORTS["normal"].omissions == EFFORTS["thorough"].omissions == ()
    assert Effort(depth="engines", ceilings=False, curve_s=0, load_s=0, starts=0).omissions == (
        "every pass",
        "further settings, mixtures of precisions and cascades",
        "profiles and the distance from the machine's limit",
        "the batch curve",
        "load scenarios",
        "cold starts",
    )
    assert EFFORTS["quick"].omissions[0].startswith("further settings")
    assert EFFORTS["quick"].omissions_for(ragged=True)[1] == "further buckets"
    assert EFFORTS["normal"].omissions_for(ragged=True) == ()


def test_the_values_are_hastens() -> None:
    assert (hasten.Order, hasten.Effort) == (Order, Effort)


def test_an_option_that_is_none_is_named_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(TypeError) as error:
        order_of(max_dorp=0.01)  # type: ignore[call-arg]
    assert str(error.value) == "there is no option max_dorp=: did you mean max_drop=?"
    with pytest.raises(TypeError) as error:
        order_of(zzz=1)  # type: ignore[call-arg]
    assert str(error.value).startswith("there is no option zzz=; there are accept_uncertified, ")


def test_a_bundle_in_the_current_folder_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert order_of(out=".").out == tmp_path / "inside"
    assert order_of(out="..").out == tmp_path
    assert order_of(out="model.hasten").out == Path("model.hasten")
