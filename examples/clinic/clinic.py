"""Breast cancer by 30 measurements: how many cancers the faster model may miss is certified, and each answer recorded."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hasten
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.measure.intervals import paired_ratio

HERE = str(Path(__file__).resolve())
THRESHOLD = 0.2
"""Least probability of a malignant tumor that is reported: to miss one is worse than to report one too many."""
MARGIN = 0.15
"""Distance from the threshold within which a person decides."""
MAX_LOST = 0.03
"""Largest share of the malignant tumors that the faster model may lose."""
ROUNDS = 30

Part = tuple[np.ndarray, np.ndarray]
Answer = Callable[[bytes], Any]


@cache
def data() -> tuple[tuple[str, ...], Part, Part]:
    """Return the columns, and what trains and what judges: rows, and 1 for malignant.

    Three rows in ten train. Only malignant tumors tell of sensitivity, so most of them judge.
    """
    given = load_breast_cancer()
    x, malignant = given.data.astype(np.float32), (given.target == 0).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    classes = [order[malignant[order] == one] for one in (0, 1)]
    train, judge = (
        np.concatenate([part[cut(len(part))] for part in classes])
        for cut in (lambda n: slice(3 * n // 10), lambda n: slice(3 * n // 10, n))
    )
    columns = tuple(name.replace(" ", "_") for name in map(str, given.feature_names))
    return columns, (x[train], malignant[train]), (x[judge], malignant[judge])


class Network(torch.nn.Module):
    """30 numbers as they were measured to the probability of a malignant tumor, `(batch, 1)`."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("factor", 1 / std)
        sizes = (30, 32, 16)
        hidden = [torch.nn.Linear(*pair) for pair in pairwise(sizes)]
        layers = [layer for one in hidden for layer in (one, torch.nn.ReLU())]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardize a batch and classify it."""
        return torch.sigmoid(self.layers((x - self.mean) * self.factor))


@cache
def model() -> Network:
    """Train the network, which takes about a second; `clinic.py:model` names it to hasten."""
    torch.manual_seed(0)
    x, malignant = (torch.from_numpy(array) for array in data()[1])
    network = Network(x.mean(0), x.std(0))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy(network(x)[:, 0], malignant.float())
        torch.autograd.backward(loss)
        optimizer.step()
    return network.eval()


def right(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Score 1 for each right decision; over malignant tumors alone, the mean is the sensitivity."""
    (probability,) = outputs.values()
    return (probability[:, 0] >= np.float32(THRESHOLD)) == labels


right.binary = True


class Audit:
    """Record of each answer, a line of JSON, written before the answer is given.

    Args:
        file: File to append to.
        bundle: Folder of the bundle that answers.
        answer: Function from a row's bytes to the decision: a bundle's own, or a server's.
    """

    def __init__(self, file: Path, bundle: Path, answer: Answer) -> None:
        self._digest = json.loads((bundle / "manifest.json").read_text())["digest"]
        self._answer = answer
        self._file = file.open("ab", buffering=0)

    def __call__(self, row: bytes) -> Any:
        began_ns = time.perf_counter_ns()
        decision: Any = None
        try:
            decision = self._answer(row)
            return decision
        except Exception as error:
            decision = {"error": str(error)}
            raise
        finally:
            line = {
                "time": datetime.now(UTC).isoformat(),
                "bundle": self._digest,
                "input": hashlib.sha256(row).hexdigest(),
                "decision": decision,
                "latency_us": (time.perf_counter_ns() - began_ns) / 1_000,
            }
            self._file.write(msgspec.json.encode(line) + b"\n")  # in one piece, unbuffered

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def served(bundle: Path) -> Iterator[Answer]:
    """Run `hasten serve`, and yield a function that asks it."""
    code = "from hasten.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", f"clinic={bundle}", "--http", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = iter(process.stdout.readline, "")
            found = next(filter(None, (re.search(r"http://\S+:(\d+)", line) for line in said)))
            next(line for line in said if line.strip() == "ready")
            url = f"http://127.0.0.1:{found[1]}/v2/models/clinic/infer"

            def ask(row: bytes) -> Any:
                request = urllib.request.Request(url, row, {"Content-Type": "text/plain"})
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)["decision"]

            yield ask
        finally:
            process.terminate()
            process.communicate()


def eager(row: bytes) -> Any:
    """Decide by torch, as a program does that has the network in hand."""
    given, network = json.loads(row), model()
    with torch.inference_mode():
        x = torch.tensor([[given[column] for column in data()[0]]], dtype=torch.float32)
        score = network(x).item()
    return {"positive": score >= THRESHOLD, "score": score}


@cache
def classifier() -> Any:
    """Train scikit-learn's own network of the same size on the same rows."""
    x, malignant = data()[1]
    network = MLPClassifier((32, 16), max_iter=2_000, random_state=0)
    return make_pipeline(StandardScaler(), network).fit(x, malignant)


def sklearn_like(row: bytes) -> Any:
    """Decide by scikit-learn's pipeline, another network."""
    given = json.loads(row)
    score = classifier().predict_proba([[given[column] for column in data()[0]]])[0, 1]
    return {"positive": bool(score >= THRESHOLD), "score": float(score)}


def in_turns(
    ways: Mapping[str, Answer], rows: list[bytes], rounds: int
) -> dict[str, dict[int, list[int]]]:
    """Time each way's answer to single rows, in turns in random order; nanoseconds by way and round."""
    rng, taken = np.random.default_rng(0), {way: {} for way in ways}
    for number in range(rounds):
        for way in rng.permutation(list(ways)):
            picked = [rows[i] for i in rng.integers(len(rows), size=60)]
            for row in picked[:10]:
                ways[way](row)
            taken[way][number] = block = []
            for row in picked[10:]:
                began_ns = time.perf_counter_ns()
                ways[way](row)
                block.append(time.perf_counter_ns() - began_ns)
    return taken


def told(decisions: list[dict[str, Any]], malignant: np.ndarray) -> dict[str, Any]:
    """Count what was decided on the judging rows, and what abstaining costs and saves."""
    left = np.array([one["abstained"] for one in decisions])
    reported = np.array([one.get("positive", False) for one in decisions])
    by_score = np.array([one["score"] >= THRESHOLD for one in decisions])
    sick = malignant == 1
    return {
        "rows": len(sick),
        "abstained": int(left.sum()),
        "abstained, malignant": int((left & sick).sum()),
        "missed": int((sick & ~left & ~reported).sum()),
        "missed if it never abstained": int((sick & ~by_score).sum()),
        "false alarms": int((~sick & reported).sum()),
        "false alarms if it never abstained": int((~sick & by_score).sum()),
    }


def run(out: Path, effort: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Make the bundle, certify its sensitivity, record and time its answers; return all that is printed."""
    columns, train, (x, malignant) = data()
    labels = ("benign", "malignant")
    pipeline = Pipeline((Row(columns),), (Threshold(THRESHOLD, MARGIN, labels=labels),))
    metric = f"{HERE}:right"
    options: Any = {"metric": metric, "guard": "lost", "effort": effort, "out": out}
    # The search gets rows that trained, so that every other malignant tumor is left for one certificate.
    # A network of 1,500 weights gains nothing by rounding them: only engines are tried.
    made = hasten.optimize(
        f"{HERE}:model", train, pipeline=pipeline, passes=(), max_drop=0.05, **options
    )
    sick = malignant == 1
    held = hasten.certify(
        out,
        (x[sick], malignant[sick]),
        metric=metric,
        guard="lost",
        max_drop=MAX_LOST,
        confidence=0.95,
    )
    rows = [json.dumps(dict(zip(columns, row, strict=True))).encode() for row in x.tolist()]
    audit_file = out.with_suffix(".audit.jsonl")
    with hasten.load(out) as loaded:
        decisions = [loaded.decide(row) for row in rows]
        audit = Audit(audit_file, out, loaded.decide)
        torch.set_num_threads(1)  # faster for one small row
        ways = {"torch, eager": eager, "scikit-learn": sklearn_like}
        ways |= {"hasten": loaded.decide, "hasten, recorded": audit}
        taken = in_turns(ways, rows, rounds)
        audit.close()
    with served(out) as ask:
        audit = Audit(audit_file, out, ask)
        answers = [audit(row) for row in rows[:20]]
        audit.close()
    return {
        "model": next(row.label for row in made.rows[::-1]),
        "status": made.status,
        "kind": held.kind,
        "certificate": held.judgement.in_words(),
        "n": held.judgement.n,
        "passed": held.passed,
        "sensitivity": float(
            np.mean([eager(row)["positive"] for row, one in zip(rows, sick, strict=True) if one])
        ),
        "decisions": told(decisions, malignant),
        "decided otherwise by torch": sum(
            eager(row)["positive"] != (one["score"] >= THRESHOLD)
            for row, one in zip(rows, decisions, strict=True)
        ),
        "served as in Python": answers == decisions[:20],
        "audit": str(audit_file),
        "taken": taken,
    }


def say(found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{found['model']} ({found['status']})")
    print(f"on {found['kind']}, {found['n']} malignant tumors: {found['certificate']}")
    needed = {
        share: int(np.ceil(np.log(0.05) / np.log1p(-share))) for share in (0.01, 0.005, 0.001)
    }
    more = ", ".join(f"{share:.1%} takes {n:,}" for share, n in needed.items())
    print(f"with none lost, a bound of {more} malignant tumors that nobody has seen")
    print(f"sensitivity of the network itself: {found['sensitivity']:.1%}")
    for name, count in found["decisions"].items():
        print(f"  {name}: {count}")
    print(f"decided otherwise than by torch: {found['decided otherwise by torch']}")
    print(f"served as in Python: {found['served as in Python']}; records in {found['audit']}")
    print(
        "\n| from a row's JSON to the decision | p50 | p99 | times torch's p50 |\n|---|---|---|---|"
    )
    for way, rounds in found["taken"].items():
        each = np.concatenate(list(rounds.values())) / 1_000
        ratio = paired_ratio(rounds, found["taken"]["torch, eager"])
        p50, p99 = np.quantile(each, [0.5, 0.99])
        print(
            f"| {way} | {p50:.1f} µs | {p99:.1f} µs | {ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("clinic.hasten"))
    parser.add_argument("--effort", default="quick", choices=("quick", "normal", "thorough"))
    asked = parser.parse_args()
    result = run(asked.out, asked.effort)
    say(result)
    sys.exit(0 if result["passed"] else 1)
