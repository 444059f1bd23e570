"""Element by element: a program over the same element of several tensors, through any strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from numpy.lib.stride_tricks import as_strided

from hasten.core.tensors import Array
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES, Access, product
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer


@dataclass(frozen=True)
class Map(Operation):
    """Loops that compute one element each; also every copy: transposed, sliced, joined, broadcast.

    Attributes:
        steps: Program over one element of each input; its last step's result is written.
        inputs: Elements that are read, of each input.
        output: Elements that are written, none of them twice.
        shape: Sizes of the loops, the innermost last.
    """

    steps: tuple[Step, ...]
    inputs: tuple[Access, ...]
    output: Access
    shape: tuple[int, ...]

    splits: ClassVar[bool] = True

    def hands_on(self, plan: Plan) -> tuple[str, ...]:
        if not all(programs.keeps_nan(step) for step in self.steps):
            return ()
        whole = []
        for access in self.inputs:
            read = (size for size, stride in zip(self.shape, access.strides, strict=True) if stride)
            if product(read) == plan.tensor(access.tensor).size:
                whole.append(access.tensor)
        return tuple(whole)

    @property
    def task(self) -> Kind:  # type: ignore[override]
        """Copies move, all else calculates."""
        return "movement" if all(step.op == "copy" for step in self.steps) else "elementwise"

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(access.tensor for access in self.inputs)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output.tensor,)

    @property
    def parts(self) -> tuple[tuple[Access, tuple[int, ...]], ...]:
        return ((self.output, self.shape),)

    @property
    def work(self) -> int:
        return product(self.shape) * (1 + len(self.steps))

    def check(self, plan: Plan) -> None:
        types = tuple(self.check_access(plan, one, self.shape).dtype for one in self.inputs)
        result = programs.check(self.steps, types)
        if self.check_access(plan, self.output, self.shape).dtype != result:
            self.refuse(f"{self.output.tensor!r} takes another type than {result}")

    def same_bits(self, plan: Plan) -> bool:
        return programs.same_bits(self.steps, tuple(plan.tensor(one).dtype for one in self.reads))

    def calculate(self, tensors: dict[str, Array]) -> None:
        read = [seen(tensors, access, self.shape) for access in self.inputs]
        seen(tensors, self.output, self.shape)[...] = programs.calculated(self.steps, read)

    def emit(self, writer: Writer) -> None:
        shape, accesses = merged(self.shape, [*self.inputs, self.output])
        types = [writer.plan.tensor(name).dtype for name in self.reads]
        sources = [writer.read(name) for name in self.reads]
        target = writer.write(self.output.tensor)
        with writer.loops(shape, "#pragma GCC ivdep", split=True):
            for number, (source, access) in enumerate(zip(sources, accesses[:-1], strict=True)):
                kind = C_TYPES[types[number]]
                writer.line(f"const {kind} v{number} = {source}[{place(access)}];")
            result = emit_program(writer, self.steps, types)
            writer.line(f"{target}[{place(accesses[-1])}] = {result};")


def seen(tensors: dict[str, Array], access: Access, shape: tuple[int, ...]) -> Array:
    """Return an array of the elements that an access reads or writes over loops of a shape."""
    flat = tensors[access.tensor]
    strides = [stride * flat.itemsize for stride in access.strides]
    return as_strided(flat[access.offset :], shape, strides)


def emit_program(writer: Writer, steps: Sequence[Step], types: Sequence[str]) -> str:
    """Write the steps of a program whose inputs are v0, v1, ...; return the name of the result."""
    known = list(types)
    for step in steps:
        text = programs.expression(
            step, [f"v{arg}" for arg in step.args], [known[arg] for arg in step.args]
        )
        writer.line(f"const {C_TYPES[step.dtype]} v{len(known)} = {text};")
        known.append(step.dtype)
    return f"v{len(known) - 1}"


def place(access: Access) -> str:
    """Return the index of an element within loops over i0, i1, ..., in C."""
    terms = [str(access.offset)] if access.offset else []
    for axis, stride in enumerate(access.strides):
        if stride:
            terms.append(f"i{axis}" if stride == 1 else f"i{axis} * {stride}")
    return " + ".join(terms) or "0"


def merged(
    shape: tuple[int, ...], accesses: Sequence[Access]
) -> tuple[tuple[int, ...], list[Access]]:
    """Return the same loops with as few axes as possible: neighbours that every access walks in order
    become one, and axes of one element go."""
    axes: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(shape):
        strides = [access.strides[axis] for access in accesses]
        if size == 1:
            continue
        if axes and all(
            outer == inner * size for outer, inner in zip(axes[-1][1], strides, strict=True)
        ):
            axes[-1] = (axes[-1][0] * size, strides)
        else:
            axes.append((size, strides))
    if not axes:
        axes = [(1, [0] * len(accesses))]
    return tuple(size for size, _ in axes), [
        Access(access.tensor, tuple(strides[number] for _, strides in axes), access.offset)
        for number, access in enumerate(accesses)
    ]
