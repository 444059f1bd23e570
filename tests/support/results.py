"""Results of each kind of end that a run may have."""

import dataclasses
from pathlib import Path

import numpy as np

from hasten.bundle import Status
from hasten.certificate.betting import BettingPrior
from hasten.certificate.drop import observed_drop
from hasten.certificate.verdict import Judgement, judge
from hasten.core.invocation import Invocation
from hasten.measure.intervals import Quantile, Ratio
from hasten.reporting.result import (
    Asked,
    EstimateRow,
    Estimates,
    Fate,
    Limit,
    Outcome,
    Result,
    Row,
    Rung,
)
from hasten.reporting.summary import NO_FASTER, allowed, exact_why, refused

DEFAULT, EXACT, INT8 = "original, ONNX Runtime", "simplified, OpenVINO", "int8 (NNCF), OpenVINO"
SLOWER = "bf16, OpenVINO"


def row(role: str, label: str, ratio: float, *, mean: bool = False) -> Row:
    p50 = Quantile(5e6 * ratio, 4.9e6 * ratio, 5.1e6 * ratio, 900)
    return Row(
        role,
        label,
        Ratio(ratio, ratio - 0.01, ratio + 0.01, 40),
        p50,
        Quantile(9e6, 8e6, None, 900),
        6e6 * ratio,
        10**6,
        "exact",
        mean_ratio=Ratio(ratio + 0.01, ratio, ratio + 0.02, 40) if mean else None,
    )


ROWS = {
    "default": row("default engine", DEFAULT, 1.0),
    "original": row("fastest exact", DEFAULT, 1.0),
    "exact": row("fastest exact", EXACT, 0.8),
    "winner": row("winner", INT8, 0.42, mean=True),
    "loose": row("fastest uncertified", INT8, 0.42),
}


def judgement(lost: int, n: int = 2000) -> Judgement:
    return judge(
        np.ones(n),
        (np.arange(n) >= lost).astype(np.float64),
        guard="net",
        max_drop=0.01,
        confidence=0.95,
        metric="top1",
        prior=BettingPrior(),
    )


PASSED, FEW, FAILED = judgement(6), judgement(1, 300), judgement(90)


def outcome(label: str, fate: Fate, ratio: float, lost: int = 0) -> Outcome:
    drop = observed_drop((np.arange(800) < lost).astype(float), np.arange(800), binary=True)
    figure = Ratio(ratio, ratio - 0.02, ratio + 0.02, 6)
    return Outcome(label, fate, "", figure, drop if fate == "judged" else None)


def result(status: Status, why: str, *rows: str, **fields: object) -> Result:
    asked = Asked(
        Invocation(("optimize",)),
        "top1",
        "accuracy",
        "net",
        0.01,
        0.95,
        0,
        searched=600,
        sealed=1000,
    )
    made = Result(
        bundle=Path("my model.hasten"),
        status=status,
        why=why,
        judgement=None,
        population="inputs like the ones in this data",
        rows=tuple(ROWS[name] for name in ("default", *rows)),
        spread=0.021,
        threads=2,
        tried={},
        notes=(),
        seconds=218.4,
        asked=asked,
        default_threads=2,
        shipped_threads=2,
    )
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def exact(reason: str, *rows: str, **fields: object) -> Result:
    default = rows[0] == "original"
    return result(
        "exact", exact_why(reason, 1600, default=default), *rows, inexact=reason, **fields
    )


CERTIFIED = result(
    "certified",
    PASSED.in_words(),
    "exact",
    "winner",
    batches="batches of 1, 2 and 4",
    outcomes=(
        Outcome(DEFAULT, "baseline", ""),
        outcome(EXACT, "exact", 0.8),
        outcome(INT8, "judged", 0.42, 2),
        outcome("int8 (NNCF), 1 layer in float, OpenVINO", "judged", 0.45, 1),
        outcome("int8 (careless), OpenVINO", "judged", 0.43, 80),
        outcome(SLOWER, "judged", 0.6, 0),
    ),
    limits=(Limit("default engine", 1e6, 5.0, "arithmetic"), Limit("winner", 8e5, 2.6, "bytes")),
    notes=("images were prepared by decode, resize(size=256)",),
)
FASTER_EXACT = exact(NO_FASTER, "exact")
EXACT_DEFAULT = exact(refused(SLOWER, "it crashed"), "original")
NOT_ENOUGH = exact(
    refused(INT8, FEW), "exact", "loose", ladder=(Rung(INT8, FEW),), outcomes=CERTIFIED.outcomes
)
NOT_ACCURATE = exact(refused(INT8, FAILED), "original", ladder=(Rung(INT8, FAILED),))
UNCERTIFIED = result(
    "uncertified",
    allowed(refused(INT8, FEW)),
    "exact",
    "winner",
    inexact=refused(INT8, FEW),
    ladder=(Rung(INT8, FEW),),
)
SAME_ENGINE_ON_ONE_THREAD = exact(
    NO_FASTER, "original", threads=1, shipped_threads=1, on_all=Ratio(0.52, 0.5, 0.54, 44)
)
ON_ONE_THREAD = dataclasses.replace(
    FASTER_EXACT, threads=1, shipped_threads=1, on_all=Ratio(0.4, 0.39, 0.42, 24)
)
NOT_COMPARED = dataclasses.replace(FASTER_EXACT, threads=1, shipped_threads=1)
OLDER = dataclasses.replace(
    result("exact", "nothing was faster", "exact"), default_threads=0, shipped_threads=0
)
FPGA = result(
    "certified",
    PASSED.in_words(),
    rows=(),
    estimates=Estimates(
        "fpga:ecp5",
        "Lattice ECP5",
        (EstimateRow("fixed point", "place-and-route", "", latency_ns=812.0),),
        "fixed point",
        "the RTL answered all 400 samples as its program did",
    ),
    budget_ns=1000.0,
)
NOT_THERE = result(
    "exact",
    "nothing could be made for the device; the bundle holds the original, for this host",
    rows=(),
    estimates=Estimates(
        "tpu:v5e", "Google TPU", (EstimateRow("bf16", "none", "failed: too large"),), DEFAULT
    ),
)
