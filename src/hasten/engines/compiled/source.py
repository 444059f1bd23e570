"""Writing of a plan as C, with the tables that the C reads."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from operator import itemgetter

import numpy as np

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled.plan import (
    ALIGNMENT,
    C_TYPES,
    MOST_BYTES,
    Plan,
    Tensor,
    Weights,
)
from hasten.errors import IntegrityError

_LONG_WORK = 100_000
"""Elementary calculations, some tens of microseconds, from which other threads of Python may run."""
_MOST_ROWS = 24
"""Most rows of a batch that go through each operation at once."""
_BEYOND = 256
"""Bytes behind a call's memory that may be read, and count for nothing: a vector's end."""
MOST_TEXT = 16 << 20
"""Most bytes of C: a compiler takes some hundred times as much memory."""
LEAST_SHARED = 200_000
"""Elementary calculations of an operation, for one row, from which several threads share it: 5 us of a
convolution and 10 of a layer, where a stage took 0.3 us more than on one thread (AMD EPYC, two cores)."""
LEAST_TOGETHER = 1_000_000
"""Calculations, for one row, of all operations of a plan that can be shared, from which threads pay. In calls
one after the other two threads took 0.93 of one's time for 0.6 million in a convolution, 0.69 for 2.4
million, 0.71 for 1 million in a layer (AMD EPYC, two cores, other processes beside, best of 400 turns)."""
_EVEN = 16
"""Iterations of a loop from which shares of it are about even."""
_STEP = 64
"""Neighbouring numbers that stay in one share, so that no two parts write into one line of the cache."""
_BLOCK_BYTES = 256 << 10
"""Memory that tensors of a block of rows may take: what stays in a core's own cache."""


@dataclass(frozen=True)
class Source:
    """C of a model.

    Attributes:
        text: The whole text.
        tables: Constants as the C reads them: packed and padded, aligned.
        arena_bytes: Memory that a call needs for tensors in between.
        threads: Most threads that share a call; 1 where no operation is worth more.
    """

    text: str
    tables: bytearray
    arena_bytes: int
    threads: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the text in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass
class Writer:
    """What an operation writes its C with: statements, pointers to tensors, tables of constants.

    Each operation becomes one function of `n` rows, whose tensors lie behind each other. Statements
    answer all of them, or within `each_row` one.

    Attributes:
        plan: Plan that is written.
        vector_bytes: Bytes of the widest vector of the processor.
        scratch_bytes: Memory that the operations need while they run.
        apart_bytes: Memory that each thread needs for itself while operations run.
        shared: Whether several threads run the operation, each other parts of its loops.
        isa: Instruction sets of the processor.
    """

    plan: Plan
    vector_bytes: int
    _weights: bytes
    _places: dict[str, int]
    _arena_bytes: int
    scratch_bytes: int = 0
    apart_bytes: int = 0
    shared: bool = False
    isa: tuple[str, ...] = ()
    _used_scratch: int = 0
    _used_apart: int = 0
    _shares: int = 0
    _within_share: bool = False
    _start: int = 0
    _row: str = ""
    _tables: Weights = field(default_factory=lambda: Weights(bytearray()))
    _lines: list[str] = field(default_factory=list)
    _declared: dict[str, str] = field(default_factory=dict)
    _kept: dict[str, Tensor] = field(default_factory=dict)
    _defined: dict[str, str] = field(default_factory=dict)
    _definitions: list[str] = field(default_factory=list)
    _count: int = 0
    _pointers: int = 0
    _text_bytes: int = 0
    _parts: dict[str, str] = field(default_factory=dict)
    _statics: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def byte_widths(self) -> tuple[int, ...]:
        """Bytes of the vectors that operations of bytes use, the widest first."""
        return byte_widths(self.isa)

    def byte_width(self, size: int) -> int:
        """Return the bytes of the widest vector that isn't wider than some bytes; 0 if all are."""
        return next((wide for wide in byte_widths(self.isa, 16) if wide <= size), 0)

    @property
    def byte_taps(self) -> int:
        """Products that an instruction adds to one sum: of numbers of 8 bits where 4, else of 16 bits."""
        return 4 if _vnni(self.isa) else 2

    def lanes(self, dtype: np.dtype[np.generic]) -> int:
        """Return how many numbers of a type a vector has; the types vfloat and vdouble are such."""
        return self.vector_bytes // dtype.itemsize

    def constant(self, name: str) -> Array:
        """Return a constant's numbers, flat."""
        return self.plan.constant(name, self._weights)

    def line(self, text: str) -> None:
        """Write a statement, or any line."""
        self._lines.append(text)

    @contextlib.contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Write a block with its head: `for (...)`, or "" for braces alone."""
        self.line(f"{head} {{")
        yield
        self.line("}")

    @contextlib.contextmanager
    def loops(
        self, shape: tuple[int, ...], pragma: str = "", name: str = "i", split: bool = False
    ) -> Iterator[None]:
        """Write loops over i0, i1, ..., the last one under a pragma.

        Args:
            shape: Sizes of the loops.
            pragma: Line before the innermost loop.
            name: Letters before the number of each loop's index.
            split: Whether one of the loops is shared out; see `share`.
        """
        if shape and split and self.shared:
            axis = next((at for at, size in enumerate(shape) if size >= _EVEN), None)
            axis = int(np.argmax(shape)) if axis is None else axis
            step = _STEP if axis == len(shape) - 1 and shape[axis] >= _STEP * _EVEN else 1
            with self.share(shape[axis], step) as bounds:
                self._open(shape, pragma, name, {axis: bounds})
                yield
                self.line("}" * len(shape))
            return
        self._open(shape, pragma, name, {})
        yield
        self.line("}" * len(shape))

    def _open(
        self,
        shape: tuple[int, ...],
        pragma: str,
        name: str,
        bounds: Mapping[int, tuple[str, str]],
    ) -> None:
        """Write the heads of loops, some of them with bounds of their own."""
        for axis, size in enumerate(shape):
            if pragma and axis == len(shape) - 1:
                self.line(pragma)
            first, last = bounds.get(axis, (0, size))
            each = f"{name}{axis}"
            self.line(f"for (long {each} = {first}; {each} < {last}; {each}++) {{")

    @contextlib.contextmanager
    def share(self, count: int | str, step: int = 1) -> Iterator[tuple[str, str]]:
        """Write a block that threads run for different parts of a loop; lend its bounds in C.

        The parts follow each other, cover the loop, and differ by one step at most. The block is run as
        often as there are parts, by whichever threads have time, once all parts of the block before it are
        done. So in an operation that is shared, whatever reads or writes tensors or scratch memory stands
        within such a block; around it, each thread runs all statements, and comes to the same blocks.

        Args:
            count: Iterations of the whole loop, as a number or in C; 1 for what one thread does alone.
            step: Iterations that stay together; each part begins at a multiple of it.
        """
        if not self.shared:
            yield "0", str(count)
            return
        assert not self._within_share, "a block that is shared out within another one"
        self._within_share = True
        number, self._shares = self._shares, self._shares + 1
        steps, first, last = (f"{name}_{number}" for name in ("steps", "first", "last"))
        self.line(f"const long {steps} = (({count}) + {step - 1}L) / {step};")
        self.line(f"enter(me, {steps});")
        with self.block("for (long s; (s = claim(me)) >= 0; finish(me))"):
            self.line(f"const long {first} = {steps} * s / me->shares * {step};")
            end = f"{steps} * (s + 1) / me->shares * {step}"
            self.line(f"const long {last} = MIN({end}, (long)({count}));")
            yield first, last
        self._within_share = False

    def clip(self, share: tuple[str, str], begin: int | str, count: int | str) -> tuple[str, str]:
        """Return a part's bounds within some of its iterations, counted from the first of those, in C.

        So several loops, one behind the other, are shared out together.

        Args:
            share: Bounds that `share` lent for all the loops' iterations together.
            begin: Iterations before this loop's.
            count: Iterations of this loop.
        """
        if not self.shared:
            return "0", str(count)
        first, last = (f"({bound} - {begin})" for bound in share)
        return f"MAX({first}, 0)", f"MIN({last}, {count})"

    @contextlib.contextmanager
    def shared_loop(self, name: str, count: int | str, step: int = 1) -> Iterator[None]:
        """Write a loop over `0, step, 2 * step, ...` below `count`, which is shared out; see `share`.

        Its iterations must neither read nor write what another one writes.
        """
        with (
            self.share(count, step) as (first, last),
            self.block(f"for (long {name} = {first}; {name} < {last}; {name} += {step})"),
        ):
            yield

    @contextlib.contextmanager
    def each_row(self) -> Iterator[None]:
        """Write a loop over the rows; within it pointers are to the tensors of one row."""
        if not self.plan.by_row:
            with self.block(""):  # an operation's own names may be the function's
                yield
            return
        self.line("for (long b = 0; b < n; b++) {")
        self._start, self._row = len(self._lines), "b"
        self._declared.clear()
        yield
        self._start, self._row = 0, ""
        self._declared.clear()
        self.line("}")

    def read(self, name: str) -> str:
        """Return a pointer to a tensor, to read from."""
        return self._pointer(name, "const ")

    def write(self, name: str) -> str:
        """Return a pointer to a tensor, to write to."""
        return self._pointer(name, "")

    def scratch(self, dtype: str, size: int, apart: bool = False) -> str:
        """Return a pointer to aligned memory for some numbers, which other operations overwrite.

        Args:
            dtype: Element type.
            size: Number of elements.
            apart: Whether each thread has such memory for itself; else all have the same.
        """
        kind = C_TYPES[dtype]
        taken = -(-size * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
        if apart and self.shared:
            place = f"APART + me->part * APART_BYTES + {self._used_apart}"
            self._used_apart += taken
            self.apart_bytes = max(self.apart_bytes, self._used_apart)
            return self._declare(f"{kind} *restrict ", f"({kind} *)(c->arena + {place})")
        at = self._arena_bytes + self._used_scratch
        self._used_scratch += taken
        self.scratch_bytes = max(self.scratch_bytes, self._used_scratch)
        alone = "" if self.shared else "restrict "  # other threads write what this one reads
        return self._declare(f"{kind} *{alone}", f"({kind} *)(c->arena + {at})")

    def table(self, array: Array) -> str:
        """Keep constants in the form that the C reads; return a pointer to them, aligned."""
        return self._at(self._keep(array))

    def part(self, name: str, **defined: int) -> None:
        """Include a file of C that belongs to some operations, after definitions."""
        lines = [f"#define {key} {value}" for key, value in defined.items()]
        self._parts[name] = "\n".join([*lines, _part(name)])

    def static(self, kind: str, text: str) -> str:
        """Keep a function of C for all operations, once; return its name, which stands as @ in the text."""
        key = (kind, text)
        if key not in self._statics:
            self._statics[key] = f"{kind}{len(self._statics)}"
            self._count_text(text)
        return self._statics[key]

    @property
    def statics(self) -> str:
        """C that stands before the operations."""
        functions = [text.replace("@", name) for (_, text), name in self._statics.items()]
        return "\n".join([*self._parts.values(), *functions])

    def _count_text(self, text: str) -> None:
        self._text_bytes += len(text)
        if self._text_bytes > MOST_TEXT:
            raise IntegrityError(f"the plan asks for more than {MOST_TEXT / 1e6:,.0f} MB of C")

    def _keep(self, array: Array) -> Tensor:
        if len(self._tables.content) + array.nbytes > MOST_BYTES:
            raise IntegrityError(
                f"the plan asks for more than {MOST_BYTES / 1e6:,.0f} MB of tables"
            )
        return self._tables.add(array)

    def _at(self, tensor: Tensor) -> str:
        kind = C_TYPES[tensor.dtype]
        return self._declare(f"const {kind} *", f"(const {kind} *)(c->weights + {tensor.offset})")

    def _pointer(self, name: str, const: str) -> str:
        tensor = self.plan.tensor(name)
        kind = f"{const}{C_TYPES[tensor.dtype]} *"
        if tensor.offset is not None:
            if name not in self._kept:
                self._kept[name] = self._keep(self.constant(name))
            return self._at(self._kept[name])
        row = f" + {self._row} * {tensor.size}" if self._row else ""
        first = f" + r * {tensor.size}" if self.plan.by_row else ""
        if name in self.plan.inputs:
            at = f"({kind})c->in[{self.plan.inputs.index(name)}]{first}{row}"
        elif name in self.plan.outputs:
            at = f"({kind})c->out[{self.plan.outputs.index(name)}]{first}{row}"
        else:
            at = f"({kind})(c->arena + {self._places[name]}){row}"
        return self._declare(f"{kind}restrict ", at)

    def _declare(self, kind: str, value: str) -> str:
        key = f"{kind} {value}"
        if key not in self._declared:
            name = f"p{self._pointers}"
            self._pointers += 1
            self._declared[key] = name
            self._lines.insert(self._start, f"{kind}{name} = {value};")
        return self._declared[key]

    def define(self, parameters: str, write: Callable[[], None]) -> str:
        """Write a C function that operations call, once for all that write the same; return its name.

        Args:
            parameters: Parameters in C; the body knows nothing else.
            write: Writes the body by `line`, `block` and `loops`.
        """
        outer, self._lines = self._lines, []
        write()
        body = "\n".join(self._lines)
        self._lines = outer
        key = f"({parameters}) {{\n{body}\n}}\n"
        if key not in self._defined:
            self._count_text(key)
            name = self._defined[key] = f"part{len(self._defined)}"
            self._definitions.append(f"static __attribute__((noinline)) void {name}{key}")
        return self._defined[key]

    def function(self) -> str:
        """Return the C function of what was written, and begin the next one."""
        body = "\n".join(self._lines)
        self._count_text(body)
        before = "".join(self._definitions)
        self._definitions.clear()
        self._lines.clear()
        self._declared.clear()
        self._count += 1
        self._pointers = self._used_scratch = self._used_apart = self._shares = 0
        head = f"static void op{self._count - 1}(const struct call *c, long r, long n"
        if self.shared:  # apart from others, large loops keep more of their numbers in registers
            head = f"static __attribute__((noinline)) {head[7:]}, struct member *me"
        return f"{before}{head}) {{\n{body}\n}}\n"

    @property
    def tables(self) -> bytearray:
        """Tables of all operations."""
        return self._tables.content


def write(
    plan: Plan, weights: bytes, target: Target, threads: int = 1, *, timed: bool = False
) -> Source:
    """Write a plan, which was checked, as C for a processor.

    Args:
        plan: Plan of the model.
        weights: Constants of the plan.
        target: Processor, whose instruction sets decide how wide vectors are.
        threads: Most threads that are to share a call, where operations are worth it. The text is the
            same for all numbers, so the answers are, too: a compiler rounds two texts of one sum in two
            ways.
        timed: Whether the C keeps the time of each operation, on one thread.

    Raises:
        IntegrityError: it asks for too much memory, or its trees or truths are damaged.
    """
    for name, tensor in plan.tensors.items():
        truths = tensor.dtype == "bool" and tensor.offset is not None
        if truths and plan.constant(name, weights).view(np.uint8).max() > 1:
            raise IntegrityError(f"the plan is damaged: {name!r:.100} isn't true or false")
    wide = 64 if "avx512f" in target.isa else 32 if "avx2" in target.isa else 16
    places, row_bytes = _arena(plan)
    block = max(1, min(_MOST_ROWS, _BLOCK_BYTES // max(1, row_bytes))) if plan.by_row else 1
    places = {name: place * block for name, place in places.items()}
    writer = Writer(plan, wide, weights, places, row_bytes * block, isa=target.isa)
    parted = shared_operations(plan)
    functions = []
    for operation, writer.shared in zip(plan.operations, parted, strict=True):
        operation.emit_rows(writer)
        functions.append(writer.function())
    threads = threads if any(parted) else 1
    apart = row_bytes * block + writer.scratch_bytes
    arena_bytes = apart + threads * writer.apart_bytes + _BEYOND
    if arena_bytes > 2 * MOST_BYTES:
        raise IntegrityError(f"the plan asks for {arena_bytes / 1e6:,.0f} MB while it runs")
    sizes = [plan.tensor(name).bytes for name in (*plan.inputs, *plan.outputs)]
    head = f"""{_part("math.c")}
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
  const void *in[INPUTS]; void *out[OUTPUTS]; long rows; u8 *arena; const u8 *weights; struct team *team;
}};
"""
    if any(parted):
        head += f"""static const long APART = {apart}, APART_BYTES = {writer.apart_bytes};
{_part("threads.c")}"""
    if timed:
        head += f"enum {{ OPERATIONS = {len(functions)} }};\n{_part('clock.c')}"
    text = "\n".join(
        (head, writer.statics, *functions, _runner(parted, block, timed), _part("python.c"))
    )
    return Source(text, writer.tables, arena_bytes, threads)


def shared_operations(plan: Plan) -> list[bool]:
    """Return for each operation whether several threads, where there are any, share it."""
    found = [one.splits and one.work >= LEAST_SHARED for one in plan.operations]
    work = sum(one.work for one in itertools.compress(plan.operations, found))
    return found if work >= LEAST_TOGETHER else [False] * len(found)


def _runner(parted: Sequence[bool], block: int, timed: bool) -> str:
    """Return the C function that runs all operations: `run`, or `walk` with other threads.

    Args:
        parted: Whether threads share it, for each operation.
        block: Most rows that go through each operation at once.
        timed: Whether the time of each operation is kept, on one thread.
    """
    marks = [f" mark({number});" if timed else "" for number in range(len(parted))]
    calls = "looked = now();\n" if timed else ""
    if any(parted):
        head = "walk(const struct call *c, struct member *me)"
        for together, group in itertools.groupby(enumerate(parted), key=itemgetter(1)):
            numbers = [number for number, _ in group]
            more = ", me" if together else ""
            own = "\n".join(f"op{number}(c, r, n{more});{marks[number]}" for number in numbers)
            calls += own if together else f"if (alone(me)) {{ {own} finish_alone(me); }}"
            calls += "\n"
    else:
        head = "run(const struct call *c)"
        calls += "\n".join(f"op{number}(c, r, n);{mark}" for number, mark in enumerate(marks))
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
    apart = {*plan.inputs, *plan.outputs}
    places: dict[str, int] = {}
    living: list[tuple[int, int, int]] = []
    most = 0
    for number, operation in enumerate(plan.operations):
        living = [one for one in living if one[2] >= number]
        for name in operation.writes:
            if name in apart or name in places or plan.tensor(name).offset is not None:
                continue
            size = -(-plan.tensor(name).bytes // ALIGNMENT) * ALIGNMENT
            at = 0
            for begin, end, _ in sorted(living):
                if at + size <= begin:
                    break
                at = max(at, end)
            places[name] = at
            living.append((at, at + size, last[name]))
            most = max(most, at + size)
    return places, most


def byte_widths(isa: tuple[str, ...], least: int = 32) -> tuple[int, ...]:
    """Return the bytes of the vectors that operations of bytes may use, the widest first.

    Args:
        isa: Instruction sets of the processor.
        least: Fewest bytes, where there are wider ones.
    """
    wide = (64, 32) if "avx512bw" in isa else (32,) if "avx2" in isa else ()
    return (*wide, 16) if least < 32 or not wide else wide


def _vnni(isa: tuple[str, ...]) -> int:
    """Return how dot products of bytes are spelled: 0 where there are none, 1 with VEX, 2 with EVEX."""
    if "avx512bw" in isa:
        return 2 if "avx512_vnni" in isa else 0
    return int("avx2" in isa and "avx_vnni" in isa)


def _bytes(isa: tuple[str, ...]) -> str:
    """Return the C of operations of bytes, for each width of vectors."""
    evex = "avx512bw" in isa
    vnni = _vnni(isa)
    vbmi = evex and "avx512vbmi" in isa
    facts: dict[str, int] = {
        "AVX": "avx2" in isa,
        "FMA": "fma" in isa,
        "AVX512": evex,
        "VBMI": vbmi,
    }
    facts |= {"VNNI": vnni, "TAPS": 4 if vnni else 2}
    lines = [f"#define {name} {int(value)}" for name, value in facts.items()]
    lines.append(_part("bytes.c"))
    for wide in byte_widths(isa, 16):
        lines += [f"#define W {wide}", _part("vectors.c"), _part("pictures.c"), "#undef W"]
    return "\n".join(lines)


@cache
def _part(name: str) -> str:
    """Return a file of C that belongs to every model."""
    return resources.files("hasten.engines.compiled").joinpath("c", name).read_text()
