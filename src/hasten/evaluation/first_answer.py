"""One start of a process up to its first answer, timed from within; `cold` runs it in fresh processes.

It is run by `python -c` with as little as possible before the first time is taken.
"""

from __future__ import annotations

import json
import sys
import time


def answer(began_ns: int, bundle: str, which: str, cache: str, engines: str, work: str) -> None:
    """Open a bundle, answer one request, and write the stages' ends and the answers' hash.

    Args:
        began_ns: Reading of the monotonic clock before this module was imported.
        bundle: Folder of the bundle.
        which: "winner" or "exact".
        cache: Folder of compiled models, or "off".
        engines: Names of the engines that run, with commas between them.
        work: Folder with `request.npz`, in which `start.json` is written.
    """
    ends = [began_ns]
    import numpy as np

    from hasten.bundle import load
    from hasten.engines.base import Engine

    for name in engines.split(","):
        Engine.member(name).version()
    ends.append(time.monotonic_ns())
    loaded = load(bundle, which="exact" if which == "exact" else "winner", cache=cache)
    ends.append(time.monotonic_ns())
    with np.load(f"{work}/request.npz", allow_pickle=False) as archive:
        request = dict(archive)
    ready = time.monotonic_ns()
    answers = loaded(request)
    first_ns = time.monotonic_ns() - ready
    import hashlib

    whole = hashlib.sha256()
    for name, array in sorted(answers.items()):
        whole.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    said = {
        "ends_ns": ends,
        "first_ns": first_ns,
        "from_cache": loaded.from_cache,
        "answers": whole.hexdigest(),
    }
    with open(f"{work}/start.json", "w") as file:  # noqa: PTH123 - pathlib would be loaded for it
        json.dump(said, file)
    loaded.close()


def main() -> None:
    """Read the arguments of `answer`, the time first."""
    began_ns, *rest = sys.argv[1:]
    answer(int(began_ns), *rest)
