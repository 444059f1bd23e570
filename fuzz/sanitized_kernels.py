"""Run the C of byte networks, for shapes drawn at random and for damaged plans, with its memory checked.

    python -m fuzz.sanitized_kernels [--runs 100] [--seed 1]

Each run draws some operations of bytes, a processor, a number of threads and rows of a batch. Every other
run damages the plan until one is found that hasten takes. The C is compiled and run twice:

- in plain C, laid out for that processor, with the address and undefined-behaviour sanitizers, and each
  array in memory of exactly its size;
- as it ships to this processor, since sanitizers don't see what instructions that are spelled out read and
  write: between pages that nobody may touch, once with each array right behind such a page, and once right before
  one.

The answers of plans that weren't damaged must equal numpy's integers. What fails ends the program with a report
and the seed of that run alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutation import changed_leaves
from tests.engines.test_compiled_bytes import ENDS
from tests.engines.test_compiled_words import FORMS, elementwise
from tests.engines.test_compiled_words import MadeOfWords as Made
from tests.support.plans import PROCESSORS, WITH_AMX, planned

from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled import source
from hasten.engines.compiled.operators.int8.elementwise import (
    Add8,
    Dequantize,
    Multiply8,
    Quantize,
    Table8,
)
from hasten.engines.compiled.operators.int8.numbers import Sum8
from hasten.engines.compiled.operators.int8.pools import Pool8
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.source import Source, write
from hasten.engines.compiled.tensors import product
from hasten.errors import HastenError

_TRIES = 200
"""Damages of a plan of which one should be taken."""
_MOST_WORK = 1 << 26
"""Most work of a damaged plan for one row."""
_LIMIT_S = 300.0
_AVX2 = replace(Target.host(), isa=("avx2", "fma"))
_LAYOUTS = (*(target for target, _ in PROCESSORS.values()), WITH_AMX, _AVX2)
_HERE = [target for target, spelled in PROCESSORS.values() if spelled]
_HERE += [_AVX2] if "avx2" in Target.host().isa else []
_SPELLED = {
    **{
        f"#define {name} 1": f"#define {name} 0"
        for name in ("X86", "ARM", "AVX", "AVX512", "NATIVE")
    },
    "defined(__AMX_INT8__)": "0",
    "#ifdef DOT": "#if 0",
}
"""What makes plain C of C that spells instructions."""
_COMMON = ("-std=gnu11", "-march=native", "-w", "-fno-math-errno", "-ffp-contract=fast")
_SANITIZED = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_DRIVER = r"""
extern void *malloc(unsigned long);
extern void *mmap(void *, unsigned long, int, int, int, long);
extern int open(const char *, int, ...), mprotect(void *, unsigned long, int);
extern long read(int, void *, unsigned long), write(int, const void *, unsigned long);
extern void exit(int);
#ifdef GUARD
static u8 *place(long size, long unit) {
  const long page = 1 << 16, whole = (size + page - 1) / page * page;
  u8 *memory = mmap(0, whole + 2 * page, 3, 0x22, -1, 0);
  if (memory == (u8 *)-1 || mprotect(memory, page, 0) || mprotect(memory + page + whole, page, 0)) exit(3);
  return memory + page + (GUARD ? whole - (size + unit - 1) / unit * unit : 0);
}
#else
extern void *aligned_alloc(unsigned long, unsigned long);
static u8 *place(long size, long unit) {
  return unit == 1 ? malloc(size) : aligned_alloc(unit, (size + unit - 1) / unit * unit);
}
#endif
static void take_in(int file, u8 *to, long size) {
  for (long n; size > 0; size -= n, to += n) if ((n = read(file, to, size)) <= 0) exit(3);
}
int main(void) {
  i64 beyond[2];
  struct call c = {.beyond = beyond};
  const int tables = open("tables", 0), given = open("given", 0), made = open("made", 01101, 0600);
  u8 *weights = place(TABLES, 64);
  take_in(tables, weights, TABLES);
  c.rows = ROWS, c.weights = weights, c.arena = place(ARENA, 64);
  for (int i = 0; i < INPUTS; i++) take_in(given, (u8 *)(c.in[i] = place(ROWS * ROW_BYTES[i], 1)), ROWS * ROW_BYTES[i]);
  for (int i = 0; i < OUTPUTS; i++) c.out[i] = place(ROWS * ROW_BYTES[INPUTS + i], 1);
  TEAM;
  for (int again = 0; again < 2; again++) run(&c);
  for (int i = 0; i < OUTPUTS; i++) {
    const long size = ROWS * ROW_BYTES[INPUTS + i];
    if (write(made, c.out[i], size) != size) exit(3);
  }
  return 0;
}
"""


@dataclass(frozen=True)
class Drawn:
    """A plan that was drawn, and what it is run with.

    Attributes:
        plan: The plan.
        weights: Its constants.
        given: Inputs of all rows by name.
        wanted: Outputs of all rows by name, as numpy's integers give them.
        rows: Rows of a batch.
        threads: Threads that share a call.
    """

    plan: Plan
    weights: bytes
    given: dict[str, Array]
    wanted: dict[str, Array]
    rows: int
    threads: int


def drawn(seed: int) -> Drawn:
    """Return a plan of operations of bytes and words that follows from a seed."""
    made = Made(seed)
    rng = made.rng
    for _ in range(rng.integers(1, 5)):
        if rng.integers(2):
            conv = made.conv(str(rng.choice(ENDS)), **_shape(rng))
            made.constants[conv.weight] >>= seed % 4  # small ones have another form with AVX2
            made.operations.append(conv)
        else:
            form = FORMS[rng.integers(len(FORMS))]
            made.operations.append(made.conv16(*form, **_shape(rng)))
    others = (_elementwise, _multiplied, _pooled, _converted, _words)
    for at in rng.choice(len(others), 2, replace=False):
        others[at](made)
    rows = int(rng.choice([1, 1, 3]))
    plan, weights = planned(made.operations, made.constants, made.given, made.made, by_row=rows > 1)
    given = _rolled(made.given, rows)
    wanted: dict[str, list[Array]] = {}
    for row in range(rows):
        known = made.constants | {name: np.roll(array, row) for name, array in made.given.items()}
        for operation in made.operations:
            operation.calculate(known)
        for name in plan.outputs:
            wanted.setdefault(name, []).append(known[name].ravel())
    answers = {name: np.concatenate(arrays) for name, arrays in wanted.items()}
    return Drawn(plan, weights, given, answers, rows, int(rng.choice([1, 3])))


def _rolled(given: dict[str, Array], rows: int) -> dict[str, Array]:
    return {
        name: np.concatenate([np.roll(array, row) for row in range(rows)])
        for name, array in given.items()
    }


def _shape(rng: np.random.Generator) -> dict[str, Any]:
    """Return a random shape of a convolution, of few pixels."""

    def some(values: list[int]) -> tuple[int, int]:
        return int(rng.choice(values)), int(rng.choice(values))

    kind = rng.choice(["pointwise", "dense", "depthwise", "grouped"])
    groups = 1
    ins, outs = some([1, 3, 4, 7, 8, 16, 24, 31, 32, 40, 65, 96, 130])
    if kind == "pointwise":
        size = (int(rng.integers(1, 15)), int(rng.integers(1, 40)))
        return {"channels": (ins, outs), "size": size}
    if kind == "depthwise":
        groups = outs = ins
    elif kind == "grouped":
        groups = int(rng.integers(2, 5))
        ins, outs = groups * (ins // 4 + 1), groups * (outs // 4 + 1)
    kernel, dilations = some([1, 2, 3, 3, 3, 5, 7]), some([1, 1, 1, 2, 3])
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    far = int(rng.choice([0, 0, 0, 60]))  # pads beyond the picture and what is computed at once
    pads = tuple(int(rng.integers(0, one + far * rng.integers(2))) for one in (*reach, *reach))
    least = [max(1, reach[at] - pads[at] - pads[at + 2]) for at in (0, 1)]
    return {
        "channels": (ins, outs),
        "groups": groups,
        "size": tuple(int(rng.integers(one, one + 18)) for one in least),
        "kernel": kernel,
        "strides": some([1, 1, 2, 3]),
        "dilations": dilations,
        "pads": pads,
    }


def _words(made: Made) -> None:
    pixels, channels = (int(one) for one in made.rng.integers(1, 80, 2))
    elementwise(made, [(pixels, channels)])


def _elementwise(made: Made) -> None:
    size = int(made.rng.integers(1, 2000))
    summed = Sum8.near(
        (float(made.rng.uniform(0.1, 3)), float(made.rng.uniform(-2, 2))), (3, 200), made.rounding()
    )
    made.operations += [
        Table8(made.bytes(size), made.table(), made.output(size), size),
        Add8(made.bytes(size), made.bytes(size), made.output(size), size, summed),
    ]


def _multiplied(made: Made) -> None:
    pixels, channels = (int(one) for one in made.rng.integers(1, 80, 2))
    size = pixels * channels
    scale = made.constant(np.array([0.004], np.float32))
    for gate in (True, False):
        names = made.bytes(size), made.bytes(channels if gate else size), scale, made.output(size)
        zeros = (int(made.rng.integers(0, 256)), int(made.rng.integers(0, 256)))
        made.operations.append(Multiply8(*names, pixels, channels, gate, zeros, made.rounding()))


def _pooled(made: Made) -> None:
    rng = made.rng
    channels = int(rng.integers(1, 110))
    kernel = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
    top, left, bottom, right = (int(rng.integers(0, one)) for one in (*kernel, *kernel))
    pads = (top, left, bottom, right)
    size = (int(rng.integers(kernel[0], 16)), int(rng.integers(kernel[1], 16)))
    if rng.integers(2):
        kernel, pads = size, (0, 0, 0, 0)
    strides = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    for largest in (True, False):
        scale = "" if largest else made.constant(np.array([0.02], np.float32))
        bare = Pool8("", scale, "", channels, size, kernel, strides, pads, 9, None)
        result = made.output(product(bare.output_size) * channels)
        rounding = None if largest else made.rounding()
        given = made.bytes(product(size) * channels)
        made.operations.append(replace(bare, input=given, output=result, rounding=rounding))


def _converted(made: Made) -> None:
    pixels, channels = int(made.rng.integers(1, 200)), int(made.rng.integers(1, 40))
    size = pixels * channels
    floats = made.constant(made.rng.standard_normal(256).astype(np.float32))
    values = (made.rng.standard_normal(size) * 3).astype(np.float32)
    values[:5] = [np.nan, np.inf, -np.inf, 3e38, -0.0][:size]
    name = f"f{len(made.given)}"
    made.given[name] = values
    made.operations += [
        Dequantize(made.bytes(size), floats, made.output(size, "float32"), channels, pixels),
        Quantize(name, made.output(size), channels, pixels, 0.03, made.rounding()),
    ]


def damaged(one: Drawn, rng: random.Random) -> Drawn | None:
    """Return a damaged plan that hasten takes; None where none was found."""
    record = json.loads(json.dumps(to_record(one.plan)))
    words = [*record["tensors"], "float32", "int32", "int16", "int8", "uint8"]
    for _ in range(_TRIES):
        try:
            plan: Plan = from_record(Plan, changed_leaves(record, rng, words))
            plan.check(len(one.weights))
            write(plan, one.weights, Target.host())
        except HastenError:
            continue
        if plan == one.plan or plan.work > _MOST_WORK:
            continue
        bytes_of = {name: plan.tensor(name).bytes * one.rows for name in plan.inputs}
        given = {name: _noise(size, rng) for name, size in bytes_of.items()}
        return replace(one, plan=plan, given=given, wanted={})
    return None


def _noise(size: int, rng: random.Random) -> Array:
    return np.frombuffer(rng.randbytes(size), np.uint8)


@contextlib.contextmanager
def everything_shared() -> Iterator[None]:
    """Share operations among threads however small they are."""
    before = source.LEAST_SHARED, source.LEAST_TOGETHER
    source.LEAST_SHARED = source.LEAST_TOGETHER = 0
    try:
        yield
    finally:
        source.LEAST_SHARED, source.LEAST_TOGETHER = before


def plain(text: str) -> str:
    """Return C of which no instruction is spelled, so that sanitizers see all that it reads and writes."""
    for spelled, instead in _SPELLED.items():
        text = text.replace(spelled, instead)
    return text


def run_checked(one: Drawn, rng: random.Random, compiler: str, folder: Path) -> str:
    """Run a plan in both ways; return what went wrong, or nothing."""
    with everything_shared():
        layout = write(one.plan, one.weights, rng.choice(_LAYOUTS), one.threads)
        shipped = write(one.plan, one.weights, rng.choice(_HERE), one.threads)
    ways: list[tuple[str, Source, str, tuple[str, ...]]] = [
        ("plain C, sanitized", layout, plain(layout.text), _SANITIZED),
        ("as it ships, before a page", shipped, shipped.text, ("-O2", "-DGUARD=1")),
        ("as it ships, behind a page", shipped, shipped.text, ("-O2", "-DGUARD=0")),
    ]
    for name, written, text, flags in ways:
        if told := compiled_and_run(one, written, text, (compiler, *_COMMON, *flags), folder):
            return f"{name}: {told}"
    return ""


def compiled_and_run(
    one: Drawn,
    written: Source,
    text: str,
    command: tuple[str, ...],
    folder: Path,
    under: tuple[str, ...] = (),
) -> str:
    """Compile C and run it; return what went wrong, or nothing.

    Args:
        one: Plan with its inputs, and with its outputs unless it is damaged.
        written: Its C, with its tables.
        text: The C to compile.
        command: Compiler and its flags.
        folder: Folder for files.
        under: Words before the program: an emulator.
    """
    sizes = f"enum {{ TABLES = {len(written.tables)}, ARENA = {written.arena_bytes}, ROWS = {one.rows} }};\n"
    team = f"c.team = hasten_team({written.threads})" if written.threads > 1 else "c.team = 0"
    text = text[: text.index("/* Calls from Python")]
    (folder / "m.c").write_text(text + sizes + f"#define TEAM {team}\n" + _DRIVER)
    (folder / "tables").write_bytes(written.tables.data)
    names = (one.given[name] for name in one.plan.inputs)
    (folder / "given").write_bytes(b"".join(array.tobytes() for array in names))
    words = [*command, "-o", "m", "m.c", "-lm", "-lpthread"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"it doesn't compile:\n{done.stderr}"
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    try:
        done = subprocess.run(
            [*under, folder / "m"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"it still runs after {_LIMIT_S:g} s"
    if done.returncode:
        return f"it ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    content, at = (folder / "made").read_bytes(), 0
    for name in one.plan.outputs:
        size = one.plan.tensor(name).bytes * one.rows
        found = content[at : at + size]
        at += size
        if name in one.wanted and found != one.wanted[name].tobytes():
            return f"its answer {name!r} isn't numpy's"
    return ""


def run(runs: int, seed: int) -> tuple[int, int]:
    """Run so many plans; return how many were sound, and how many damaged.

    Raises:
        SystemExit: there is no compiler, or something went wrong in a run.
    """
    compiler = shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("there is no clang and no gcc here")
    counts = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(seed, seed + runs):
            rng = random.Random(number)
            one = drawn(number)
            if number % 2 and (broken := damaged(one, rng)):
                one = broken
            if told := run_checked(one, rng, compiler, Path(folder)):
                raise SystemExit(
                    f"{one.plan}\n{one.rows} rows, {one.threads} threads, {told}\n"
                    f"again: python -m fuzz.sanitized_kernels --runs 1 --seed {number}"
                )
            counts[not one.wanted] += 1
    return counts[0], counts[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    os.nice(10)
    sound, broken = run(given.runs, given.seed)
    print(
        f"{sound} plans gave numpy's answers, and {broken} damaged ones stayed within their memory"
    )


if __name__ == "__main__":
    main()
