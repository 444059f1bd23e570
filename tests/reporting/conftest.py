"""A report with every section, from made-up rounds and scores through the real statistics."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from hasten.certificate.betting import BettingPrior
from hasten.certificate.drop import observed_drop
from hasten.certificate.verdict import Judgement, judge
from hasten.core.invocation import Invocation
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.measure.intervals import paired_ratio
from hasten.reporting.drawing import Plot
from hasten.reporting.evidence import Figures, Floor, Loaded, Point, Profile, Report, Step
from hasten.reporting.page import render
from hasten.reporting.result import Asked, Fate, Outcome, Result, Row, Rung, row

Rounds: TypeAlias = dict[int, tuple[int, ...]]
WORDS = ("optimize", "model.onnx", "--data", "eval set.npz", "--max-drop", "1%")
POPULATION = "photos from the front door camera"


def rounds(ratio: float, count: int = 40, seed: int = 0) -> Rounds:
    """Rounds whose median is about so many times 5 ms, with a tail."""
    rng = np.random.default_rng(seed)
    host = 1 + 0.1 * rng.random(count)
    blocks = 5e6 * ratio * host[:, None] * (1 + 0.08 * rng.gamma(1.0, 1.0, (count, 12)))
    return {number: tuple(map(int, block)) for number, block in enumerate(blocks)}


ROUNDS = {
    "baseline": rounds(1.0, seed=1),
    "baseline again": rounds(1.0, seed=2),
    "e": rounds(0.93, seed=3),
    "w": rounds(0.42, seed=4),
}
ROLES = {"default engine": "baseline again", "fastest exact": "e", "winner": "w"}
LABELS = {
    "default engine": "original, ONNX Runtime",
    "fastest exact": "simplified, OpenVINO",
    "winner": "int8 (NNCF, accurate biases), 3 layers in float, OpenVINO",
}


def judgement(lost: int, gained: int, n: int = 2000) -> Judgement:
    original, candidate = np.ones(n), np.ones(n)
    candidate[:lost] = 0
    original[lost : lost + gained] = 0
    return judge(
        original,
        candidate,
        guard="net",
        max_drop=0.01,
        confidence=0.95,
        metric="top1",
        prior=BettingPrior(),
    )


def falls(lost: int, gained: int, n: int = 800) -> Array:
    return np.concatenate([np.ones(lost), -np.ones(gained), np.zeros(n - lost - gained)])


def outcome(
    label: str, fate: Fate, ratio: float, lost: int = 0, rung: int | None = None
) -> Outcome:
    drop = None
    if fate in ("judged", "left early"):
        drop = observed_drop(falls(lost, 4), np.arange(800), binary=True)
    return Outcome(
        label,
        fate,
        f"{1 / ratio:.2f}x, {fate}",
        paired_ratio(rounds(ratio, 6, 7), rounds(1, 6, 8)),
        drop,
        rung,
    )


OUTCOMES = (
    Outcome("original, ONNX Runtime", "baseline", "the baseline"),
    outcome("original, OpenVINO", "exact", 0.95),
    outcome("simplified, OpenVINO", "exact", 0.93),
    outcome("fixed shapes, ONNX Runtime", "not judged", 1.04),
    outcome("bf16, OpenVINO", "judged", 0.61, 5, rung=0),
    outcome(LABELS["winner"], "judged", 0.42, 8, rung=1),
    outcome("int8 (NNCF), OpenVINO", "judged", 0.38, 13, rung=2),
    outcome("int8 (ONNX Runtime, per channel, minmax), ONNX Runtime", "left early", 0.45, 60),
    Outcome("fixed shapes, OpenVINO", "skipped", "skipped: every size is settled already"),
    Outcome(
        "dynamic int8 (ONNX Runtime, per channel), ONNX Runtime",
        "failed",
        "failed: ONNX Runtime has no ConvInteger for node conv1",
    ),
)


def a_row(role: str, accuracy: str, size_bytes: int) -> Row:
    own, baseline = ROUNDS[ROLES[role]], ROUNDS["baseline"]
    return row(role, LABELS[role], own, baseline, size_bytes=size_bytes, accuracy=accuracy)


def steps(scale: float, int8: bool) -> tuple[Step, ...]:
    """A conv net's steps; scaled, and with conversions where it is int8."""
    precision = "i8" if int8 else "f32"
    made = []
    for number, time_ns in enumerate((900_000, 700_000, 420_000, 380_000, 110_000)):
        latencies = tuple(int(scale * time_ns * (1 + k / 50)) for k in range(5))
        name = f"/features/{number}/Conv"
        made.append(Step(name, "Convolution", "arithmetic", latencies, precision, (name,)))
    made.append(Step("/add", "Eltwise", "elementwise", (90_000,) * 5, precision, ("/add",)))
    made.append(Step("/flat", "Reorder", "movement", (40_000,) * 5, "f32"))
    if int8:
        made.append(Step("fq_input", "Quantize", "conversion", (70_000,) * 5, "i8"))
    return tuple(made)


def the_report() -> Report:
    """A certified result with all that a page can show."""
    passed, failed = judgement(9, 4), judgement(24, 9)
    result = Result(
        bundle=Path("doors.hasten"),
        status="certified",
        why=passed.in_words(),
        judgement=passed,
        population=POPULATION,
        rows=(
            a_row("default engine", "exact", 18_740_069),
            a_row("fastest exact", "exact", 18_600_000),
            a_row("winner", passed.in_words(), 5_179_545),
        ),
        spread=0.021,
        threads=2,
        tried={o.label: o.said for o in OUTCOMES},
        notes=("images were prepared by decode, resize(size=256)", "2 rounds were slow"),
        seconds=218.4,
        outcomes=OUTCOMES,
        ladder=(
            Rung("bf16, OpenVINO", judgement(5, 4)),
            Rung(LABELS["winner"], passed),
            Rung("int8 (NNCF), OpenVINO", failed),
        ),
        asked=Asked(
            Invocation(WORDS),
            "top1",
            "accuracy",
            "net",
            0.01,
            0.95,
            seed=0,
            searched=800,
            sealed=2000,
        ),
    )
    return Report(
        result=result,
        target=Target("host", "AMD EPYC", (0, 1), 2, ("avx2", "fma"), 16 << 30, "Linux 6.1 x86_64"),
        environment={
            "processor": "AMD EPYC",
            "python": "3.11.7",
            "hasten": "0.1.0",
            "numpy": "2.4.6",
            "onnxruntime": "1.32.0",
            "torch": "2.13.0+cpu",
        },
        created="2026-11-24T21:27:04+00:00",
        source_sha256="8f1d" * 16,
        sealed={"samples": 2000, "sha256": "50c7" * 16},
        figures=Figures(dict(ROUNDS), 3, 2, dict(ROLES)),
        profile=Profile(steps(1.0, int8=False), steps(0.4, int8=True)),
        limit=(
            Floor("default engine", 1.9e6, 2.8, "arithmetic"),
            Floor("winner", 0.9e6, 2.55, "arithmetic"),
        ),
        curve=tuple(
            Point(
                batch, threads, sessions, 2.2e6 * batch**0.8 / threads, 430 * batch**0.2 * threads
            )
            for threads, sessions in ((2, 1), (1, 2))
            for batch in (1, 2, 4, 8, 16)
        ),
        load=(
            Loaded(
                "single-stream",
                (
                    "single-stream: p90 2.31 ms, p50 2.2 ms, p99 2.9 ms (n=452)",
                    "1 session of 2 threads, batch 1, requests: samples of the data",
                    "measured with hasten's own load generator; not an MLPerf result",
                ),
                {"p50_ns": 2.2e6},
            ),
            Loaded(
                "offline",
                (
                    "offline: 447 samples a second (n=460)",
                    "1 session of 2 threads, batch 1, requests: samples of the data",
                    "measured with hasten's own load generator; not an MLPerf result",
                ),
                {"throughput_per_s": 447.0},
            ),
        ),
    )


@pytest.fixture(scope="session")
def report() -> Report:
    return the_report()


Change: TypeAlias = Callable[..., Report]


@pytest.fixture(scope="session")
def with_result(report: Report) -> Change:
    """The report with other fields of its result, and fewer plots, which take most of the time."""
    slim = dataclasses.replace(report, figures=None, profile=None, limit=(), curve=(), load=())

    def changed(**fields: object) -> Report:
        result = dataclasses.replace(slim.result, **fields)  # type: ignore[arg-type]
        return dataclasses.replace(slim, result=result)

    return changed


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the plots out of pages whose words matter: they take nearly all of the time."""
    monkeypatch.setattr(Plot, "_svg", lambda *_: "")


@pytest.fixture(scope="session")
def page(report: Report) -> bytes:
    """The whole page."""
    return render(report)
