"""Checks that end in every way that a check can, for the runner of checks."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

from hasten.errors import CandidateError
from hasten.evaluation.deep.finding import Check, Failing, Found, NotDone, Place


def holding(place: Place) -> Found:
    return Found(f"on {place}", ("first detail", "second detail"))


def failing(place: Place) -> Found:
    raise CandidateError("bytes come back changed")


def failing_in_detail(place: Place) -> Found:
    raise Failing("5% apart", ("after 3 s",))


def not_done(place: Place) -> Found:
    raise NotDone("no GPU here")


def surprising(place: Place) -> Found:
    raise ZeroDivisionError("a bug\nof many lines")


def crashing(place: Place) -> Found:
    signal.raise_signal(signal.SIGSEGV)
    raise AssertionError("it went on")


def hanging(place: Place) -> Found:
    threading.Event().wait()
    raise AssertionError("it went on")


def ending(place: Place) -> Found:
    sys.stderr.write("the runtime gave up\n")
    sys.stderr.flush()
    os._exit(7)


def checks() -> Iterator[tuple[str, Check]]:
    yield "first", Check(holding, 120)
    yield "failing", Check(failing, 120)
    yield "detailed", Check(failing_in_detail, 120)
    yield "not done", Check(not_done, 120)
    yield "surprising", Check(surprising, 120)
    yield "crashing", Check(crashing, 120)
    yield "hanging", Check(hanging, 0.1)
    yield "ending", Check(ending, 120)
    yield "last", Check(holding, 120)


def without_a_device() -> Iterator[tuple[str, Check]]:
    yield "device", Check(not_done, 120)
    yield "other", Check(holding, 120)
