"""Settings of the whole process that blocks in several threads share."""

import os
import threading

import pytest

from hasten.core.telemetry import OFF, telemetry_off


def test_telemetry_is_as_it_was_once_blocks_that_overlap_in_threads_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", "own")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    one_began, other_began, one_ended = (threading.Event() for _ in range(3))

    def one() -> None:
        with telemetry_off():
            one_began.set()
            assert other_began.wait(60)
        one_ended.set()

    thread = threading.Thread(target=one)
    thread.start()
    assert one_began.wait(60)
    with telemetry_off():
        other_began.set()
        assert one_ended.wait(60)
        assert {name: os.environ.get(name) for name in OFF} == OFF  # the other thread ended first
    thread.join()
    assert os.environ["CI"] == "own"
    assert "ORT_DISABLE_TELEMETRY" not in os.environ
