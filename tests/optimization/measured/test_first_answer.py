"""What a search tells first: the fastest exact candidate, before any inexact one is made."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.support.desk import Desk
from tests.support.jobs import job_in

from hasten.certificate.promise import Promise
from hasten.core.progress import Progress
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.data.spool import Spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.measure.candidate import Candidate, Measurement, Single, Trial
from hasten.measure.deadline import Deadline
from hasten.measure.effort import EFFORTS
from hasten.measure.latency import Pace
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.exploration import Exploration
from hasten.optimization.measured.screening import Screening
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.simplify import Simplify

BASELINE = Single((), OnnxRuntime())
EXACT, SLOWER = Single((), OpenVino()), Single((), LiteRt())
INT8 = Single((NncfQuantization("performance"),), OpenVino())


def trial(candidate: Candidate, *ratios: float) -> Trial:
    """A trial with a latency over the baseline's in each round; the int8 one loses a twentieth."""

    def taking(times: Iterable[float]) -> Measurement:
        return Measurement("measured", 2, {n: (int(1e6 * one),) * 9 for n, one in enumerate(times)})

    scores = (1.0,) * 20 if candidate.exact else (0.0,) + (1.0,) * 19
    return Trial(
        candidate,
        measurement=taking(ratios),
        baseline=taking([1.0] * len(ratios)),
        scores=scores,
        changed=0 if candidate.exact else None,
    )


def told(
    desk: Desk,
    spool: Spool,
    folder: Path,
    *trials: Trial,
    late_after: int | None = None,
    limit_s: float | None = None,
) -> list[Progress | str]:
    """What a search with these trials tells and makes, in order.

    Args:
        late_after: Number of trials after which the time is up; None for no limit.
        limit_s: Time limit of the run, in seconds, of which nothing was spent yet; None for none.
    """
    bench = Workbench(
        folder,
        desk.bench.target.with_threads(2),
        model=desk.model,
        calibration=spool,
        calibration_hash="0",
    )
    job = dataclasses.replace(job_in(folder), order=job_in(folder, effort="quick").order)
    job.deadline = Deadline(limit_s)
    found: list[Progress | str] = []
    job.listen = found.append
    screening = Screening(
        bench, job.journal, spool, Promise(Agreement(), "changed", 0.03), pace=Pace(), seed=0
    )
    screening.exact_scores = np.ones(20)
    screening.baseline = BASELINE
    by_key = {one.candidate.key: one for one in trials}

    def run(candidate: Candidate, beat: float = 1.0) -> Trial:
        return screening.done.setdefault(candidate.key, by_key[candidate.key])

    def transform(self: Exploration, candidates: Iterable[Candidate]) -> None:
        found.extend(f"made {one.label}" for one in candidates if one.passes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "run", run)
        patch.setattr(Exploration, "_transform", transform)
        if late_after is not None:
            patch.setattr(Exploration, "_late", lambda self: len(screening.done) >= late_after)
        Exploration(
            screening,
            job,
            units=np.arange(20),
            sealed_draws=2000,
            on_better=lambda trial: None,
            least=lambda precision: None,
        ).explore([one.candidate for one in trials])
    return found


def news(found: list[Progress | str]) -> str:
    (line,) = [one.news for one in found if isinstance(one, Progress) and one.news]
    head, _, answer = line.partition(" s: ")
    assert head.startswith("first answer after ")
    return answer


def test_the_fastest_exact_form_is_told_once_before_anything_inexact_is_made(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    assert EFFORTS["quick"].depth == "first"
    slower, exact = trial(SLOWER, *[0.8] * 6), trial(EXACT, *[0.5, 0.52] * 3)
    found = told(desk, spool, tmp_path, slower, trial(INT8, *[0.2] * 6), exact)
    assert news(found).startswith("original, OpenVINO is exact and 1.9")
    assert news(found).endswith(" than the default engine (original, ONNX Runtime)")
    said = [one if isinstance(one, str) else one.news or one.stage for one in found]
    assert said[:3] == ["exact", "exact", said[2]]
    assert said[2].startswith("first answer")
    assert said[3:] == ["try", f"made {INT8.label}", "try", "try"]
    tried = [one.tried for one in found if isinstance(one, Progress) and one.tried]
    assert [(one.label, one.verdict) for one in tried] == [
        (SLOWER.label, "exact"),
        (EXACT.label, "exact"),
        (INT8.label, "wrong"),
    ]


def test_with_a_time_limit_inexact_forms_come_before_exact_ones_that_must_be_made(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    simplified = trial(Single((Simplify(),), OpenVino()), *[0.4, 0.42] * 3)
    given = (trial(EXACT, *[0.5] * 6), simplified, trial(INT8, *[0.2] * 6))
    found = told(desk, spool, tmp_path, *given, limit_s=1000.0)
    tried = [one.tried.label for one in found if isinstance(one, Progress) and one.tried]
    assert tried == [EXACT.label, INT8.label, simplified.candidate.label]
    assert news(found).startswith("simplified, OpenVINO is exact and 2.4")
    stages = [one.stage for one in found if isinstance(one, Progress)]
    assert stages == sorted(stages), "the search goes back to exact forms"
    late = told(desk, spool, tmp_path / "late", *given, limit_s=1000.0, late_after=2)
    assert news(late).endswith("; the time limit left other exact forms untried")


def test_a_form_that_isnt_surely_faster_is_said_not_to_be(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    found = told(desk, spool, tmp_path, trial(EXACT, 0.5, 1.5, 0.6, 1.4, 0.7, 1.2))
    assert news(found).startswith("original, OpenVINO is exact and ")
    assert news(found).endswith(", so it isn't surely faster")


def test_where_no_exact_form_is_faster_the_default_engine_is_named(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    slow = dataclasses.replace(trial(SLOWER, *[1.3] * 6), scores=None, changed=None)
    found = told(desk, spool, tmp_path, slow, trial(INT8, *[0.2] * 6))
    assert news(found) == (
        "no exact form is faster than the default engine (original, ONNX Runtime)"
    )


def test_where_the_time_limit_came_first_it_is_said_that_forms_were_left(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    slow, rest = trial(SLOWER, *[1.3] * 6), trial(EXACT, *[0.5] * 6)
    found = told(desk, spool, tmp_path, slow, rest, late_after=1)
    assert news(found) == (
        "the time limit left exact forms untried; none so far is faster than the default engine "
        "(original, ONNX Runtime)"
    )
    assert [one.tried.label for one in found if isinstance(one, Progress) and one.tried] == [
        SLOWER.label
    ]
