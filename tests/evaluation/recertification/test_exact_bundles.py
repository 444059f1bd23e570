"""`hasten certify` of an exact bundle: it needs no limit, and is held to its word."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from tests.support import models, recurrent
from tests.support.bundles import forge
from tests.support.servers import bundle_of

import hasten
from hasten.bundle.manifest import UNCERTIFIED_YET
from hasten.cli import main
from hasten.core.sequences import Sequences
from hasten.evaluation.gate import entry_of, summary


def rows(folder: Path, count: int = 40, **more: Any) -> Path:
    x = np.random.default_rng(3).standard_normal((count, 4), dtype=np.float32)
    np.savez(folder / "new.npz", x=x, **more)
    return folder / "new.npz"


def run(bundle: Path, data: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["certify", str(bundle), "--data", str(data), *words])


def elsewhere(folder: Path, winner: Path, exact: Path) -> Path:
    """A bundle that calls itself exact, and whose winner is another file than its exact model."""
    bundle = bundle_of(folder, winner, exact=exact)
    forge(bundle, lambda record: record.update(status="exact"))
    return bundle


def test_one_that_serves_its_exact_model_ends_with_0_and_says_so(tmp_path: Path) -> None:
    ended = run(bundle_of(tmp_path, models.solid(tmp_path)), rows(tmp_path))
    assert (ended.exit_code, ended.output) == (
        0,
        "exact, so it needs no certificate: the bundle serves its exact model itself, and two sessions "
        "of it answered all 40 samples alike\n",
    )


def test_one_that_answers_as_its_exact_model_ends_with_0(tmp_path: Path) -> None:
    same = models.solid(tmp_path).rename(tmp_path / "same.onnx")
    bundle = elsewhere(tmp_path, models.solid(tmp_path), same)
    ended = run(bundle, rows(tmp_path, labels=np.zeros(40, np.int64)))
    assert (ended.exit_code, ended.output) == (
        0,
        "exact, so it needs no certificate: what the bundle serves answered all 40 samples as its exact "
        "model does\n",
    )


def test_one_needs_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ledger").write_text("a file where the folder should be")
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "ledger"))
    ended = run(bundle_of(tmp_path, models.solid(tmp_path)), rows(tmp_path))
    assert ended.exit_code == 0
    assert ended.output.startswith("exact, so it needs no certificate: ")


def test_one_whose_answers_differ_here_ends_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    bundle = elsewhere(tmp_path, models.solid(tmp_path), models.mirrored(tmp_path))
    ended = run(bundle, rows(tmp_path))
    assert (ended.exit_code, ended.output) == (
        1,
        "not exact here: 40 of 40 answers differ from the exact model's; optimize again on this machine, "
        "or give a limit on the drop to test instead\n",
    )


def test_one_that_draws_random_numbers_is_told_apart_from_one_that_differs_here(
    tmp_path: Path,
) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    noisy (float[n, 4] x) => (float[n, 4] y) { r = RandomNormalLike (x)  y = Add (x, r) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "noisy.onnx")
    ended = run(bundle_of(tmp_path, tmp_path / "noisy.onnx"), rows(tmp_path))
    assert ended.exit_code == 1
    assert ended.output.startswith(
        "not exact here: the bundle serves its exact model itself, and two sessions of it answered "
    )
    assert ended.output.endswith(
        " of 40 samples differently; it may draw random numbers: export it without them, or give a limit "
        "on the drop to test instead\n"
    )


def test_a_pipeline_is_told_that_no_answer_was_to_change(tmp_path: Path) -> None:
    outcome = hasten.certify(bundle_of(tmp_path, models.solid(tmp_path)), rows(tmp_path))
    assert summary("b.hasten", outcome).startswith(
        "## hasten certify: `b.hasten` passed\n\nAsked: that no answer changes. Verdict: **exact** "
        "(exact).\n\n- exact, so it needs no certificate: "
    )
    entry = entry_of("b.hasten", outcome, "abc")
    assert (entry.verdict, entry.passed, entry.n, entry.estimate) == ("exact", True, 40, 0.0)


def test_the_record_counts_answers_and_claims_nothing_of_others(tmp_path: Path) -> None:
    ended = run(bundle_of(tmp_path, models.solid(tmp_path)), rows(tmp_path, 100), "--json")
    record = json.loads(ended.stdout)
    assert (record["kind"], record["itself"]) == ("exact", True)
    judgement = record["judgement"]
    assert (judgement["n"], judgement["lost"]) == (100, 0)
    assert (judgement["confidence"], judgement["bound"]) == (
        0,
        1,
    )  # they may be what it was chosen by


def test_a_limit_that_is_given_is_tested_as_of_any_bundle(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, models.solid(tmp_path))
    labels = np.zeros(40, np.int64)
    assert run(bundle, rows(tmp_path, labels=labels), "--guard", "changed").stderr == (
        f"hasten: {bundle} has no certificate and therefore no limit: give --max-drop\n"
    )


def test_figures_that_are_asked_for_are_stated_at_the_confidence_that_is_asked_for(
    tmp_path: Path,
) -> None:
    bundle = bundle_of(tmp_path, models.solid(tmp_path))
    nothing = json.dumps({"hashes": [], "seen": [], "groups": []}).encode()
    forge(bundle, files={"evidence/sealed.json": nothing})
    data = rows(tmp_path, labels=np.arange(40) % 2)
    asked = ("--report", "brier", "--confidence", "90%")
    for more in ((), ("--max-drop", "50%")):  # a limit that is tested loses none of them either
        ended = run(bundle, data, *asked, *more)
        assert ended.exit_code == 0, ended.output
        first, *others = ended.stdout.splitlines()
        assert first.startswith("the limit " if more else "exact, so it needs no certificate: ")
        (figure,) = (line for line in others if line.startswith("Brier score"))
        assert "unchanged; rises by at most " in figure
        assert "(90%, exact, 40 draws)" in figure


def test_figures_that_need_labels_are_refused_without_them(tmp_path: Path) -> None:
    ended = run(bundle_of(tmp_path, models.solid(tmp_path)), rows(tmp_path), "--report", "brier")
    assert (ended.exit_code, ended.stderr) == (
        2,
        "hasten: the metric brier needs labels, but the data has none; give labels\n",
    )


def test_a_confidence_that_nothing_uses_is_said_to_be_unused(tmp_path: Path) -> None:
    ended = run(bundle_of(tmp_path, models.solid(tmp_path)), rows(tmp_path), "--confidence", "99%")
    assert ended.exit_code == 0
    first, note = ended.stdout.splitlines()
    assert first.startswith("exact, so it needs no certificate: ")
    assert note == (
        "note: the answers were only compared, so the confidence wasn't used: give a limit on the drop to "
        "test at it"
    )


def test_a_bundle_of_an_unfinished_run_asks_to_continue_the_run(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, models.solid(tmp_path))
    forge(bundle, lambda record: record.update(status="uncertified", why=UNCERTIFIED_YET))
    assert run(bundle, rows(tmp_path)).stderr == (
        f"hasten: {bundle} is from a run that has not finished, so it has no certificate yet: continue "
        "the run with --resume, or give --max-drop to test what it found so far\n"
    )


def test_classes_of_whole_sequences_are_compared_step_by_step(tmp_path: Path) -> None:
    carried = Sequences((("h", "h_out"),), "all")
    bundle = bundle_of(tmp_path, recurrent.gru(tmp_path), sequences=carried)
    x, labels = recurrent.sequences(6, 5), np.arange(30).reshape(6, 5) % recurrent.CLASSES
    outcome = hasten.certify(bundle, {"x": x, "labels": labels}, metric="top1@scores")
    assert (outcome.passed, outcome.used, outcome.kind) == (True, 6, "exact")


def test_labels_by_output_are_read_by_the_metric_of_their_output(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, models.solid(tmp_path))
    labels: dict[str, Any] = {"labels@y": np.zeros(40, np.int64)}
    data = rows(tmp_path, **labels)
    outcome = hasten.certify(bundle, data, metric="top1@y")
    assert (outcome.passed, outcome.used) == (True, 40)
