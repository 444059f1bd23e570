"""Sums, means, extremes and their places along axes of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hasten.engines.compiled.operators.maps import merged, place
from hasten.engines.compiled.plan import C_TYPES, Access, Operation, Plan, contiguous, product

if TYPE_CHECKING:
    from hasten.engines.compiled.source import Writer

_COMBINE = {
    "sum": "all += {0};",
    "mean": "all += {0};",
    "product": "all *= {0};",
    "maximum": "all = MAX(all, {0});",
    "minimum": "all = MIN(all, {0});",
}
_REDUCTION = {"sum": "+", "mean": "+", "product": "*"}
_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Reduce(Operation):
    """One number from many, for each element of the outer loops.

    Attributes:
        kind: What becomes of the numbers; "argmax" and "argmin" give the first place as int64,
            counted over the inner loops.
        input: What is read, over the outer loops and then the inner ones.
        output: Tensor that is written, contiguous over the outer loops.
        outer: Sizes of the loops that stay.
        inner: Sizes of the loops that are reduced.
    """

    kind: Literal["sum", "mean", "product", "maximum", "minimum", "argmax", "argmin"]
    input: Access
    output: str
    outer: tuple[int, ...]
    inner: tuple[int, ...]

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
        self.check_sizes(plan, result, {self.output: product(self.outer)})

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
        count = product(self.inner)
        with writer.loops(outer):
            writer.line(f"const {kind} *from = {source} + {place(into)};")
            if self.kind.startswith("arg"):
                self._emit_place(writer, kind, f"{target}[{place(out)}]", inner, along)
                return
            start = {"sum": "0", "mean": "0", "product": "1"}.get(self.kind, "from[0]")
            writer.line(f"{kind} all = {start};")
            sign = _REDUCTION.get(self.kind) if kind in ("float", "double") else None
            pragma = f"#pragma omp simd reduction({sign}:all)" if sign else ""
            with writer.loops(inner, pragma, name="j"):
                number = f"from[{place(along).replace('i', 'j')}]"
                writer.line(_COMBINE[self.kind].format(number))
            end = f"all / {count}" if self.kind == "mean" else "all"
            writer.line(f"{target}[{place(out)}] = {end};")

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
