"""Send changed pictures, texts, rows and pictures for a chain by the million, and look whether answers stay right.

    python -m fuzz.crowd [--requests 1000000] [--seed 0] [--connections 8]

`python -m fuzz` looks at what each input does to the server's memory and to another client, which takes most of its
time. This sends many more inputs and looks at less: each answer must be one of the protocol, in which the server doesn't
say that it failed, and one of every hundred requests is a good one, whose answer must be the one that it had at first.
The server's memory is read at the end. All inputs follow from the seed. The exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.isolated import peak_kib
from fuzz.served import Running
from fuzz.surfaces.http import request
from fuzz.surfaces.images import Images
from fuzz.surfaces.media import Pictures, as_elements, of_samples
from fuzz.surfaces.samples import Rows, Texts

_GOOD = 100
"""Requests of which one is good."""
_KNOWN = (200, 400, 413, 503)
_RAW = 0.2
"""Share of the requests that send their sample as a tensor."""
_TOLD = 20
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Kind:
    """Samples of one kind.

    Attributes:
        model: Name of the model or chain that takes them.
        content: Content-Type of a sample that is the body.
        good: Good samples.
        changed: Function that makes a sample of a good one.
    """

    model: str
    content: str
    good: list[bytes]
    changed: Callable[[random.Random, bytes], bytes]


class _Short(Texts):
    """Short texts: long ones are made slowly, and the other fuzzer sends them."""

    times = (1, 2, 8, 100)


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        asked: Number of requests that were begun.
        counts: Model and status -> number of answers.
        wrong: Faults that were found, a line each, up to a few.
    """

    asked: int = 0
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def kinds(folder: Path) -> list[Kind]:
    """Return the kinds of samples."""
    images, texts, rows = Images(folder), _Short(folder), Rows(folder)
    pictures = Pictures(folder).files()
    return [
        Kind("colour", "image/png", pictures, images.changed),
        Kind("squares", "image/png", pictures, images.changed),
        Kind("text", texts.kind, texts.files(), texts.changed),
        Kind("row", rows.kind, rows.files(), rows.changed),
    ]


def of_number(kinds: list[Kind], seed: int, number: int) -> tuple[Kind, int, bytes]:
    """Return a request by its number: its kind, the place of its good sample or -1, and its bytes."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choice(kinds)
    place = rng.randrange(len(kind.good))
    good = number % _GOOD == 0
    sample = kind.good[place] if good else kind.changed(rng, kind.good[place])
    path = f"v2/models/{kind.model}/infer"
    if not good and rng.random() < _RAW:
        data = of_samples(path, as_elements(sample, 1), 1)
    else:
        data = request(path, sample, [("Content-Type", kind.content)], "POST")
    return kind, place if good else -1, data


async def answered(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    """Return an answer's status, whether the connection stays open, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = head.split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    return int(lines[0].split()[1]), fields.get("connection") != "close", body


async def client(
    port: int,
    kinds: list[Kind],
    seed: int,
    most: int,
    tally: Tally,
    known: dict[tuple[str, int], bytes],
) -> None:
    """Send requests over one connection after another until so many were begun."""
    reader = writer = None
    while tally.asked < most:
        number, tally.asked = tally.asked, tally.asked + 1
        kind, place, data = of_number(kinds, seed, number)
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert reader is not None
            writer.write(data)
            status, stays, body = await asyncio.wait_for(answered(reader), _PATIENCE_S)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            tally.wrong.append(f"request {number} to {kind.model}: no answer: {error!r:.200}")
            if len(tally.wrong) >= _TOLD:
                return  # the server is gone, or as good as that
            if writer is not None:
                writer.close()
            writer = None
            continue
        tally.counts[kind.model, status] += 1
        if (why := fault(status, body, place, known.get((kind.model, place)))) and len(
            tally.wrong
        ) < _TOLD:
            tally.wrong.append(f"request {number} to {kind.model}: {why}")
        if not stays:
            writer.close()
            writer = None


def fault(status: int, body: bytes, place: int, right: bytes | None) -> str:
    """Return why an answer isn't one that may come; "" if it may."""
    if status not in _KNOWN:
        return f"status {status}: {body[:200]!r}"
    if place >= 0 and body != right:
        return (
            f"a good request was answered by {status} {body[:200]!r} where {right!r:.200} is right"
        )
    if status != 200:
        said = json.loads(body)["error"]
        if not said.isprintable():
            return f"a message that a terminal can't show: {said[:200]!r}"
    return ""


async def crowd(port: int, kinds: list[Kind], seed: int, most: int, connections: int) -> Tally:
    """Learn the right answers, and send the requests over several connections."""
    known: dict[tuple[str, int], bytes] = {}
    for kind in kinds:
        for place, sample in enumerate(kind.good):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            path = f"v2/models/{kind.model}/infer"
            writer.write(request(path, sample, [("Content-Type", kind.content)], "POST"))
            status, _, body = await asyncio.wait_for(answered(reader), _PATIENCE_S)
            writer.close()
            if status != 200:
                raise SystemExit(
                    f"{kind.model}: a good request was answered by {status} {body[:200]!r}"
                )
            known[kind.model, place] = body
    tally = Tally()
    clients = (client(port, kinds, seed, most, tally, known) for _ in range(connections))
    await asyncio.gather(*clients)
    return tally


def main() -> None:
    """Read the command line, send, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.crowd", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connections", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Running(Path(place), watched=False) as running:
        made, began_s, pid = kinds(Path(place)), time.monotonic(), running.server.serving_pid()
        port = running.server.http_port
        tally = asyncio.run(crowd(port, made, given.seed, given.requests, given.connections))
        if running.died:
            tally.wrong.append("the process that serves died")
        took_s = time.monotonic() - began_s
        print(f"{tally.asked:,} requests in {took_s:,.0f} s, seed {given.seed}")
        for (model, status), count in sorted(tally.counts.items()):
            print(f"  {model}: {count:,} answers with status {status}")
        if not running.died:
            print(f"  the server's memory at its peak: {peak_kib(pid) >> 10:,} MiB")
        for line in tally.wrong:
            print(f"  wrong: {line}")
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
