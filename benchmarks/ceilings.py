"""hasten's ceilings beside what other tools reach on the same machine, in turns within one run.

    python benchmarks/ceilings.py [TOOL ...] [--turns 6] [--threads N]

Each turn measures hasten's ceilings anew and asks every tool once, in random order, each in a process
of its own and by the same rule: the best of the medians of short blocks. Prints a Markdown table; the
ratio is hasten's figure over the tool's, turn by turn, with a 95% interval. Tools that aren't there or
lack a precision are said to be so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.target import Target
from hasten.measure.bandwidth import caches
from hasten.measure.ceilings import measure
from hasten.measure.roofline import Ceilings

BLOCKS, BLOCK_NS = 10, 50_000_000
SIDE = 1024
Tool = Callable[[Target], tuple[Callable[[], Any], float]]
"""Gives a call, and how many operations or bytes it is."""

STREAM_COPY = """
#include <emmintrin.h>
#include <stddef.h>
void fill(double *a, size_t n) {
    #pragma omp parallel for
    for (size_t i = 0; i < n; i++) a[i] = 1.0;
}
void copy(double *restrict c, const double *restrict a, size_t n, size_t times) {
    for (size_t t = 0; t < times; t++) {
        #pragma omp parallel for
        for (size_t i = 0; i < n; i++) c[i] = a[i];
    }
}
void copy_around(double *restrict c, const double *restrict a, size_t n, size_t times) {
    for (size_t t = 0; t < times; t++) {
        #pragma omp parallel for
        for (size_t i = 0; i < n; i += 2) _mm_stream_pd(c + i, _mm_load_pd(a + i));
    }
}
"""


def openblas(target: Target) -> tuple[Callable[[], Any], float]:
    """numpy's own OpenBLAS."""
    a, b, c = (np.random.default_rng(i).random((SIDE, SIDE), np.float32) for i in range(3))
    return lambda: np.matmul(a, b, out=c), 2.0 * SIDE**3


def torch_mm(kind: str) -> Tool:
    """PyTorch's matrix product: MKL's in f32, oneDNN's in bf16."""

    def tool(target: Target) -> tuple[Callable[[], Any], float]:
        import torch

        torch.set_num_threads(target.threads)
        a, b = (torch.rand(SIDE, SIDE).to(getattr(torch, kind)) for _ in range(2))
        c = torch.empty(SIDE, SIDE, dtype=a.dtype)
        return lambda: torch.mm(a, b, out=c), 2.0 * SIDE**3

    return tool


def torch_convolution(target: Target) -> tuple[Callable[[], Any], float]:
    """PyTorch's convolution, oneDNN's, between blocked layouts of oneDNN's own."""
    import torch
    from torch.utils.mkldnn import to_mkldnn

    torch.set_num_threads(target.threads)
    torch.set_grad_enabled(False)
    layer = to_mkldnn(torch.nn.Conv2d(128, 128, 3, bias=False).eval())
    x = torch.rand(target.threads, 128, 30, 30).to_mkldnn()
    return lambda: layer(x), 2.0 * target.threads * 28**2 * 128**2 * 9


def torch_int8(target: Target) -> tuple[Callable[[], Any], float]:
    """PyTorch's int8 linear layer: oneDNN's product of uint8 and int8."""
    import torch

    torch.set_num_threads(target.threads)
    x = torch.randint(0, 127, (SIDE, SIDE), dtype=torch.uint8)
    w = torch.randint(-63, 63, (SIDE, SIDE), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(w, x.shape)
    scales, zeros = torch.full((SIDE,), 0.01), torch.zeros(SIDE, dtype=torch.int64)

    def call() -> Any:
        return torch.ops.onednn.qlinear_pointwise(
            *(x, 0.01, 0, packed, scales, zeros, None, 1.0, 0, torch.uint8, "none", [], "")
        )

    return call, 2.0 * SIDE**3


def far_bytes(target: Target) -> int:
    """Return the size of two arrays of which each is four times what all caches hold: STREAM's rule."""
    return max(8 * sum(cache.total_bytes for cache in caches(target)), 1 << 27)


def near_bytes(target: Target) -> int:
    """Return a size that the last cache holds and those before it don't."""
    return caches(target)[-1].total_bytes // 4


def stream(size_bytes: Callable[[Target], int], copy: str = "copy") -> Tool:
    """STREAM's copy loop in C with OpenMP, by gcc -O3: with ordinary stores, or around the caches."""

    def tool(target: Target) -> tuple[Callable[[], Any], float]:
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "copy.c", Path(folder) / "copy.so"
            source.write_text(STREAM_COPY)
            options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
            subprocess.run(["gcc", *options, source, "-o", library], check=True)
            loaded = ctypes.CDLL(str(library))
        size = size_bytes(target) // 32 * 2
        a, c = (np.empty(size) for _ in range(2))
        to, origin = (array.ctypes.data_as(ctypes.c_void_p) for array in (c, a))  # keep them alive
        times = max(1, (1 << 26) // (16 * size))
        count = (ctypes.c_size_t(size), ctypes.c_size_t(times))
        loaded.fill(to, count[0])
        loaded.fill(origin, count[0])
        return lambda: loaded[copy](to, origin, *count), 16.0 * size * times

    return tool


def torch_copy(target: Target) -> tuple[Callable[[], Any], float]:
    """PyTorch's copy."""
    import torch

    torch.set_num_threads(target.threads)
    size = far_bytes(target) // 8
    a, c = torch.rand(size), torch.rand(size)
    return lambda: c.copy_(a), 8.0 * size


TOOLS: dict[str, tuple[str, Tool]] = {
    "numpy (OpenBLAS), product": ("f32", openblas),
    "torch (MKL), product": ("f32", torch_mm("float32")),
    "torch (oneDNN), convolution": ("f32", torch_convolution),
    "torch (oneDNN), bf16 product": ("bf16", torch_mm("bfloat16")),
    "torch (oneDNN), int8 product": ("i8", torch_int8),
    "STREAM copy in C, memory": ("memory", stream(far_bytes)),
    "the same around the caches": ("memory", stream(far_bytes, "copy_around")),
    "torch, copy in memory": ("memory", torch_copy),
    "STREAM copy in C, last cache": ("last cache", stream(near_bytes)),
}


def figures(found: Ceilings) -> dict[str, tuple[float, str]]:
    """Return what is compared -> hasten's figure, and who reached it."""
    reached = {
        name: (rate, found.reached_by[name]) for name, rate in found.operations_per_s.items()
    }
    *_, last, memory = found.levels
    reached["memory"] = (memory.copied_bytes_per_s, "numpy, copy")
    return reached | {"last cache": (last.copied_bytes_per_s, "numpy, copy")}


def best_rate(call: Callable[[], Any], amount: float) -> float:
    """Return the best of the medians of short blocks, per second."""
    begin = time.perf_counter_ns()
    call()
    each_ns = []
    while time.perf_counter_ns() - begin < 3 * BLOCK_NS:
        start = time.perf_counter_ns()
        call()
        each_ns.append(time.perf_counter_ns() - start)
    count = max(3, BLOCK_NS // max(1, min(each_ns, default=BLOCK_NS)))
    medians = []
    for _ in range(BLOCKS):
        block = []
        for _ in range(count):
            start = time.perf_counter_ns()
            call()
            block.append(time.perf_counter_ns() - start)
        medians.append(statistics.median(block))
    return amount * 1e9 / min(medians)


def ask(name: str, target: Target) -> float | str:
    """Ask a tool in a process of its own; a string says why it can't."""
    if TOOLS[name][0] == "bf16" and not any("bf16" in isa for isa in target.isa):
        return "this processor has no bf16"
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, __file__, "--tool", name, "--threads", str(target.threads)],
        env={**os.environ, **dict.fromkeys(variables, str(target.threads))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return (done.stderr.strip() or "no message").splitlines()[-1]
    return float(json.loads(done.stdout))


def turns(
    target: Target, tools: list[str], count: int
) -> tuple[list[Ceilings], dict[str, list[float | str]]]:
    """Take turns."""
    ours: list[Ceilings] = []
    theirs: dict[str, list[float | str]] = {name: [] for name in tools}
    for number in range(count):
        order = ["", *tools]
        random.Random(number).shuffle(order)
        for name in order:
            if name:
                theirs[name].append(ask(name, target))
                continue
            with tempfile.TemporaryDirectory() as folder:
                ours.append(measure(target, Path(folder)))
    return ours, theirs


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Write the mean ratio of turns, with its 95% interval."""
    from scipy.stats import t

    logs = np.log(ours) - np.log(theirs)
    if len(logs) < 2:
        return f"{np.exp(logs[0]):.2f}"
    reach = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    low, middle, high = np.exp([logs.mean() - reach, logs.mean(), logs.mean() + reach])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def line(name: str, ours: list[Ceilings], theirs: list[float | str]) -> str:
    """One row of the table."""
    what = TOOLS[name][0]
    own = [figures(one).get(what) for one in ours]
    reasons = [one for one in theirs if isinstance(one, str)]
    reached = [one for one in own if one is not None]
    figure, by = max(reached, default=(0.0, "not on this processor"))
    cells = [what, f"{figure / 1e9:.1f}", by, name]
    numbers = [one for one in theirs if not isinstance(one, str)]
    if reasons or not reached:
        cells += ["-", "-", (reasons or ["-"])[0]]
    else:
        best = max(numbers)
        paired = ratio([rate for rate, _ in reached], numbers)
        cells += [f"{best / 1e9:.1f}", f"{figure / best:.2f}", paired]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", nargs="*", default=list(TOOLS), metavar="TOOL")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--threads", type=int, default=Target.host().threads)
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    target = Target.host().with_threads(arguments.threads)
    if arguments.tool:
        print(json.dumps(best_rate(*TOOLS[arguments.tool][1](target))))
        return
    begin = time.monotonic()
    ours, theirs = turns(target, arguments.tools, arguments.turns)
    seconds = time.monotonic() - begin
    print(
        f"{target.processor}, {target.threads} thread(s), {len(ours)} turns in {seconds:.0f} s; "
        "billions per second: operations, or bytes copied (read and written)\n"
    )
    print("| ceiling | hasten | by | tool | its figure | best over best | turn by turn |")
    print("|---|---|---|---|---|---|---|")
    for name, asked in theirs.items():
        print(line(name, ours, asked))


if __name__ == "__main__":
    main()
