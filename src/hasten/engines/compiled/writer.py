"""Writer of C for the operations of a plan."""

from __future__ import annotations

import contextlib
import io
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Literal, Protocol

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.tensors import ALIGNMENT, C_TYPES, MOST_BYTES, Tensor
from hasten.errors import IntegrityError

MOST_TEXT = 16 << 20
"""Largest number of bytes of C: a compiler takes about a hundred times as much memory."""
_EVEN = 16
"""Iterations of a loop from which shares of it are about even."""
_STEP = 64
"""Neighbouring numbers that stay in one share, so that no two parts write into one line of the cache."""
_SPARE_BYTES = 64 << 10
"""Memory for tables of the smallest plans; what isn't used of it isn't taken from the system."""
_LARGE_PAGE = 2 << 20
"""Bytes of a large page: reading from such, a processor looks up fewer addresses."""


class Outline(Protocol):
    """The tensors of a plan, as far as a writer of C asks for them; see `Plan`."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by name."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that are given."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that are the answer."""

    @property
    def by_row(self) -> bool:
        """Whether rows of a batch are answered each by itself."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor."""

    def constant(self, name: str, weights: bytes | io.BufferedReader) -> Array:
        """Return a constant's numbers."""


class Tables:
    """Constants as the C reads them, each at a multiple of `ALIGNMENT`, in one memory that grows.

    Args:
        least: Bytes that they take together, most likely at least; twice as many are enough for most plans.
    """

    def __init__(self, least: int) -> None:
        self._room, self._size = _memory(least), 0

    def room(self, dtype: str, count: int) -> tuple[Tensor, Array]:
        """Return the tensor of some more numbers, and their bytes as uint8, all 0, to be filled at once.

        Raises:
            IntegrityError: they are too many.
        """
        offset = -(-self._size // ALIGNMENT) * ALIGNMENT
        tensor = Tensor(dtype, count, offset)
        self._size = offset + tensor.bytes
        if self._size > MOST_BYTES:
            raise IntegrityError(
                f"the plan asks for more than {MOST_BYTES / 1e6:,.0f} MB of tables"
            )
        if self._size > len(self._room):
            larger, known = _memory(self._size), min(offset, len(self._room))
            larger[:known] = self._room[:known]
            self._room = larger
        return tensor, self._room[offset : self._size]

    def add(self, array: Array) -> Tensor:
        """Store an array and return its tensor."""
        tensor, room = self.room(str(array.dtype), int(array.size))
        room.view(array.dtype).reshape(array.shape)[...] = array
        return tensor

    @property
    def content(self) -> Array:
        """All of them, as uint8."""
        return self._room[: self._size]


def _memory(least: int) -> Array:
    """Return zeros as uint8, aligned, for at least twice some bytes; what isn't used of them takes no memory.

    Raises:
        IntegrityError: the system doesn't give as much.
    """
    size = 2 * least + _SPARE_BYTES
    try:
        found = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise IntegrityError(
            f"the plan asks for {size / 1e6:,.0f} MB of address space, which the system doesn't give: "
            f"{error.strerror}"
        ) from error
    large = least // _LARGE_PAGE * _LARGE_PAGE
    if large and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without large pages
            found.madvise(mmap.MADV_HUGEPAGE, 0, large)
    return np.frombuffer(found, np.uint8)


@dataclass
class Writer:
    """Writer of C for an operation: statements, pointers to tensors, tables of constants.

    Each operation becomes one function of `n` rows, whose tensors lie behind each other. Statements
    answer all of them, or within `each_row` one.

    Attributes:
        plan: Tensors of the plan that is written.
        vector_bytes: Bytes of the widest vector of the processor.
        scratch_bytes: Memory that the operations need while they run.
        apart_bytes: Memory that each thread needs for itself while operations run.
        shared: Whether several threads run the operation, each other parts of its loops.
        isa: Instruction sets of the processor.
    """

    plan: Outline
    vector_bytes: int
    _weights: bytes | io.BufferedReader
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
    _constants: dict[str, Array] = field(default_factory=dict)
    """Constants that the operation has asked for, so that it sees each as it was checked."""

    def __post_init__(self) -> None:
        constants = (one.bytes for one in self.plan.tensors.values() if one.offset is not None)
        self._tables = Tables(sum(constants))

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
        return 4 if spelled_dots(self.isa) else 2

    @property
    def byte_shift(self) -> int:
        """Number that is taken from bytes before dot products: 128 where these are of bytes with signs."""
        return 128 if multiplies(self.isa) else 0

    def lanes(self, dtype: np.dtype[np.generic]) -> int:
        """Return how many numbers of a type a vector has; the types vfloat and vdouble are such."""
        return self.vector_bytes // dtype.itemsize

    def constant(self, name: str) -> Array:
        """Return a constant's numbers, flat.

        Raises:
            IntegrityError: it is to be of truths, and has other bytes than 0 and 1.
        """
        if name not in self._constants:
            found = self.plan.constant(name, self._weights)
            if found.dtype == np.bool_ and found.view(np.uint8).max() > 1:
                raise IntegrityError(f"the plan is damaged: {name!r:.100} isn't true or false")
            self._constants[name] = found
        return self._constants[name]

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

    def clearing(self, number: int, names: Sequence[str]) -> str:
        """Return a C function `clear{number}` that makes tensors 0, of `n` rows."""
        lines = [
            f"__builtin_memset({self._address(name)}, 0, n * {self.plan.tensor(name).bytes});"
            for name in names
        ]
        body = "\n".join(lines)
        self._count_text(body)
        return f"static void clear{number}(const struct call *c, long r, long n) {{\n{body}\n}}\n"

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
        return self._at(self._tables.add(array))

    def table_of(self, size: int) -> tuple[str, Array]:
        """Return a pointer to some bytes of constants, aligned, and the bytes, which are to be filled at once."""
        tensor, room = self._tables.room("uint8", size)
        return self._at(tensor), room

    def part(self, name: str, **defined: int) -> None:
        """Include a file of C that belongs to some operations, after definitions."""
        lines = [f"#define {key} {value}" for key, value in defined.items()]
        self._parts[name] = "\n".join([*lines, text_of(name)])

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

    def _at(self, tensor: Tensor) -> str:
        kind = C_TYPES[tensor.dtype]
        return self._declare(f"const {kind} *", f"(const {kind} *)(c->weights + {tensor.offset})")

    def _pointer(self, name: str, const: str) -> str:
        tensor = self.plan.tensor(name)
        kind = f"{const}{C_TYPES[tensor.dtype]} *"
        if tensor.offset is not None:
            if name not in self._kept:
                self._kept[name] = self._tables.add(self.constant(name))
            return self._at(self._kept[name])
        row = f" + {self._row} * {tensor.size}" if self._row else ""
        return self._declare(f"{kind}restrict ", f"({kind})({self._address(name)}){row}")

    def _address(self, name: str) -> str:
        """Return C of where the first row of a tensor that isn't a constant lies, in bytes."""
        first = f" + r * {self.plan.tensor(name).bytes}" if self.plan.by_row else ""
        if name in self.plan.inputs:
            return f"(const u8 *)c->in[{self.plan.inputs.index(name)}]{first}"
        if name in self.plan.outputs:
            return f"(u8 *)c->out[{self.plan.outputs.index(name)}]{first}"
        return f"c->arena + {self._places[name]}"

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
        self._constants.clear()
        self._count += 1
        self._pointers = self._used_scratch = self._used_apart = self._shares = 0
        head = f"static void op{self._count - 1}(const struct call *c, long r, long n"
        if self.shared:  # apart from others, large loops keep more of their numbers in registers
            head = f"static __attribute__((noinline)) {head[7:]}, struct member *me"
        return f"{before}{head}) {{\n{body}\n}}\n"

    @property
    def tables(self) -> Array:
        """Tables of all operations, as uint8, aligned."""
        return self._tables.content


def byte_widths(isa: tuple[str, ...], least: int = 32) -> tuple[int, ...]:
    """Return the bytes of the vectors that operations of bytes may use, the widest first.

    Args:
        isa: Instruction sets of the processor.
        least: Fewest bytes, where there are wider ones.
    """
    wide = (64, 32) if "avx512bw" in isa else (32,) if "avx2" in isa else ()
    return (*wide, 16) if least < 32 or not wide else wide


def spelled_dots(isa: tuple[str, ...]) -> int:
    """Return how dot products of bytes are spelled: 0 where there are none, 1 with VEX, 2 with EVEX, 3 on ARM."""
    if "avx512bw" in isa:
        return 2 if "avx512_vnni" in isa else 0
    return 3 if multiplies(isa) else int("avx2" in isa and "avx_vnni" in isa)


def multiplies(isa: tuple[str, ...]) -> Literal["", "dots", "matrices"]:
    """Return what an ARM processor has that multiplies bytes: dot products, i8mm's matrices too, or neither."""
    if "asimddp" not in isa:
        return ""
    return "matrices" if "i8mm" in isa else "dots"


@cache
def text_of(name: str) -> str:
    """Return a file of C that belongs to every model."""
    return resources.files("hasten.engines.compiled").joinpath("c", name).read_text()
