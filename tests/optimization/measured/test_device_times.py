from types import SimpleNamespace
from typing import Any

import pytest

from hasten.engines.null import Null
from hasten.errors import CandidateError
from hasten.measure.candidate import Single, Trial
from hasten.optimization.measured.racing import Racing


@pytest.mark.parametrize("kind", ["attached", "host"])
def test_a_devices_times_are_read_after_the_race_and_kept_with_the_trial(kind: Any) -> None:
    trial = Trial(Single((), Null()), properties={"graph": "captured"})
    kept: list[Trial] = []
    slept: list[str] = []

    def ask(worker: Any, do: str) -> dict[str, str]:
        assert do == "device_times"
        if worker.name == "broken":
            raise CandidateError("its process was killed")
        return {"stream_ns": "1500"} if worker.name == "fast" else {}

    racing: Any = SimpleNamespace(
        trials=SimpleNamespace(
            done={"fast": trial, "broken": trial, "other": trial}, keep=kept.append
        )
    )
    bench: Any = SimpleNamespace(target=SimpleNamespace(kind=kind), ask=ask)
    entrants: dict[str, Any] = {
        name: SimpleNamespace(name=name, sleep=lambda name=name: slept.append(name))
        for name in ("baseline", "fast", "broken", "other")
    }
    Racing._read_device(racing, bench, entrants)
    if kind == "host":
        assert (kept, slept) == ([], [])
        return
    assert [one.properties for one in kept] == [{"graph": "captured", "stream_ns": "1500"}]
    assert slept == ["baseline", "fast", "other"]
