"""Sums, means, extremes and their places along axes of a tensor."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.maps import merged, place, seen
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES, Access, contiguous, product

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_COMBINE = {
    "sum": "{all} += {0};",
    "mean": "{all} += {0};",
    "product": "{all} *= {0};",
    "maximum": "{all} = MAX({all}, {0});",
    "minimum": "{all} = MIN({all}, {0});",
}
_REDUCTION = {"sum": "+", "mean": "+", "product": "*"}
_IN_NUMPY = {
    "sum": np.add,
    "product": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
_FLOATS = ("float32", "float64")
_LINE = 16
"""Neighbouring results that one thread computes: a line of the cache or more."""
_MOST_UNROLLED = 32
"""Largest size of a result whose numbers are written one after the other."""


@dataclass(frozen=True)
class Reduce(Operation):
    """One number from many, for each element of the outer loops.

    Attributes:
        kind: Way in which many numbers become one; "argmax" and "argmin" give the first place as int64,
            counted over the inner loops.
        input: Elements that are read, over the outer loops and then the inner ones.
        output: Tensor that is written, contiguous over the outer loops.
        outer: Sizes of the loops that stay.
        inner: Sizes of the loops that are reduced.
    """

    kind: Literal["sum", "mean", "product", "maximum", "minimum", "argmax", "argmin"]
    input: Access
    output: str
    outer: tuple[int, ...]
    inner: tuple[int, ...]

    splits: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input.tensor,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return product(self.outer) * product(self.inner)

    def check(self, plan: Plan) -> None:
        dtype = self.check_access(plan, self.input, (*self.outer, *self.inner)).dtype
        if dtype == "bool" or (self.kind == "mean" and dtype not in _FLOATS):
            self.refuse(f"no {self.kind} of {dtype}")
        result = "int64" if self.kind.startswith("arg") else dtype
        self.check_sizes(plan, result, (self.output, product(self.outer)))

    def same_bits(self, plan: Plan) -> bool:
        """Whether it only compares; an extreme of floats may be either of two zeros."""
        whole = plan.tensor(self.input.tensor).dtype not in _FLOATS
        return self.kind.startswith("arg") or (self.kind in ("maximum", "minimum") and whole)

    def calculate(self, tensors: dict[str, Array]) -> None:
        read = seen(tensors, self.input, (*self.outer, *self.inner))
        read = read.reshape(product(self.outer), product(self.inner))
        with np.errstate(all="ignore"):
            if self.kind.startswith("arg"):
                found = self._places(read)
            elif self.kind == "mean":
                found = read.sum(1, dtype=read.dtype) / read.dtype.type(read.shape[1])
            else:
                found = np.asarray(_IN_NUMPY[self.kind].reduce(read, 1, dtype=read.dtype))
        tensors[self.output] = found

    def _places(self, read: Array) -> Array:
        """Return the first place of each line's extreme, as the C finds it: NaN counts only if it is first."""
        if read.dtype.kind == "f":
            worst = -np.inf if self.kind == "argmax" else np.inf
            first = np.isnan(read[:, 0])
            read = np.where(np.isnan(read), worst, read)
            found = read.argmax(1) if self.kind == "argmax" else read.argmin(1)
            return np.where(first, 0, found).astype(np.int64, copy=False)
        found = read.argmax(1) if self.kind == "argmax" else read.argmin(1)
        return np.asarray(found, np.int64)

    def emit(self, writer: Writer) -> None:
        kind = C_TYPES[writer.plan.tensor(self.input.tensor).dtype]
        source, target = writer.read(self.input.tensor), writer.write(self.output)
        cut = len(self.outer)
        outer, (into, out) = merged(
            self.outer,
            [
                Access("", self.input.strides[:cut], self.input.offset),
                Access("", contiguous(self.outer)),
            ],
        )
        inner, (along,) = merged(self.inner, [Access("", self.input.strides[cut:])])
        with writer.block(""):
            if self.kind.startswith("arg"):
                with writer.loops(outer, split=True):
                    writer.line(f"const {kind} *from = {source} + {place(into)};")
                    self._emit_place(writer, kind, f"{target}[{place(out)}]", inner, along)
            elif product(inner) <= _MOST_UNROLLED and outer[-1] > 1 and along.strides != (1,):
                self._emit_unrolled(writer, kind, (source, target), outer, (into, out))
            elif into.strides[-1] == 1 and out.strides[-1] == 1 and along.strides[-1] != 1:
                self._emit_lines(writer, kind, (source, target), outer, (into, out))
            else:
                with writer.loops(outer, split=True):
                    writer.line(f"const {kind} *from = {source} + {place(into)};")
                    self._emit_along(writer, kind, f"{target}[{place(out)}]", inner, along)

    def _combine(self, total: str, number: str) -> str:
        """Return the statement that takes one more number into a result, in C."""
        return _COMBINE[self.kind].format(number, all=total)

    def _ended(self, total: str) -> str:
        return f"{total} / {product(self.inner)}" if self.kind == "mean" else total

    def _emit_along(
        self, writer: Writer, kind: str, target: str, inner: tuple[int, ...], along: Access
    ) -> None:
        """Write one result: a loop over all that it is of."""
        start = {"sum": "0", "mean": "0", "product": "1"}.get(self.kind, "from[0]")
        if self.kind in ("maximum", "minimum") and along.strides == (1,) and inner[0] >= _LINE:
            self._emit_extreme(writer, kind, target, inner[0])
            return
        writer.line(f"{kind} all = {start};")
        sign = _REDUCTION.get(self.kind) if kind in ("float", "double") else None
        pragma = f"#pragma omp simd reduction({sign}:all)" if sign else ""
        with writer.loops(inner, pragma, name="j"):
            number = f"from[{place(along).replace('i', 'j')}]"
            writer.line(self._combine("all", number))
        writer.line(f"{target} = {self._ended('all')};")

    def _emit_extreme(self, writer: Writer, kind: str, target: str, count: int) -> None:
        """Write the extreme of neighbouring numbers: of each place in a line first, then of those.

        The order doesn't matter, since NaN is the extreme of whatever it is among.
        """
        writer.line(f"{kind} part[{_LINE}];")
        writer.line(f"for (int k = 0; k < {_LINE}; k++) part[k] = from[k];")
        with writer.block(f"for (long j = {_LINE}; j + {_LINE} <= {count}; j += {_LINE})"):
            writer.line(f"for (int k = 0; k < {_LINE}; k++)")
            writer.line(f"{{ const {kind} one = from[j + k]; {self._combine('part[k]', 'one')} }}")
        for last in range(count - count % _LINE, count):
            writer.line(self._combine("part[0]", f"from[{last}]"))
        for half in (8, 4, 2, 1):
            writer.line(f"for (int k = 0; k < {half}; k++)")
            writer.line(
                f"{{ const {kind} one = part[k + {half}]; {self._combine('part[k]', 'one')} }}"
            )
        writer.line(f"{target} = part[0];")

    def _emit_unrolled(
        self,
        writer: Writer,
        kind: str,
        pointers: tuple[str, str],
        outer: tuple[int, ...],
        accesses: tuple[Access, Access],
    ) -> None:
        """Write results of a few numbers each, so that a vector has many results."""
        strides = self.input.strides[len(self.outer) :]
        with writer.loops(outer, "#pragma GCC ivdep", split=True):
            writer.line(f"const {kind} *from = {pointers[0]} + {place(accesses[0])};")
            places = [
                sum(at * stride for at, stride in zip(ats, strides, strict=True))
                for ats in itertools.product(*map(range, self.inner))
            ]
            writer.line(f"{kind} all = from[{places[0]}];")
            for one in places[1:]:
                writer.line(self._combine("all", f"from[{one}]"))
            writer.line(f"{pointers[1]}[{place(accesses[1])}] = {self._ended('all')};")

    def _emit_lines(
        self,
        writer: Writer,
        kind: str,
        pointers: tuple[str, str],
        outer: tuple[int, ...],
        accesses: tuple[Access, Access],
    ) -> None:
        """Write lines of neighbouring results, through which all numbers go line by line."""
        last = len(outer) - 1
        strides = self.input.strides[len(self.outer) :]
        with contextlib.ExitStack() as blocks:
            bounds = ("0", str(outer[-1]))
            if last:
                blocks.enter_context(writer.loops(outer[:-1], split=True))
            else:
                bounds = blocks.enter_context(writer.share(outer[-1], _LINE))
            head = f"for (long i{last} = {bounds[0]}; i{last} < {bounds[1]}; i{last}++)"
            number = f"{pointers[0]}[{place(accesses[0])}"
            result = f"{pointers[1]}[{place(accesses[1])}]"
            start = {"sum": "0", "mean": "0", "product": "1"}.get(self.kind, f"{number}]")
            writer.line(f"{head} {result} = {start};")
            along = "".join(f" + j{at} * {stride}" for at, stride in enumerate(strides))
            with writer.loops(self.inner, name="j"):
                writer.line("#pragma GCC ivdep")
                writer.line(f"{head} {self._combine(result, f'{number}{along}]')}")
            if self.kind == "mean":
                writer.line(f"{head} {result} = {self._ended(result)};")

    def _emit_place(
        self, writer: Writer, kind: str, target: str, inner: tuple[int, ...], along: Access
    ) -> None:
        """Write the search for the place of an extreme; NaN counts as the most extreme."""
        sign = ">" if self.kind == "argmax" else "<"
        writer.line(f"{kind} best = from[0]; i64 at = 0, now = 0;")
        with writer.loops(inner, name="j"):
            writer.line(f"const {kind} one = from[{place(along).replace('i', 'j')}];")
            writer.line(f"if (one {sign} best) {{ best = one; at = now; }}")
            writer.line("now++;")
        writer.line(f"{target} = at;")
