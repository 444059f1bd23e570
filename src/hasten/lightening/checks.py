"""Checks of an order and of its data, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.certificate.certification import guarded
from hasten.certificate.ledger import Past, user_ledger
from hasten.certificate.promise import Promise
from hasten.core.progress import Listener, Progress
from hasten.core.records import type_name
from hasten.errors import InputError
from hasten.inputs.data.near_copies import check_near_copies
from hasten.inputs.data.parts import groups_on_one_side
from hasten.inputs.data.splits import split
from hasten.inputs.metrics.unlabelled import check_labelled
from hasten.inputs.set_metrics import chosen
from hasten.optimization.data_needed import warnings
from hasten.optimization.memory import known_past, look_after
from hasten.optimization.order import Order
from hasten.optimization.preparation import check_passes

if TYPE_CHECKING:
    from hasten.lightening.given import Given


def check_order(order: Order) -> None:
    """Check that an order is one that lighter networks can be trained for.

    Raises:
        InputError: it has no budget, or asks for something that training rules out.
    """
    if order.target != "host":
        raise InputError(
            f"lighten times networks on this host alone: leave out target={order.target!r}, or optimize the "
            "model for that device"
        )
    check_passes(order.passes)
    if order.ask_labels is not None:
        raise InputError(
            "lighten learns from labels: give them with the data, and leave out ask_labels="
        )
    if order.states:
        raise InputError(
            "lighten trains networks that answer each request by itself: leave out states=, or optimize "
            "the model"
        )
    if order.pad:
        raise InputError(
            "pad= is for samples that differ in shape, but lighter networks are trained on "
            "samples of one shape: leave it out"
        )
    budget_s(order)


def budget_s(order: Order) -> float:
    """Return the longest time that one request may take, in seconds.

    Raises:
        InputError: the order states none.
    """
    if order.budget_s is None:
        raise InputError(
            "lighten needs a budget, the longest time in seconds that one request may take on this "
            "machine: give budget_s=0.003 for 3 ms"
        )
    return order.budget_s


def check_judged(given: Given, order: Order, listen: Listener, *, resumed: bool) -> None:
    """Check before anything is trained that the data to judge on suits the order, and tell where it is too little.

    Args:
        given: Model, data and metric.
        order: Order of the comparison after the trainings.
        listen: Callback that is told where even a perfect candidate couldn't be certified on so little data, and where
            only one side has groups.
        resumed: Whether the trainings began before, and what earlier runs did was checked then.

    Raises:
        InputError: the data, or a part of the order, can't be used, or earlier runs searched on all of the data.
    """
    asked = 1 - order.confidence
    past = Past() if resumed else known_past(order.out, user_ledger())
    splits = split(
        given.judged,
        calibration=order.calibration,
        seed=order.seed,
        training=given.training,
        earlier=past.earlier(asked),
    )
    check_near_copies(given.training, given.judged, order.allow_near_copies)
    chosen(order.report, given.judged.labels, given.source.outputs, given.preparation)
    metric = guarded(given.metric.around(given.preparation), order.guard)
    for part in (splits.search, splits.sealed):
        check_labelled(metric, part.labels, type_name(metric))
    promise = Promise(metric, order.guard, order.max_drop, order.confidence, order.mean_over)
    tested = look_after(past, splits, asked=asked).promise(promise)
    one_side = groups_on_one_side(given.training, given.judged)
    for warning in (*one_side, *warnings(splits, promise, 0, tested)):
        listen(Progress("prepare", "splitting the data", 0, 1, news=warning))
