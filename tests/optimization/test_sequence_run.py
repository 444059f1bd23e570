"""Runs on whole sequences: from a model with states and a person's data to a bundle with sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tests.support import recurrent
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.cli import main
from hasten.core.sequences import Sequences
from hasten.engines.compiled.engine import CompiledC
from hasten.errors import InputError
from hasten.evaluation.recertification import certify

COUNT, STEPS = 40, 6
CARRIED = {"h": "h_out"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recurrent.gru(tmp_path_factory.mktemp("model"))


def arrays(seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"x": recurrent.sequences(COUNT, STEPS, seed=seed), **more}


@pytest.fixture(scope="module")
def result(model: Path) -> hasten.Result:
    lengths = np.arange(COUNT) % STEPS + 1
    with quick_runs(passes=True, races=False):
        return hasten.optimize(
            model,
            arrays(lengths=lengths),
            out=model.parent / "gru.hasten",
            states=CARRIED,
            max_drop=0.4,
            engines=["onnxruntime"],
            passes=["dynamic_quantization", "simplify"],
            accept_uncertified=True,
        )


@pytest.mark.seconds
def test_the_result_says_what_a_sample_and_a_step_are(result: hasten.Result) -> None:
    assert result.steps == pytest.approx(3.4)
    assert result.step_ns == pytest.approx(result.latency_ns / 3.4)
    assert (
        "a sample is a whole sequence, of 3.4 steps on average, answered step by step from the start "
        "state (h from h_out); its score is the mean over its steps"
    ) in result.notes


def test_candidates_of_passes_are_judged_on_sequences(result: hasten.Result) -> None:
    fates = {outcome.label: outcome.fate for outcome in result.outcomes}
    assert {"original, ONNX Runtime", "simplified, ONNX Runtime"} <= fates.keys()
    assert "failed" not in fates.values(), [outcome.said for outcome in result.outcomes]
    trials = json.loads((result.bundle / "evidence" / "trials.json").read_text())
    quantized = [t for t in trials if "int8" in str(t["candidate"])]
    assert all(t["scores"] or t["skipped"] for t in quantized)


def test_the_bundle_carries_the_states_and_answers_steps(
    result: hasten.Result, model: Path
) -> None:
    assert read(result.bundle).sequences == Sequences((("h", "h_out"),), "all", lengths=True)
    steps = recurrent.sequences(1, 5, seed=9)[0]
    with hasten.load(result.bundle, which="exact") as exact:
        session = exact.session()
        got = [session(x[np.newaxis])["scores"][0] for x in steps]
        assert {name: array.shape for name, array in exact.requests[0].items()} == {
            "x": (1, recurrent.WIDE),
            "h": (1, recurrent.HIDDEN),
        }
    np.testing.assert_allclose(got, recurrent.unrolled(model, steps)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.seconds
def test_compiled_c_is_optimized_on_sequences_and_carries_the_states(
    model: Path, tmp_path: Path
) -> None:
    with quick_runs(races=False):
        hasten.optimize(
            model,
            arrays(),
            out=tmp_path / "gru.hasten",
            states=CARRIED,
            max_drop=0.4,
            engines=["compiled"],
        )
    steps = recurrent.sequences(1, 5, seed=9)[0]
    with hasten.load(tmp_path / "gru.hasten") as fast:
        assert fast.manifest.winner.engine["type"] == "compiled"
        session = fast.session()
        got = [session(x[np.newaxis])["scores"][0] for x in steps]
    own = recurrent.unrolled(model, steps, engine=CompiledC())[0]
    np.testing.assert_array_equal(got, own)
    np.testing.assert_allclose(own, recurrent.unrolled(model, steps)[0], rtol=1e-5, atol=1e-6)
    recheck = certify(tmp_path / "gru.hasten", arrays(seed=5), max_drop=0.4)
    assert (recheck.kind, recheck.judgement.n) == ("fresh data", COUNT)


def test_certify_judges_new_sequences(result: hasten.Result) -> None:
    recheck = certify(result.bundle, arrays(seed=5), max_drop=0.4)
    assert (recheck.kind, recheck.judgement.n) == ("fresh data", COUNT)
    with pytest.raises(InputError) as caught:
        certify(result.bundle, {"x": recurrent.sequences(4, 3)[:, :, :5]}, max_drop=0.4)
    assert str(caught.value) == ("input 'x': the model takes x: float32[1, 12]; got float32[1, 5]")


def refusal(model: Any, data: Any, out: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        hasten.optimize(model, data, out=out / "b.hasten", **options)
    assert not (out / "b.hasten").exists()
    return str(caught.value)


def test_without_states_the_message_names_the_pair_to_give(model: Path, tmp_path: Path) -> None:
    said = refusal(model, {"x": np.zeros((9, 5, 12), np.float32)}, tmp_path)
    assert said == (
        "the model takes the inputs x, h; the data has x; h looks like a state that the model carries "
        'from step to step: give whole sequences and states="h=h_out"'
    )
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 5, 12), np.float32))
    asked = ["optimize", str(model), "--data", str(tmp_path / "data.npz")]
    ran = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "b.hasten")])
    assert ran.exit_code == 2
    assert "give whole sequences and --state h=h_out" in ran.stderr


def test_what_a_run_on_sequences_cannot_do_is_refused(model: Path, tmp_path: Path) -> None:
    assert refusal(model, arrays(), tmp_path, states=CARRIED, end_to_end=True) == (
        "a model with states= can't be optimized with end_to_end=True: leave it out"
    )
    assert refusal(model, arrays(), tmp_path, states=CARRIED, small_model=model) == (
        "a model with states= can't be optimized with a smaller model, whose states are its own: leave "
        "it out"
    )
    assert refusal(model, arrays(), tmp_path, states={"h": "scores"}) == (
        "the input and the output of the state h=scores differ: the model takes h: "
        "float32[batch, 16] and returns scores: "
        "float32[batch, 4]"
    )
    assert refusal(
        model, arrays(labels=np.zeros(COUNT)), tmp_path, states=CARRIED, scored="all"
    ) == (
        'scored="all" needs a label for each of 6 steps; got labels [40]: give labels (n, steps, ...), '
        "or score the last step"
    )
    assert refusal(model, arrays(), tmp_path, scored="last") == (
        "scored= is about the steps of sequences: give states= too"
    )


def test_sequences_with_nan_are_refused(model: Path, tmp_path: Path) -> None:
    data = arrays()
    data["x"][3, 2, 1] = np.nan
    assert refusal(model, data, tmp_path, states=CARRIED) == (
        "input 'x': sample 3 has NaN or Inf; repair it or leave it out"
    )


def test_a_state_that_grows_past_all_numbers_is_told(tmp_path: Path) -> None:
    text = (
        '<ir_version: 9, opset_import: ["": 17]> g (float[1, 12] x, float[1, 12] h) => '
        "(float[1, 12] y, float[1, 12] h_out) <float k = {1e30}> "
        "{ m = Mul(h, k)  h_out = Add(m, x)  y = Identity(x) }"
    )
    path = tmp_path / "grows.onnx"
    onnx.save(onnx.parser.parse_model(text), str(path))
    said = refusal(path, arrays(), tmp_path, states=CARRIED, metric="regression:0.1")
    assert said == (
        "the original model can't answer the sequences: the state 'h' has NaN or Inf within 3 steps"
    )


def test_an_output_whose_size_varies_between_steps_is_told_with_a_step(tmp_path: Path) -> None:
    text = (
        '<ir_version: 9, opset_import: ["": 17]> g (float[1, 12] x, float[1, 12] h) => '
        "(float[1, 12] y, float[1, 12] h_out, int64[2, found] places) <float zero = {0}> "
        "{ h_out = Add(h, x)  y = Neg(x)  above = Greater(x, zero)  places = NonZero(above) }"
    )
    path = tmp_path / "places.onnx"
    onnx.save(onnx.parser.parse_model(text), str(path))
    said = refusal(path, arrays(), tmp_path, states=CARRIED, metric="agreement@y")
    assert said.startswith(
        "the original model's output 'places' changes its shape from step to step, and hasten compares answers of "
        "one shape only: "
    )


@pytest.mark.slow
def test_limits_loads_and_the_batch_curve_are_of_single_steps(model: Path, tmp_path: Path) -> None:
    with quick_runs(curve_s=3.0, limits=True, load_s=0.05):
        result = hasten.optimize(
            model,
            arrays(),
            out=tmp_path / "b.hasten",
            states=CARRIED,
            max_drop=0.4,
            engines=["onnxruntime"],
        )
    rows = {row.role: row for row in result.rows}
    for (
        limit
    ) in result.limits:  # nearer to a step's time than to a sequence's, though by other rounds
        step_ns = rows[limit.role].p50.value_ns / STEPS
        assert STEPS**-0.5 < limit.ratio * limit.floor_ns / step_ns < STEPS**0.5
    curve = json.loads((result.bundle / "evidence" / "curve.json").read_text())
    assert {point["batch"] for point in curve} >= {1, 2}
    assert len(result.loads) == 2
