"""A zoo of networks that nobody tuned hasten to, each exported up to three ways.

    python benchmarks/zoo.py            # everything, with timings, on a machine that is quiet
    python benchmarks/zoo.py --only gru,vit --ways dynamo,opset11 --effort quick --time-limit 60s
    python benchmarks/zoo.py --table    # the table of what is already there; nothing is run

Every case goes through `hasten optimize`, `hasten.load` from one thread and from eight on 20 fresh
inputs, `hasten serve` called by tritonclient, `hasten certify` on new data, and a count of its work
beside an honest one. Each is a process of its own: a crash or a timeout loses that case alone. What
was found is a line of JSON in the results file; a case that has one isn't run again without
`--again`. The table says what was gained, and why where nothing was.

Hugging Face's encoders are made from configs by transformers: pip install --requirement
benchmarks/zoo-packages.txt. Keras, SavedModel and TFLite need hasten's extra keras; without it, each of these cases
ends with one line. Without --effort quick, each bundle is timed in turns with ONNX Runtime
as it comes, on all of its threads. The exit code is 1 if anything was wrong, and with --gate also if a figure
misses its aim.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from zoo_cases import WAYS
from zoo_trial import CASES

from hasten.cli.tables import aligned

TRIAL = Path(__file__).with_name("zoo_trial.py")
COLUMNS = (
    "case",
    "way",
    "over defaults",
    "verdict",
    "what ships",
    "time",
    "first",
    "floor",
    "said",
)
MEAN, LEAST, FIRST_S = 1.8, 0.98, 90
"""Aims: speed-up over ONNX Runtime's defaults in the geometric mean, of each network, and time to a first answer."""
_LITTLE = 1.1
"""Speed-up below which the table says why nothing was gained."""


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for and isn't there yet, then print the table; return the exit code."""
    given = _parsed(arguments)
    for case, way in [] if given.table else _asked(given):
        found = run(case, way, given)
        with given.results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(_line(found), flush=True)
    there = read(given.results)
    found = list(there.values())
    print(table(found))
    missed = misses(found) if given.gate else []
    print(*missed, sep="\n", end="\n" if missed else "")
    return int(bool(missed) or any(one["wrong"] for one in found))


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="cases, by commas; by default all")
    parser.add_argument("--ways", default=",".join(WAYS), help="ways of exporting, by commas")
    parser.add_argument("--minutes", type=float, default=15.0, help="most minutes of one case")
    parser.add_argument("--effort", default="normal", help="effort of each search")
    parser.add_argument("--time-limit", default="3m", help="time limit of each search")
    parser.add_argument("--engine", action="append", default=[], help="try this engine only")
    parser.add_argument("--results", type=Path, default=Path("zoo.jsonl"), help="results file")
    parser.add_argument("--keep", type=Path, help="folder that keeps each case's files")
    parser.add_argument("--quick", action="store_true", help="the quickest cases only")
    parser.add_argument("--again", action="store_true", help="run what has a result, too")
    parser.add_argument("--gate", action="store_true", help="end with 1 if a figure misses its aim")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args(arguments)
    given.only = given.only.split(",") if given.only else [*CASES]
    if unknown := sorted({*given.only} - CASES.keys()) + sorted({*given.ways.split(",")} - {*WAYS}):
        parser.error(f"there is no {unknown[0]}: there are {', '.join((*CASES, *WAYS))}")
    return given


def _asked(given: argparse.Namespace) -> Iterator[tuple[str, str]]:
    there = {} if given.again else read(given.results)
    for name in given.only:
        for way in given.ways.split(","):
            suits = way in CASES[name].ways and (not given.quick or CASES[name].quick)
            if suits and (name, way) not in there:
                yield name, way


def read(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the newest result of each case and way."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {(one["case"], one["way"]): one for one in map(json.loads, lines)}


def run(case: str, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one case in a process of its own; whatever becomes of that, there is a result."""
    with contextlib.ExitStack() as end:
        if given.keep:
            root = given.keep
            root.mkdir(parents=True, exist_ok=True)
        else:
            root = Path(end.enter_context(tempfile.TemporaryDirectory()))
        folder = root / f"{case}-{way}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        timed = ["--timed"] if given.effort != "quick" else []
        command = [sys.executable, str(TRIAL), case, way, str(folder), *timed]
        command += ["--effort", given.effort, "--time-limit", given.time_limit]
        command += [word for name in given.engine for word in ("--engine", name)]
        with (folder / "trial.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                code: int | None = process.wait(60 * given.minutes)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return _outcome(case, way, folder, code, given.minutes)


def _outcome(case: str, way: str, folder: Path, code: int | None, minutes: float) -> dict[str, Any]:
    """Return what a process found, with a line where it didn't come to its end."""
    file = folder / "found.json"
    found = {"case": case, "way": way, "step": "start", "failed": "", "wrong": []}
    if file.exists():
        found = json.loads(file.read_text())
    if code is None:
        found["wrong"].append(f"{found['step']} took over {minutes:g} minutes: ended")
    elif code:
        lines = (folder / "trial.log").read_text().strip().splitlines() or ["it said nothing"]
        found["wrong"].append(f"{found['step']} ended with {code}: {lines[-1][:200]}")
    return found


def speedup(one: dict[str, Any]) -> float | None:
    """Return how much faster a bundle is than ONNX Runtime's defaults; by its own search else."""
    over = one.get("over_defaults")
    return over[0] if over else one.get("faster")


def _line(one: dict[str, Any]) -> str:
    """Say a result in a line, while the others run."""
    faster = speedup(one)
    gained = "no bundle" if faster is None else f"{faster:.2f}x, {one['verdict']}, {one['label']}"
    return "; ".join(
        [f"{one['case']} ({one['way']}): {gained}", *filter(None, [one["failed"]]), *one["wrong"]]
    )


def misses(found: list[dict[str, Any]]) -> list[str]:
    """Say which figures of these results miss their aims, one in a line."""
    gains = {one["case"]: faster for one in found if (faster := speedup(one)) is not None}
    firsts = [one["first_s"] for one in found if "first_s" in one]
    mean = float(np.exp(np.mean(np.log([*gains.values()])))) if gains else MEAN
    median = float(np.median(firsts)) if firsts else 0.0
    said = [f"MISSED a mean of {MEAN}x: {mean:.2f}x"] if mean < MEAN else []
    said += [f"MISSED {LEAST}x: {case} {one:.2f}x" for case, one in gains.items() if one < LEAST]
    if median > FIRST_S:
        said.append(f"MISSED a first answer after {FIRST_S} s in the median: {median:.0f} s")
    return said


def table(found: list[dict[str, Any]]) -> str:
    """Write a table of results, and what they come to below it."""
    if not found:
        return "no results yet"
    rows = [COLUMNS, *map(_row, sorted(found, key=lambda one: (one["case"], one["way"])))]
    gains = [faster for one in found if (faster := speedup(one)) is not None]
    firsts = [one["first_s"] for one in found if "first_s" in one]
    said = [aligned(rows), ""]
    if gains:
        mean = float(np.exp(np.mean(np.log(gains))))
        said.append(
            f"{len(gains)} bundles of {len(found)}: {mean:.2f}x in the geometric mean, "
            f"the least {min(gains):.2f}x"
        )
        said.append(
            f"first certified answer: {np.median(firsts):.0f} s in the median, "
            f"{max(firsts):.0f} s at most"
        )
    said += [
        f"WRONG {one['case']} ({one['way']}): {line}" for one in found for line in one["wrong"]
    ]
    return "\n".join(said)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    faster, floor_ns, latency_ns = speedup(one), one.get("floor_ns"), one.get("latency_ns")
    why = one["failed"] or (one["wrong"] or [""])[0]
    if not why and faster is not None and faster < _LITTLE:
        why = f"{one['why']}; {_closest(one)}"
    return (
        one["case"],
        one["way"],
        "-" if faster is None else f"{faster:.2f}x",
        one.get("verdict", "-"),
        one.get("label", "-"),
        f"{one['seconds']:.0f} s" if "seconds" in one else "-",
        f"{one['first_s']:.0f} s" if "first_s" in one else "-",
        f"{latency_ns / floor_ns:.1f}x over" if floor_ns and latency_ns else _unfloored(one),
        why,
    )


def _unfloored(one: dict[str, Any]) -> str:
    unknown = one.get("uncounted")
    return f"{unknown} layers unknown" if unknown else "-"


def _closest(one: dict[str, Any]) -> str:
    """Return the inexact candidates that were judged, in their own words."""
    judged = [f"{who}: {said}" for who, said in one.get("tried", {}).items() if "lost" in said]
    return "; ".join(judged[:3]) or "no inexact candidate was judged"


if __name__ == "__main__":
    sys.exit(main())
