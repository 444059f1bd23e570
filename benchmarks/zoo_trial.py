"""One case of the zoo, one way: export, optimize, load, serve, certify, count. `zoo.py` runs it.

    python benchmarks/zoo_trial.py CASE WAY FOLDER [--effort quick] [--time-limit 60s] [--timed]

What was found is written to found.json after each step, so that nothing is lost where it is ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import zoo_brought
import zoo_keras
import zoo_rows
import zoo_sequences
import zoo_vision
from zoo_cases import Arrays, Case, Way
from zoo_checks import (
    FRESH,
    HASTEN,
    JUDGED,
    counted,
    environment,
    joined,
    requests_of,
    served_wrong,
    steps_of,
    wrong_in_words,
)
from zoo_export import TOLERANCE, Exported, Original, export, said

import hasten
from hasten.bundle import artifact_of, engine_of, read
from hasten.certificate.verdict import Verdict
from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.python_function import PythonFunction
from hasten.errors import HastenError
from hasten.inputs.data.source import open_data
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.choice import parse_metric
from hasten.inputs.models import onnx as onnx_frontend
from hasten.measure.effort import EFFORTS
from hasten.measure.intervals import quantile
from hasten.measure.journal import Journal
from hasten.measure.race import AGAIN, BASELINE, Rules, race
from hasten.measure.workbench import Bench

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *(*zoo_vision.CASES, *zoo_sequences.CASES, *zoo_rows.CASES),
        *(*zoo_brought.CASES, *zoo_keras.CASES),
    )
}
_METRICS = Path(__file__).with_name("zoo_metrics.py")


class Trial:
    """What is found of one case, one way; each method is a step.

    Args:
        case: The case.
        way: Way of its export.
        folder: Empty folder to work in.
        options: Further options of `hasten optimize`.
    """

    def __init__(self, case: Case, way: Way, folder: Path, options: tuple[str, ...]) -> None:
        self.case, self.folder, self.options = case, folder, options
        self.found: dict[str, Any] = {
            **{"case": case.name, "way": way, "family": case.family},
            **{"step": "export", "failed": "", "wrong": []},
        }
        self.bundle = folder / "m.hasten"
        self.first_s: float | None = None
        self.metric = case.metric.replace(_METRICS.name, str(_METRICS))

    def step(self, name: str) -> None:
        """Note which step begins, on disk."""
        self.found["step"] = name
        whole = json.dumps(self.found, default=float)
        (self.folder / "found.json").write_text(whole)

    def run(self, way: Way, *, timed: bool) -> None:
        """Go through all steps, until one can't be done."""
        self.step("export")
        try:
            exported = export(self.case, way, self.folder)
        except Exception as error:  # whatever an exporter raises is what its user would see
            self.found["failed"] = f"not exported: {said(error)}"
            return
        self.found["exported"] = {**dataclasses.asdict(exported), "path": exported.path.name}
        if exported.differs is not None and exported.differs > TOLERANCE:
            self.found["exporter"] = (
                f"the file's answer is {exported.differs:.1g} from the network's"
            )
        self.step("optimize")
        if not self._optimized(exported):
            return
        fresh = FRESH if self.found["verdict"] == "exact" else JUDGED
        requests = requests_of(self.case.drawn(fresh, 1), self.case.scalars)
        truth = [self._original(exported)(request) for request in requests]
        metric: Metric = parse_metric(self.metric)
        self.step("load")
        with self._guarded("load"):
            stepped = bool(self.case.states)
            wrong, alone = wrong_in_words(
                self.bundle, metric, self.case.max_drop, requests, truth, stepped=stepped
            )
            self.found["wrong"] += wrong
            self.step("serve")
            with self._guarded("serve"):
                log = self.folder / "serve.log"
                self.found["wrong"] += served_wrong(
                    self.bundle, log, requests[:FRESH], alone[:FRESH], stepped=stepped
                )
                self.found["served"] = True
        self.step("certify")
        self._certified()
        self.step("count")
        with self._guarded("count"):
            self._counted(exported, requests, timed=timed)
        self.step("")

    def _original(self, exported: Exported) -> Callable[[Arrays], Arrays]:
        """Return the original's answers: the network's own where only hasten exports it, else the file's."""
        if self.case.own is not None:
            return self.case.own(self.case.network())
        original, states = Original(exported.path), self.case.states

        def by_steps(sequence: Arrays) -> Arrays:
            answers, now = [], self.case.begin(1)
            for step in steps_of(sequence):
                found = original({**step, **now})
                now = {name: found.pop(after) for name, (after, _) in states.items()}
                answers.append(found)
            return joined(answers)

        return by_steps if states else original

    def _guarded(self, step: str) -> Guard:
        return Guard(self.found, step)

    def _command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of hasten's; a traceback, or an end by a signal, is wrong."""
        log = self.folder / f"{arguments[0]}.log"
        with log.open("w") as told, log.with_suffix(".out").open("w") as printed:
            process = subprocess.Popen(
                [*HASTEN, *map(str, arguments)],
                stdout=printed,
                stderr=told,
                env=environment(self.folder / "state"),
            )
            begin = time.monotonic()
            while process.poll() is None:
                if self.first_s is None and _decided(self.bundle / "manifest.json"):
                    self.first_s = time.monotonic() - begin
                time.sleep(0.1)
        done = subprocess.CompletedProcess(
            process.args, process.returncode, log.with_suffix(".out").read_text(), log.read_text()
        )
        if "Traceback" in done.stderr or done.returncode < 0:
            last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
            self.found["wrong"].append(f"{arguments[0]} ended with a traceback: {last[:200]}")
        return done

    def _optimized(self, exported: Exported) -> bool:
        data = self.folder / "data.npz"
        hasten.save_ragged(data, self.case.drawn(self.case.samples, 2))
        states = [f"--state={name}={after}" for name, (after, _) in self.case.states.items()]
        steps = self.folder / "pipeline.yaml"
        steps.write_text(self.case.pipeline)
        pipeline = ["--pipeline", steps] if self.case.pipeline else []
        begin = time.time()
        done = self._command(
            "optimize", exported.given or exported.path, "--data", data, "--metric", self.metric, "--max-drop",
            str(self.case.max_drop), "--out", self.bundle, "--json", *states, *pipeline,
            *self.case.options, *self.options,
        )  # fmt: skip
        self.found["seconds"] = time.time() - begin
        data.unlink()
        if not (self.bundle / "manifest.json").exists():
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            self.found["failed"] = f"not optimized: {lines[-1]}"
            return False
        self.found["first_s"] = self.first_s or self.found["seconds"]
        result = json.loads(done.stdout)
        shipped = [row for row in result["rows"] if row["role"] != "fastest uncertified"][-1]
        self.found |= {
            "verdict": result["status"],
            "why": result["why"],
            "label": shipped["label"],
            "faster": 1 / shipped["ratio"]["estimate"],
            "threads": result["threads"],
            "p50_ns": shipped["p50"]["value_ns"],
            "tried": result["tried"],
            "notes": result["notes"],
        }
        return True

    def _certified(self) -> None:
        data = self.folder / "new.npz"
        hasten.save_ragged(data, self.case.drawn(self.case.samples, 3))
        done = self._command(
            "certify", self.bundle, "--data", data, "--metric", self.metric, "--max-drop",
            str(self.case.max_drop),
        )  # fmt: skip
        data.unlink()
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        self.found["certify"] = {
            "code": done.returncode,
            "said": lines[-1 if done.returncode == 2 else 0],
        }
        # Too few new data to show it again prove nothing: a certificate needs luck each time.
        if done.returncode == 1 and Verdict.NOT_ACCURATE_ENOUGH in lines[0]:
            self.found["wrong"].append(f"what was certified isn't so on new data: {lines[0]}")

    def _counted(self, exported: Exported, requests: list[Arrays], *, timed: bool) -> None:
        over, latency_ns = self._raced(exported) if timed else (None, None)
        one = {name: array[:1] for name, array in self.case.batch(2, 1).items()}
        alone = not self.case.open_axes  # else the latency is that of requests of many shapes
        work = counted(
            exported.path,
            requests[0] if alone and not self.case.states else one,
            exported.multiplications,
            latency_ns if alone else None,
            self.folder.parent if timed else None,
        )
        self.found |= {
            "over_defaults": over,
            "latency_ns": latency_ns,
            "multiplications": work.multiplications,
            "uncounted": work.uncounted,
            "floor_ns": work.floor_ns,
        }
        self.found["wrong"] += work.wrong

    def _raced(self, exported: Exported) -> tuple[list[float], float]:
        """Time the bundle in turns with ONNX Runtime as it comes, each on all its threads."""
        target, place = Target.host(), self.folder / "race"
        place.mkdir()
        os.environ[rivals.FOLDER] = str(self.folder)
        bench = Bench(place, target, memory_bytes=target.memory_bytes // 2)
        drawn = self.case.batch(FRESH, 1) if self.case.states else self.case.drawn(FRESH, 1)
        first = {name: np.asarray(samples[0]) for name, samples in drawn.items()}
        model = onnx_frontend.load(exported.path).settled_by(first)
        plain = OnnxRuntime().build(model, target, place)
        call = PythonFunction(f"{rivals.__file__}:onnxruntime")
        manifest = read(self.bundle)
        own = engine_of(manifest.winner, target.threads)
        entries = {
            BASELINE: (call, plain),
            AGAIN: (call, plain),
            "hasten": (own, artifact_of(self.bundle, manifest.winner, manifest, ())),
        }
        opened = {}
        effort = EFFORTS["normal"]
        try:
            for name, (engine, artifact) in entries.items():
                opened[name] = bench.open_built(engine, artifact).worker
            samples = write_spool(open_data(drawn, model.inputs), place / "requests")
            standings = race(
                "zoo", dict(opened), samples, Journal(place / "journal.jsonl"),
                Rules(
                    threads=1, count=effort.final_rounds, pace=effort.pace("p50"), seed=0,
                    settle=effort.settle,
                    uneven=entries if samples.ragged else {"hasten"} if own.uneven else (),
                ),
            )  # fmt: skip
        finally:
            for worker in opened.values():
                worker.kill()
        ratio = standings.ratio("hasten")
        return (
            [1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low],
            quantile(standings.rounds["hasten"], 0.5).value_ns,
        )


def _decided(manifest: Path) -> bool:
    """Whether a bundle is there that is certified or exact, and not only the fastest so far."""
    try:
        return json.loads(manifest.read_text())["status"] != "uncertified"
    except (OSError, ValueError, KeyError):
        return False


class Guard:
    """Turns what a step raises into a line: a failure of hasten's own words, or what is wrong."""

    def __init__(self, found: dict[str, Any], step: str) -> None:
        self._found, self._step = found, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if isinstance(error, HastenError) and "\n" not in str(error):
            self._found["wrong"].append(f"{self._step}: {error}")
        else:
            self._found["wrong"].append(f"{self._step} raised {said(error)}")
        return True


def main() -> None:
    """Run the case that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("way")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--time-limit", default="3m")
    parser.add_argument("--engine", action="append", default=[])
    parser.add_argument("--timed", action="store_true")
    given = parser.parse_args()
    engines = [word for name in given.engine for word in ("--engine", name)]
    options = ("--effort", given.effort, "--time-limit", given.time_limit, *engines)
    trial = Trial(CASES[given.case], given.way, given.folder, options)
    trial.run(given.way, timed=given.timed)
    trial.step(trial.found["step"])


if __name__ == "__main__":
    main()
