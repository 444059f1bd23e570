"""Silence of libraries, in one thread and in several at once."""

from __future__ import annotations

import logging
import sys
import threading
import warnings

import pytest

from hasten.core.silence import silenced


def state() -> tuple[object, ...]:
    """Return everything that silence changes."""
    root = logging.getLogger()
    return (sys.stdout, sys.stderr, root.manager.disable, root.handlers[:], warnings.filters[:])


def test_blocks_that_overlap_in_threads_restore_what_was_there_before_the_first() -> None:
    before, one_began, other_began, one_ended = state(), *(threading.Event() for _ in range(3))

    def one() -> None:
        with silenced():
            one_began.set()
            assert other_began.wait(60)
        one_ended.set()

    thread = threading.Thread(target=one)
    thread.start()
    assert one_began.wait(60)
    with silenced():
        other_began.set()
        assert one_ended.wait(60)
        assert state() != before  # the other thread ended first, and this one is still silent
        assert logging.root.manager.disable == logging.CRITICAL
    thread.join()
    assert state() == before


def test_nested_blocks_and_errors_restore_everything(capsys: pytest.CaptureFixture[str]) -> None:
    before = state()

    def fail() -> None:
        with silenced(), silenced():
            sys.stdout.write("unheard\n")
            raise ValueError("as told")

    with pytest.raises(ValueError, match="as told"):
        fail()
    assert state() == before
    sys.stdout.write("heard\n")
    assert capsys.readouterr().out == "heard\n"
