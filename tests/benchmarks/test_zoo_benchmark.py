"""The zoo of unknown networks: quick cases run whole, and a case that dies loses itself alone."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.support.bundles import built, stated
from tests.support.waiting import until

import hasten
from hasten.bundle import write
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.metrics.choice import parse_metric
from hasten.testing import models

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
QUICK = {
    "digits": "dynamo",
    "super-resolution": "opset11",
    "faces": "script",
    "gru": "script",
    "lstm": "opset11",
    "tcn": "dynamo",
    "masked-text": "dynamo",
    "graph": "script",
    "forest": "dynamo",
    "mlp-rows": "opset11",
    "gaps": "dynamo",
}
"""The quickest cases, each one way out of torch; rows have ONNX's newest opset for "dynamo"."""
BROUGHT = (
    *("voice", "int8-cnn", "torchscript", "program"),
    *("timm-name", "timm-folder", "sentence-folder"),
)
"""Cases that are files already, or that hasten's own frontends read."""
WHOLE = "gaps"
"""The case that runs from the command line, in a process of its own; the others run in the test's.

skl2onnx warns while it exports this one, and warnings are errors in a test's own process.
"""
SEARCHES_QUICKLY = """import runpy
import sys

if sys.argv[1] == "optimize":
    runpy.run_module("tests.support.quick", run_name="__main__")
else:
    from hasten.cli import main

    main()
"""
LEFT_OUT = ("gaps-lightgbm", "keras", "saved-model", "tflite")
"""Further such cases, which take longer, or need the extra keras, which has an environment of its own."""
QUICK_COMMAND = (sys.executable, "-c", SEARCHES_QUICKLY)
"""hasten's command line, whose searches time candidates for less long."""
QUICKLY = f"""import runpy
import sys

sys.path[:0] = [{str(BENCHMARKS)!r}, {str(ROOT)!r}]
import zoo_checks

zoo_checks.HASTEN = {QUICK_COMMAND!r}
runpy.run_path({str(BENCHMARKS / "zoo_trial.py")!r}, run_name="__main__")
"""
"""The real trial, with that command line."""
FOUND = {"case": "gru", "way": "script", "failed": "", "wrong": [], "step": ""}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoo")


def _played(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Replace what runs one case by a few lines of Python."""
    trial = tmp_path / "trial.py"
    trial.write_text(code)
    monkeypatch.setattr(zoo, "TRIAL", trial)


@pytest.fixture
def _tests_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands find the tests' own modules."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def _is_right(found: dict[str, Any]) -> None:
    assert found["wrong"] == []
    assert (found["failed"], found["step"]) == ("", "")
    assert found["verdict"] in ("certified", "exact")
    assert found["served"] is True


@pytest.mark.slow
@pytest.mark.usefixtures("_tests_are_found")
@pytest.mark.parametrize("case", [name for name in (*QUICK, *BROUGHT) if name != WHOLE])
def test_an_unknown_network_is_answered_served_and_certified_as_its_original(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, case: str, tmp_path: Path
) -> None:
    trials = importlib.import_module("zoo_trial")
    for module in (trials, importlib.import_module("zoo_checks")):
        monkeypatch.setattr(module, "HASTEN", QUICK_COMMAND)
    way = QUICK.get(case, "script")
    options = ("--effort", "quick", "--time-limit", "6s")
    trial = trials.Trial(zoo.CASES[case], way, tmp_path, options)
    trial.run(way, timed=False)
    _is_right(trial.found)


@pytest.mark.slow
@pytest.mark.usefixtures("_tests_are_found")
def test_a_case_runs_from_the_command_line(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _played(zoo, monkeypatch, tmp_path, QUICKLY)
    results = tmp_path / "zoo.jsonl"
    asked = ["--only", WHOLE, "--ways", QUICK[WHOLE], "--effort", "quick"]
    assert zoo.main([*asked, "--time-limit", "10s", "--results", str(results)]) == 0
    (found,) = zoo.read(results).values()
    _is_right(found)


def test_the_quick_cases_are_those_that_say_so(zoo: ModuleType) -> None:
    assert {name for name, case in zoo.CASES.items() if case.quick} == QUICK.keys()
    assert len(zoo.CASES) >= 30


def test_every_case_draws_other_samples_from_another_seed(zoo: ModuleType) -> None:
    for case in (zoo.CASES[name] for name in (*QUICK, "lengths", "sizes", "gru-steps", *LEFT_OUT)):
        one, again, other = (case.drawn(2, seed) for seed in (1, 1, 2))
        assert all(len(array) == 2 for array in one.values()), case.name
        assert all(_same(one[name], again[name]) for name in one), case.name
        assert any(not _same(one[name], other[name]) for name in one), case.name


def _same(mine: Any, theirs: Any) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(mine, theirs, strict=True))


def test_a_case_that_crashes_or_hangs_loses_itself_alone(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hung = tmp_path / "hung"

    class Hurried(subprocess.Popen[bytes]):
        """Its time is over once it hangs, and not before."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                until(lambda: self.poll() is not None or hung.exists())
                if self.returncode is None:
                    hung.unlink()
                    timeout = 0.0
            return super().wait(timeout)

    monkeypatch.setattr(zoo.subprocess, "Popen", Hurried)
    _played(
        zoo,
        monkeypatch,
        tmp_path,
        "import json, os, pathlib, sys, time\n"
        "case, way, folder = sys.argv[1:4]\n"
        "found = {'case': case, 'way': way, 'step': 'serve', 'failed': '', 'wrong': []}\n"
        "pathlib.Path(folder, 'found.json').write_text(json.dumps(found))\n"
        "print('the last line')\n"
        "sys.stdout.flush()\n"
        f"hang = lambda: (pathlib.Path({str(hung)!r}).touch(), time.sleep(600))\n"
        "{'gru': lambda: os.abort(), 'tcn': hang}.get(case, lambda: 0)()\n",
    )
    results = tmp_path / "zoo.jsonl"
    asked = ["--only", "gru,tcn,lstm", "--ways", "script", "--results", str(results)]
    assert zoo.main([*asked, "--minutes", "0.02"]) == 1
    wrong = {name: found["wrong"] for (name, _), found in zoo.read(results).items()}
    assert wrong == {
        "gru": ["serve ended with -6: the last line"],
        "tcn": ["serve took over 0.02 minutes: ended"],
        "lstm": [],
    }


def test_what_has_a_result_isnt_run_again_unless_asked(
    zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _played(zoo, monkeypatch, tmp_path, "raise SystemExit('not run')")
    results = tmp_path / "zoo.jsonl"
    results.write_text(json.dumps(FOUND) + "\n")
    asked = ["--only", "gru", "--ways", "script", "--results", str(results)]
    assert zoo.main(asked) == 0
    assert zoo.main([*asked, "--again"]) == 1
    (found,) = zoo.read(results).values()
    assert found["wrong"] == ["start ended with 1: not run"]


def test_figures_that_miss_their_aims_are_named_and_end_it_with_1(
    zoo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*over: float, first_s: float = 30.0) -> tuple[int, list[str]]:
        results = tmp_path / "zoo.jsonl"
        lines = [
            {**FOUND, "case": f"c{n}", "over_defaults": [x], "verdict": "exact", "label": "l"}
            | {"why": "", "first_s": first_s}
            for n, x in enumerate(over)
        ]
        results.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
        code = zoo.main(["--table", "--gate", "--results", str(results)])
        return code, [line for line in capsys.readouterr().out.splitlines() if "MISSED" in line]

    assert ended(0.98, 4.0) == (0, [])
    assert ended(1.0, 2.0) == (1, ["MISSED a mean of 1.8x: 1.41x"])
    assert ended(0.97, 9.0) == (1, ["MISSED 0.98x: c0 0.97x"])
    late = "MISSED a first answer after 90 s in the median: 91 s"
    assert ended(2.0, first_s=91.0) == (1, [late])


def test_the_table_says_why_nothing_was_gained_and_names_what_is_wrong(zoo: ModuleType) -> None:
    searched: dict[str, Any] = {"seconds": 31.0, "first_s": 20.0, "uncounted": 0}
    gained = {
        **FOUND,
        **searched,
        **{"faster": 2.0, "over_defaults": [4.0, 3.5, 4.5], "latency_ns": 3e6, "floor_ns": 1e6},
        **{"verdict": "certified", "label": "int8", "why": ""},
    }
    tried = {"int8, ONNX Runtime": "1.40x, +40 points lost on 90 samples", "original": "1.00x"}
    idle = {
        **FOUND,
        **searched,
        **{"way": "opset11", "faster": 1.0, "verdict": "exact", "label": "original"},
        **{"why": "nothing was faster", "tried": tried},
    }
    broken = {**FOUND, "way": "dynamo", "failed": "not exported: no such operator", "wrong": ["x"]}
    lines = zoo.table([gained, idle, broken]).splitlines()
    assert lines[1].split()[:3] == ["gru", "dynamo", "-"]
    assert lines[1].endswith("not exported: no such operator")
    assert lines[2].endswith(
        "nothing was faster; int8, ONNX Runtime: 1.40x, +40 points lost on 90 samples"
    )
    assert lines[3].split()[:3] == ["gru", "script", "4.00x"]
    assert lines[3].endswith("3.0x over")
    assert lines[5:] == [
        "2 bundles of 3: 2.00x in the geometric mean, the least 1.00x",
        "first certified answer: 20 s in the median, 20 s at most",
        "WRONG gru (dynamo): x",
    ]


def test_a_bundle_with_wrong_answers_is_told_from_a_right_one(
    zoo: ModuleType, exact_bundle: Path
) -> None:
    checks = importlib.import_module("zoo_checks")
    metric = importlib.import_module("hasten.inputs.metrics.embedding").Embedding()
    with hasten.load(exact_bundle) as loaded:
        (spec,) = loaded.request
        rng = np.random.default_rng(0)
        samples = {spec.name: rng.standard_normal((4, *spec.sizes[1:]), np.float32)}
        requests = checks.requests_of(samples)
        truth = [loaded(**request) for request in requests]
    asked = (exact_bundle, metric, 0.05, requests)
    wrong, alone = checks.wrong_in_words(*asked, truth)
    assert wrong == []
    truth[2] = {name: array + 1 for name, array in truth[2].items()}
    wrong, _ = checks.wrong_in_words(*asked, truth)
    assert wrong == ["exact, but 1 of 4 answers differ from the original's"]
    assert len(alone) == 4


def test_a_certified_bundle_that_loses_a_fifth_is_told_from_one_that_keeps_its_promise(
    zoo: ModuleType, tmp_path: Path
) -> None:
    checks = importlib.import_module("zoo_checks")
    metric = parse_metric("agreement")
    winner = built(tmp_path, models.linear_classifier(tmp_path), OnnxRuntime(threads=1))
    bundle = tmp_path / "m.hasten"
    write(bundle, stated(winner, winner), {})
    rows = np.random.default_rng(0).standard_normal((checks.JUDGED, 16), np.float32)
    requests = checks.requests_of({"x": rows})
    with hasten.load(bundle) as loaded:
        right = [loaded(**request) for request in requests]
    for lost, wrong in (
        (10, []),
        (40, ["certified, but 40.0 of 200 scores are lost, more than 23"]),
    ):
        # Another order of the classes gives another class.
        truth = [
            {name: np.roll(array, 1, axis=1) for name, array in one.items()} if i < lost else one
            for i, one in enumerate(right)
        ]
        found, _ = checks.wrong_in_words(bundle, metric, 0.05, requests, truth)
        assert found == wrong


def test_models_in_forms_that_hasten_reads_run_one_way_and_are_told_from_scalars(
    zoo: ModuleType,
) -> None:
    one_way = {name for name, case in zoo.CASES.items() if case.ways == ("script",)}
    assert one_way == {*BROUGHT, *LEFT_OUT}
    given = zoo._parsed(["--only", ",".join(BROUGHT), "--again"])
    assert list(zoo._asked(given)) == [(name, "script") for name in BROUGHT]
    checks = importlib.import_module("zoo_checks")
    voice = zoo.CASES["voice"]
    (request,) = checks.requests_of(voice.drawn(1, 0), voice.scalars)
    shapes = {name: array.shape for name, array in request.items()}
    assert shapes == {"audio": (1, 512), "state": (1, 32), "rate": ()}
    assert checks.sample_of(request)["audio"].shape == (512,)
