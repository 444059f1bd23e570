"""Writing of a plan as C, with the tables that the C reads."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass
from operator import itemgetter

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.tensors import ALIGNMENT, MOST_BYTES
from hasten.errors import IntegrityError

_LONG_WORK = 100_000
"""Elementary calculations, tens of microseconds, from which other threads of Python may run."""
_MOST_ROWS = 24
"""Largest number of rows of a batch that go through each operation at once."""
_BEYOND = 256
"""Bytes behind a call's memory that may be read, and count for nothing: a vector's end."""
LEAST_SHARED = 200_000
"""Elementary calculations of an operation, for one row, from which several threads share it: 5 us of a
convolution and 10 of a layer, where a stage took 0.3 us more than on one thread (AMD EPYC, two cores)."""
LEAST_TOGETHER = 1_000_000
"""Calculations, for one row, of all operations of a plan that can be shared, from which threads pay. In calls
one after the other two threads took 0.93 of one's time for 0.6 million in a convolution, 0.69 for 2.4
million, 0.71 for 1 million in a layer (AMD EPYC, two cores, other processes beside, best of 400 turns)."""
_MOST_LIVING = 1000
"""Largest number of tensors that live at once between which room is looked for; beyond, a tensor is behind all."""
_BLOCK_BYTES = 256 << 10
"""Memory that tensors of a block of rows may take: what stays in a core's own cache."""


@dataclass(frozen=True)
class Source:
    """C of a model.

    Attributes:
        lines: The text, some lines each; empty where its shared object was kept.
        tables: Constants as the C reads them: packed and padded, as uint8, aligned.
        arena_bytes: Memory that a call needs for tensors in between.
        threads: Largest number of threads that share a call; 1 where no operation is worth more.
    """

    lines: tuple[str, ...]
    tables: Array
    arena_bytes: int
    threads: int = 1

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.lines)

    @property
    def digest(self) -> str:
        """SHA-256 of the text in hex."""
        # Never a `cached_property`: Python 3.11 locks it, and a process that is forked meanwhile waits for ever.
        whole = hashlib.sha256()
        for some in self.lines:
            whole.update(some.encode())
        return whole.hexdigest()


def write(
    plan: Plan,
    weights: bytes | io.BufferedReader,
    target: Target,
    threads: int = 1,
    *,
    timed: bool = False,
) -> Source:
    """Write a plan, which was checked, as C for a processor.

    Args:
        plan: Plan of the model.
        weights: Constants of the plan, or the file with them.
        target: Processor, whose instruction sets decide how wide vectors are.
        threads: Largest number of threads that are to share a call, where operations are worth it.
            The text is the same for all numbers, so the answers are, too: a compiler rounds two
            texts of one sum in two ways.
        timed: Whether the C keeps the time of each operation, on one thread.

    Raises:
        IntegrityError: it asks for too much memory, or its trees or truths are damaged.
    """
    # What writes C isn't imported for models whose C the cache has.
    from hasten.engines.compiled.coverage import unproven
    from hasten.engines.compiled.writer import Writer, text_of

    wide = 64 if "avx512f" in target.isa else 32 if "avx2" in target.isa else 16
    places, row_bytes = _arena(plan)
    block = max(1, min(_MOST_ROWS, _BLOCK_BYTES // max(1, row_bytes))) if plan.by_row else 1
    places = {name: place * block for name, place in places.items()}
    writer = Writer(plan, wide, weights, places, row_bytes * block, isa=target.isa)
    parted = shared_operations(plan)
    cleared = unproven(plan)
    functions = [writer.clearing(*one) for one in cleared.items()]
    for operation, writer.shared in zip(plan.operations, parted, strict=True):
        operation.emit_rows(writer)
        functions.append(writer.function())
    threads = threads if any(parted) else 1
    apart = row_bytes * block + writer.scratch_bytes
    arena_bytes = apart + threads * writer.apart_bytes + _BEYOND
    if arena_bytes > 2 * MOST_BYTES:
        raise IntegrityError(f"the plan asks for {arena_bytes / 1e6:,.0f} MB while it runs")
    sizes = [plan.tensor(name).bytes for name in (*plan.inputs, *plan.outputs)]
    head = f"""{text_of("math.c")}
{_bytes(target.isa)}
typedef float vfloat __attribute__((vector_size({wide}), may_alias));
typedef double vdouble __attribute__((vector_size({wide}), may_alias));
typedef float vfloat_u __attribute__((vector_size({wide}), aligned(4), may_alias));
typedef double vdouble_u __attribute__((vector_size({wide}), aligned(8), may_alias));
enum {{ INPUTS = {len(plan.inputs)}, OUTPUTS = {len(plan.outputs)}, BY_ROW = {int(plan.by_row)} }};
static const long ROW_BYTES[] = {{{", ".join(map(str, sizes))}}};
static const long LONG_ROWS = {1 + _LONG_WORK // max(1, plan.work)};
struct team;
struct call {{
  const void *in[INPUTS]; void *out[OUTPUTS]; long rows; u8 *arena; const u8 *weights; struct team *team; i64 *beyond;
}};
"""
    if plan.rounded_inputs:
        head += _nan_facts(plan)
    if any(parted):
        head += f"""static const long APART = {apart}, APART_BYTES = {writer.apart_bytes};
{text_of("threads.c")}"""
    if timed:
        head += f"enum {{ OPERATIONS = {len(parted)} }};\n{text_of('clock.c')}"
    runner = _runner(parted, block, timed, cleared)
    checks = text_of("unknown.c") if plan.rounded_inputs else ""
    before = (head, "\n", writer.statics, "\n")
    lines = (*before, *functions, runner, "\n", checks, "\n", text_of("python.c"))
    return Source(lines, writer.tables, arena_bytes, threads)


def _nan_facts(plan: Plan) -> str:
    """Return which inputs can't have NaN, by their floats in a row, the floats of outputs, and which spoils which, in C."""
    spoils = plan.rounded_inputs
    rounded = set[str]().union(*spoils.values())
    looked = [plan.tensor(one).size * (one in rounded) for one in plan.inputs]
    made = [plan.tensor(name) for name in plan.outputs]
    floats = [tensor.size * (tensor.dtype == "float32") for tensor in made]
    doubles = [tensor.size * (tensor.dtype == "float64") for tensor in made]
    numbers = {"LOOKED": looked, "FLOATS": floats, "DOUBLES": doubles}
    lines = [
        f"static const long {name}[] = {{{', '.join(map(str, sizes))}}};"
        for name, sizes in numbers.items()
    ]
    pairs = (
        ", ".join(str(int(one in spoils.get(name, ()))) for one in plan.inputs)
        for name in plan.outputs
    )
    lines.append(
        f"static const char SPOILS[][INPUTS] = {{{', '.join(f'{{{row}}}' for row in pairs)}}};"
    )
    return "\n".join(("#define UNKNOWN 1", *lines, ""))


def shared_operations(plan: Plan) -> list[bool]:
    """Return for each operation whether several threads, where there are any, share it."""
    found = [one.splits and one.work >= LEAST_SHARED for one in plan.operations]
    work = sum(one.work for one in itertools.compress(plan.operations, found))
    return found if work >= LEAST_TOGETHER else [False] * len(found)


def _runner(parted: Sequence[bool], block: int, timed: bool, cleared: Container[int]) -> str:
    """Return the C function that runs all operations: `run`, or `walk` with other threads.

    Args:
        parted: Whether threads share it, for each operation.
        block: Largest number of rows that go through each operation at once.
        timed: Whether the time of each operation is kept, on one thread.
        cleared: Numbers of operations before which tensors are made 0, by one thread.
    """
    marks = [f" mark({number});" if timed else "" for number in range(len(parted))]
    calls = "looked = now();\n" if timed else ""

    def before(number: int, together: bool) -> str:
        if number not in cleared:
            return ""
        clear = f"clear{number}(c, r, n);"
        return f"if (alone(me)) {{ {clear} finish_alone(me); }} " if together else f"{clear} "

    if any(parted):
        head = "walk(const struct call *c, struct member *me)"
        for together, group in itertools.groupby(enumerate(parted), key=itemgetter(1)):
            numbers = [number for number, _ in group]
            more = ", me" if together else ""
            own = "\n".join(
                f"{before(number, together)}op{number}(c, r, n{more});{marks[number]}"
                for number in numbers
            )
            calls += own if together else f"if (alone(me)) {{ {own} finish_alone(me); }}"
            calls += "\n"
    else:
        head = "run(const struct call *c)"
        calls += "\n".join(
            f"{before(number, False)}op{number}(c, r, n);{mark}"
            for number, mark in enumerate(marks)
        )
    return f"""static void {head} {{
for (long r = 0; r < c->rows; r += {block}) {{
long n = c->rows - r < {block} ? c->rows - r : {block};
{calls}
}}
}}
"""


def _arena(plan: Plan) -> tuple[dict[str, int], int]:
    """Place tensors that live between two steps, each where others that live meanwhile aren't."""
    last: dict[str, int] = {}
    for number, operation in enumerate(plan.operations):
        for name in (*operation.reads, *operation.writes):
            last[name] = number
    ending: dict[int, list[str]] = {}
    apart = {*plan.inputs, *plan.outputs}
    places: dict[str, int] = {}
    living: list[tuple[int, int]] = []
    most = 0
    for number, operation in enumerate(plan.operations):
        for name in operation.writes:
            if name in apart or name in places or plan.tensor(name).offset is not None:
                continue
            size = _aligned_bytes(plan, name)
            at = 0
            if len(living) > _MOST_LIVING:
                at = living[-1][1]
            else:
                for begin, end in living:
                    if at + size <= begin:
                        break
                    at = end
            places[name] = at
            bisect.insort(living, (at, at + size))
            ending.setdefault(last[name], []).append(name)
            most = max(most, at + size)
        for name in ending.pop(number, ()):
            begin = places[name]
            del living[bisect.bisect_left(living, (begin, begin + _aligned_bytes(plan, name)))]
    return places, most


def _aligned_bytes(plan: Plan, name: str) -> int:
    return -(-plan.tensor(name).bytes // ALIGNMENT) * ALIGNMENT


def _bytes(isa: tuple[str, ...]) -> str:
    """Return the C of operations of bytes, for each width of vectors."""
    from hasten.engines.compiled.writer import byte_widths, spelled_dots, text_of

    evex = "avx512bw" in isa
    dots = spelled_dots(isa)
    vbmi = evex and "avx512vbmi" in isa
    facts: dict[str, int] = {
        "AVX": "avx2" in isa,
        "FMA": "fma" in isa,
        "AVX512": evex,
        "VBMI": vbmi,
    }
    facts |= {"DOTS": dots, "TAPS": 4 if dots else 2, "SHIFT": 128 if dots == 3 else 0}
    lines = [f"#define {name} {int(value)}" for name, value in facts.items()]
    lines.append(text_of("bytes.c"))
    for wide in reversed(byte_widths(isa, 16)):
        lines += [f"#define W {wide}", text_of("vectors.c"), text_of("pictures.c"), "#undef W"]
    return "\n".join(lines)
