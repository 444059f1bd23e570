"""A host that is too busy for all of its threads: what ships is compared with the default engine on them all."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.measure.candidate import Single
from hasten.measure.race import Standings
from hasten.optimization.judge import Ladder
from hasten.optimization.measured import racing
from hasten.optimization.measured.choice import Choice
from hasten.optimization.measured.ending import Finish
from hasten.reporting.summary import summary
from hasten.testing import models

pytestmark = pytest.mark.seconds


def test_the_first_comparison_is_with_the_default_engine_on_its_own_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quick_runs():
        # A probe on a busy host may find that two threads get twice as much of one processor.
        monkeypatch.setattr(racing, "usable_threads", lambda threads: 1)
        monkeypatch.setattr(racing, "probe_of", lambda target: lambda threads: threads == 1)
        two = dataclasses.replace(Target.host(), threads=2)
        monkeypatch.setattr(Target, "host", lambda: two)
        result = hasten.optimize(
            models.linear_classifier(tmp_path),
            np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32),
            out=tmp_path / "b.hasten",
            engines=("tests.support.rivals:Rival",),
            max_drop=0.05,
        )
    assert (result.status, result.threads, result.default_threads) == ("certified", 1, 2)
    assert result.on_all is not None
    assert result.on_all.high < 1
    assert result.shipped_threads == read(result.bundle).target.threads
    first, *others = summary(result)[1:]
    assert " on the 2 threads that it uses by default; the bundle runs on " in first
    assert any(line.startswith("In the table: with 1 thread each, ") for line in others)
    (fewer,) = (line for line in others if line.startswith("Note: ") and "one thread" in line)
    assert fewer.startswith("Note: latencies are for one thread, not 2: ")
    assert not any(line.startswith("Note: on this busy host") for line in others)


def test_the_comparison_on_all_threads_is_of_the_model_with_smaller_pictures_or_without() -> None:
    """The model was raced on all threads before it was tried with smaller pictures, as the ladder's last rung."""
    original, other, fast = (Single((), OnnxRuntime(threads=count)) for count in (0, 1, 2))
    smaller = dataclasses.replace(fast, least=36)
    rounds: dict[str, dict[int, tuple[int, ...]]] = {
        who: dict.fromkeys(range(8), (ns,) * 8)
        for who, ns in {"one": 500, "baseline": 1000}.items()
    }
    raced = Standings("threads", 2, rounds)
    known = {each.key: each for each in (original, other, fast, smaller)}
    racing: Any = SimpleNamespace(
        bench=SimpleNamespace(target=SimpleNamespace(threads=1)),
        trials=SimpleNamespace(baseline=original),
        asked_threads=2,
        as_it_was=None,
        candidate=known.__getitem__,
        threads_raced=lambda: raced,
    )
    ladder = Ladder(original.key, (other.key, fast.key, smaller.key))
    finish = Finish(racing, ladder, (), lambda _: None)
    on_one: Any = SimpleNamespace(threads=1)
    for ships, estimate in ((fast, 0.5), (smaller, 0.5), (other, None)):
        ratio = finish._on_all(on_one, Choice(ships.key, original.key, "certified", ""))
        assert (ratio and ratio.estimate) == (estimate and pytest.approx(estimate))
