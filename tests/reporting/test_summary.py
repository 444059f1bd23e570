"""The whole of what a run says at its end, for each kind of end."""

import dataclasses
from collections.abc import Mapping

import pytest
from tests.support.results import (
    CERTIFIED,
    EXACT,
    EXACT_DEFAULT,
    FAILED,
    FASTER_EXACT,
    FEW,
    FPGA,
    INT8,
    NOT_ACCURATE,
    NOT_COMPARED,
    NOT_ENOUGH,
    NOT_THERE,
    OLDER,
    ON_ONE_THREAD,
    SAME_ENGINE_ON_ONE_THREAD,
    UNCERTIFIED,
    outcome,
    result,
)

from hasten.measure.intervals import Ratio
from hasten.reporting.result import Outcome, Result
from hasten.reporting.summary import NO_FASTER, UNJUDGED, headline, summary, untested

NOISE = (
    "Noise: the default engine, timed twice side by side, differed from itself by 2.1%; no smaller "
    "difference is called faster."
)
VALID = "Valid for: inputs like the ones in this data."
BUNDLE = "Bundle: my model.hasten, made in 218 s; its report: my model.hasten/report.html"
BENCH = "Next: time it against what you run today: hasten bench 'my model.hasten' --against YOUR_DEPLOYMENT"
KEPT = (
    "How sure: exact: what ships keeps the original's precision, and no answer changed on 1,600 samples, so "
    "no certificate is needed."
)
MEAN = (
    "Over all requests: the mean latency is 0.43 (0.42 to 0.44) times the default engine's; there were "
    "too few requests to establish the 99th percentile."
)


TEXTS: Mapping[str, tuple[Result, tuple[str, ...]]] = {
    "certified": (
        CERTIFIED,
        (
            f"What ships: {INT8}.",
            "How fast: 2.38x faster (95% interval 2.33 to 2.44) than the default engine (original, ONNX "
            "Runtime): a request takes 2.1 ms at the median instead of 5 ms, both with 2 threads and one "
            "sample in a request.",
            MEAN,
            NOISE,
            "How sure: certified: 95% confident that top-1 accuracy falls by at most 1 point (n=2,000: 6 "
            "lost, 0 gained).",
            VALID,
            "Certified for: batches of 1, 2 and 4.",
            "Fastest exact: simplified, OpenVINO is 1.25x faster (95% interval 1.23 to 1.27) "
            "than the default engine.",
            "Also close: in the search, int8 (NNCF), 1 layer in float, OpenVINO, which lost less than the "
            "limit there, took 1.07 times as long as what ships.",
            "Left to gain: the default engine takes 5.0 times the least time that this machine could "
            "need; most of that least time is arithmetic.",
            "Left to gain: what ships takes 2.6 times the least time that this machine could need; "
            "most of that least time is reading memory.",
            "Note: images were prepared by decode, resize(size=256)",
            BENCH,
            BUNDLE,
        ),
    ),
    "exact, and faster than the default engine": (
        FASTER_EXACT,
        (
            f"What ships: {EXACT}.",
            "How fast: 1.25x faster (95% interval 1.23 to 1.27) than the default engine (original, ONNX "
            "Runtime): a request takes 4 ms at the median instead of 5 ms, both with 2 threads and one "
            "sample in a request.",
            NOISE,
            KEPT,
            "Why no inexact form, such as int8, ships: none was both faster than the fastest exact form and "
            "accurate enough in the search to be likely to pass.",
            VALID,
            BENCH,
            BUNDLE,
        ),
    ),
    "exact, and the default engine itself": (
        EXACT_DEFAULT,
        (
            "What ships: original, ONNX Runtime: the default engine, unchanged, because nothing faster may ship.",
            "How fast: it is the default engine: a request takes 5 ms at the median with 2 "
            "threads and one sample in a request.",
            NOISE,
            "How sure: exact: what ships is the original model on the default engine, so no certificate is "
            "needed.",
            "Why no inexact form, such as int8, ships: the safest one, bf16, OpenVINO, failed "
            "and couldn't be tested: it crashed.",
            VALID,
            "Next: keep what you have: the bundle serves the same model",
            BUNDLE,
        ),
    ),
    "not enough data": (
        NOT_ENOUGH,
        (
            f"What ships: {EXACT}.",
            "How fast: 1.25x faster (95% interval 1.23 to 1.27) than the default engine (original, ONNX "
            "Runtime): a request takes 4 ms at the median instead of 5 ms, both with 2 threads and one "
            "sample in a request.",
            NOISE,
            KEPT,
            f"Why no inexact form, such as int8, ships: the safest one, {INT8}, isn't certified: "
            f"{FEW.in_words()}.",
            VALID,
            f"Fastest uncertified: {INT8} is 2.38x faster (95% interval 2.33 to 2.44) than the "
            "default engine; in the search it lost 0.25 points of accuracy, and the limit is 1.",
            BENCH,
            f"Next: for {INT8} give more data: about 1,100 samples that the search never "
            "sees would probably certify it, and this run had 300",
            BUNDLE,
        ),
    ),
    "not accurate enough": (
        NOT_ACCURATE,
        (
            "What ships: original, ONNX Runtime: the default engine, unchanged, because nothing faster may ship.",
            "How fast: it is the default engine: a request takes 5 ms at the median with 2 "
            "threads and one sample in a request.",
            NOISE,
            "How sure: exact: what ships is the original model on the default engine, so no certificate is "
            "needed.",
            f"Why no inexact form, such as int8, ships: the safest one, {INT8}, isn't certified: "
            f"{FAILED.in_words()}.",
            VALID,
            "Next: keep what you have: the bundle serves the same model",
            "Next: to let more forms pass, allow a larger fall by --max-drop, or calibrate on training data "
            "by --training",
            BUNDLE,
        ),
    ),
    "uncertified, as was allowed": (
        UNCERTIFIED,
        (
            f"What ships: {INT8}.",
            "How fast: 2.38x faster (95% interval 2.33 to 2.44) than the default engine (original, ONNX "
            "Runtime): a request takes 2.1 ms at the median instead of 5 ms, both with 2 threads and one "
            "sample in a request.",
            MEAN,
            NOISE,
            "How sure: not certified: it ships without a certificate, as you allowed: the safest "
            f"one, {INT8}, isn't certified: {FEW.in_words()}.",
            VALID,
            "Fastest exact: simplified, OpenVINO is 1.25x faster (95% interval 1.23 to 1.27) "
            "than the default engine.",
            "Next: certify it on data that no run has used: hasten certify 'my model.hasten' --data NEW_DATA --max-drop "
            "1%",
            BENCH,
            f"Next: for {INT8} give more data: about 1,100 samples that the search never "
            "sees would probably certify it, and this run had 300",
            BUNDLE,
        ),
    ),
    "the default engine on fewer threads than it takes": (
        SAME_ENGINE_ON_ONE_THREAD,
        (
            "What ships: original, ONNX Runtime, on 1 thread.",
            "How fast: 1.92x faster (95% interval 1.85 to 2.00) than the default engine (original, ONNX "
            "Runtime) on the 2 threads that it uses by default; the bundle runs on 1 thread; timed in 44 "
            "rounds while the host was busy.",
            "In the table: with 1 thread each, what ships is 1.00 times as fast (95% interval 0.99 "
            "to 1.01) as the default engine: a request takes 5 ms at the median instead of 5 ms.",
            NOISE,
            "How sure: exact: what ships is the original model on the default engine, so no certificate is "
            "needed.",
            "Why no inexact form, such as int8, ships: none was both faster than the fastest exact form and "
            "accurate enough in the search to be likely to pass.",
            VALID,
            BENCH,
            BUNDLE,
        ),
    ),
    "on other threads than the table": (
        ON_ONE_THREAD,
        (
            f"What ships: {EXACT}, on 1 thread.",
            "How fast: 2.50x faster (95% interval 2.38 to 2.56) than the default engine (original, ONNX "
            "Runtime) on the 2 threads that it uses by default; the bundle runs on 1 thread; timed in 24 "
            "rounds while the host was busy.",
            "In the table: with 1 thread each, what ships is 1.25x faster (95% interval 1.23 to "
            "1.27) than the default engine: a request takes 4 ms at the median instead of 5 ms.",
            NOISE,
            KEPT,
            "Why no inexact form, such as int8, ships: none was both faster than the fastest exact form and "
            "accurate enough in the search to be likely to pass.",
            VALID,
            BENCH,
            BUNDLE,
        ),
    ),
    "never compared on all threads": (
        NOT_COMPARED,
        (
            f"What ships: {EXACT}, on 1 thread.",
            "How fast: 1.25x faster (95% interval 1.23 to 1.27) than the default engine (original, ONNX "
            "Runtime) if both have 1 thread: a request takes 4 ms at the median instead of 5 ms; the host "
            "was too busy to compare them on the 2 threads that the default engine uses by default.",
            NOISE,
            KEPT,
            "Why no inexact form, such as int8, ships: none was both faster than the fastest exact form and "
            "accurate enough in the search to be likely to pass.",
            VALID,
            BENCH,
            BUNDLE,
        ),
    ),
    "records of an older version": (
        OLDER,
        (
            f"What ships: {EXACT}.",
            "How fast: 1.25x faster (95% interval 1.23 to 1.27) than the default engine (original, ONNX "
            "Runtime): a request takes 4 ms at the median instead of 5 ms, both with 2 threads and one "
            "sample in a request.",
            NOISE,
            "How sure: exact: nothing was faster.",
            VALID,
            BENCH,
            BUNDLE,
        ),
    ),
    "a device elsewhere": (
        FPGA,
        (
            "What ships: fixed point, for fpga:ecp5 (Lattice ECP5).",
            "How fast: 812 ns for a request, by place-and-route for the device, which isn't here.",
            "Budget: within the budget of 1000 ns.",
            "How sure: certified: 95% confident that top-1 accuracy falls by at most 1 point (n=2,000: 6 "
            "lost, 0 gained).",
            "Compared: the RTL answered all 400 samples as its program did.",
            VALID,
            "Next: on a machine with the device, time it and test it: hasten bench 'my model.hasten'; hasten certify "
            "'my model.hasten' --data NEW_DATA",
            BUNDLE,
        ),
    ),
    "nothing for a device elsewhere": (
        NOT_THERE,
        (
            "What ships: nothing for tpu:v5e (Google TPU): the bundle holds the original for this host "
            "(original, ONNX Runtime).",
            "How sure: exact: nothing could be made for the device; the bundle holds the original, for this "
            "host.",
            VALID,
            "Failed: bf16: too large",
            BUNDLE,
        ),
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_run_says_what_ships_how_fast_how_sure_and_what_next(case: str) -> None:
    made, text = TEXTS[case]
    assert summary(made) == text


@pytest.mark.parametrize(
    ("made", "few_words"),
    [
        (CERTIFIED, "2.38x faster, certified"),
        (FASTER_EXACT, "1.25x faster, exact"),
        (EXACT_DEFAULT, "Nothing faster ships"),
        (UNCERTIFIED, "2.38x faster, not certified"),
        (SAME_ENGINE_ON_ONE_THREAD, "1.92x faster, exact"),
        (ON_ONE_THREAD, "2.50x faster, exact"),
        (
            dataclasses.replace(CERTIFIED, threads=1, on_all=Ratio(1.02, 0.97, 1.07, 24)),
            "0.98 times as fast, certified",
        ),
    ],
)
def test_the_headline_is_the_first_comparison(made: Result, few_words: str) -> None:
    assert headline(made) == few_words


def test_a_faster_model_is_never_said_to_be_beaten_by_nothing() -> None:
    """A speed-up and "nothing beat the exact model" once stood side by side."""
    for made, _ in TEXTS.values():
        said = "\n".join(summary(made))
        assert "nothing under the limit" not in said
        assert ("x faster" in said.split("\n")[1]) <= ("nothing faster" not in said)


def test_forms_that_were_never_tried_or_never_ran_are_not_said_to_be_slow() -> None:
    assert untested(0, 0) == "none was tried"
    assert untested(3, 0) == "none of the 3 that were tried could be made and run here"
    assert untested(3, 1) == NO_FASTER


def test_a_bundle_without_a_report_names_none() -> None:
    assert summary(CERTIFIED, report=False)[-1] == "Bundle: my model.hasten, made in 218 s"


def test_without_data_the_samples_are_said_to_be_made_up_and_data_is_asked_for() -> None:
    without = dataclasses.replace(FASTER_EXACT, inexact=UNJUDGED)
    lines = summary(without)
    (sure,) = [line for line in lines if line.startswith("How sure: ")]
    assert sure.endswith(" made-up samples, so no certificate is needed.")
    assert (
        "Next: give data for a certified version that may be faster: hasten optimize MODEL --data DATA "
        "--max-drop 1% (hasten plan says how much data)" in lines
    )


def test_pytorchs_own_half_precision_stands_beside_strict_float32() -> None:
    half, graph = "f16, PyTorch, compiled", "bf16, PyTorch, CUDA graph"
    made = result(
        "exact",
        "its precision is the original's",
        "exact",
        outcomes=(outcome(half, "judged", 0.5, 4), outcome(graph, "judged", 0.6)),
    )
    line = next(line for line in summary(made) if line.startswith("Also timed: "))
    assert line == (
        "Also timed: the default engine computes in strict float32; in the search, f16, PyTorch, compiled "
        "was 2.00x faster (95% interval 1.92 to 2.08) than it; in the search it lost 0.50 points of "
        "accuracy, and the limit is 1."
    )
    without = dataclasses.replace(made, outcomes=(Outcome(half, "failed", "it has no kernel"),))
    assert not [line for line in summary(without) if line.startswith("Also timed: ")]


def test_another_form_is_compared_on_the_same_threads_and_may_have_gained() -> None:
    ratio = NOT_ENOUGH.rows[0].ratio
    better = [
        dataclasses.replace(
            one, drop=one.drop and dataclasses.replace(one.drop, estimate=-0.005, low=-0.01)
        )
        for one in NOT_ENOUGH.outcomes
    ]
    found = dataclasses.replace(NOT_ENOUGH, on_all=ratio, threads=1, outcomes=tuple(better))
    (line,) = (one for one in summary(found) if one.startswith("Fastest uncertified"))
    assert line == (
        f"Fastest uncertified: {INT8} is 2.38x faster (95% interval 2.33 to 2.44) than the default "
        "engine, with 1 thread each; in the search it gained 0.50 points of accuracy."
    )
