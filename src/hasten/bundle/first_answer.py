"""One start of a process up to its first answer, timed from within; `cold` runs it in fresh processes.

It is run by `python -c` with as little as possible before the first time is taken.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

SAMPLE = "sample"
"""Name of the file with a chain's sample, in the folder of a start."""


def answer(began_ns: int, what: str, which: str, cache: str, engines: str, work: str) -> None:
    """Open a bundle or a chain, answer one request, and write the stages' ends, a chain's batch sizes and the answers' hash.

    Args:
        began_ns: Reading of the monotonic clock before this module was imported.
        what: Folder of the bundle; or the chain, by a line or a file.
        which: "winner" or "exact".
        cache: Folder of compiled models, or "off".
        engines: Names of the engines that run, with commas between them.
        work: Folder with `request.npz`, or with a chain's sample; `start.json` is written there.
    """
    ends = [began_ns]
    import numpy as np

    from hasten.bundle import load
    from hasten.engines.base import Engine

    chained = os.path.exists(f"{work}/{SAMPLE}")  # noqa: PTH110 - pathlib would be loaded for it
    if chained:
        from hasten.bundle.chains import open_chain
    for name in engines.split(","):
        Engine.member(name).version()
    ends.append(time.monotonic_ns())
    opened: Any = (open_chain if chained else load)(
        what, which="exact" if which == "exact" else "winner", cache=cache
    )
    ends.append(time.monotonic_ns())
    if chained:
        with open(f"{work}/{SAMPLE}", "rb") as file:  # noqa: PTH123
            sample = file.read()
        ready = time.monotonic_ns()
        answered = opened.decide(sample)
    else:
        with np.load(f"{work}/request.npz", allow_pickle=False) as archive:
            request = dict(archive)
        ready = time.monotonic_ns()
        answered = opened(request)
    first_ns = time.monotonic_ns() - ready
    processor_ns = time.process_time_ns()
    if chained:
        text = json.dumps(answered, default=repr)
        answered = {"decision": np.frombuffer(text.encode(), np.uint8)}
    import hashlib

    whole = hashlib.sha256()
    for name, array in sorted(answered.items()):
        whole.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    members = opened.members.values() if chained else [opened]
    said = {
        "ends_ns": ends,
        "first_ns": first_ns,
        "processor_ns": processor_ns,
        "from_cache": any(one.from_cache for one in members),
        "batch_sizes": json.dumps(opened.batch_sizes if chained else {}),
        "answers": whole.hexdigest(),
    }
    with open(f"{work}/start.json", "w") as file:  # noqa: PTH123 - pathlib would be loaded for it
        json.dump(said, file)
    opened.close()


def main() -> None:
    """Read the arguments of `answer`, the time first."""
    began_ns, *rest = sys.argv[1:]
    answer(int(began_ns), *rest)
