"""Small programs over single numbers: what a loop computes for each element."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hasten.engines.compiled.plan import C_TYPES
from hasten.errors import IntegrityError

MOST_STEPS = 400
"""Largest number of steps of a program; longer ones become several loops."""
_FLOATS = ("float32", "float64")

_ARITHMETIC = {
    "add": "({0} + {1})",
    "subtract": "({0} - {1})",
    "multiply": "({0} * {1})",
    "divide": "({0} / {1})",
    "maximum": "MAX({0}, {1})",
    "minimum": "MIN({0}, {1})",
    "negative": "(-{0})",
    "absolute": "({0} < 0 ? -{0} : {0})",
    "remainder": "fmod_{t}({0}, {1})",
    "copy": "{0}",
    "sign": "({0} > 0 ? 1 : {0} < 0 ? -1 : {0})",
}
"""Steps whose operands and result have one type, in C."""
_WHOLE = {
    "divide": "QUOTIENT({0}, {1})",
    "remainder": "REMAINDER({0}, {1})",
    "modulo": "MODULO({0}, {1})",
}
"""Steps that differ for whole numbers, or are for them only: dividing by 0 must not end the process."""
_FLOAT_ONLY = {
    "exp": "exp_{t}({0})",
    "log": "log_{t}({0})",
    "sigmoid": "sigmoid_{t}({0})",
    "tanh": "tanh_{t}({0})",
    "erf": "erf_{t}({0})",
    "sin": "sin_{t}({0})",
    "cos": "cos_{t}({0})",
    "power": "pow_{t}({0}, {1})",
    "sqrt": "__builtin_sqrt{f}({0})",
    "floor": "__builtin_floor{f}({0})",
    "ceil": "__builtin_ceil{f}({0})",
    "round": "__builtin_rint{f}({0})",
    "fraction": "__builtin_copysign{f}({0} - __builtin_trunc{f}({0}), {0})",
    "reciprocal": "(1 / {0})",
    "softplus": "(MAX({0}, 0) + log_{t}(1 + exp_{t}({0} < 0 ? {0} : -{0})))",
}
"""Steps on floats whose operands and result have one type."""
_COMPARISONS = {
    "less": "({0} < {1})",
    "less_equal": "({0} <= {1})",
    "greater": "({0} > {1})",
    "greater_equal": "({0} >= {1})",
    "equal": "({0} == {1})",
    "not_equal": "({0} != {1})",
    "is_nan": "({0} != {0})",
}
"""Steps whose result is a bool."""
_LOGIC = {
    "and": "({0} & {1})",
    "or": "({0} | {1})",
    "xor": "({0} ^ {1})",
    "not": "({0} ^ 1)",
}
"""Steps on bools."""
SUPPORTED = frozenset(
    {*_ARITHMETIC, *_WHOLE, *_FLOAT_ONLY, *_COMPARISONS, *_LOGIC, "cast", "where", "value"}
)
"""Names of all steps."""
_NO_DOUBLE = frozenset({"erf", "remainder"})


@dataclass(frozen=True)
class Step:
    """One calculation of a program.

    Attributes:
        op: Name of what is done: "add", "exp", "cast", "where", "value", ...
        args: Numbers of the operands: the program's inputs come first, then its steps.
        dtype: Element type of the result.
        value: Number that a "value" gives, as text that Python and JSON keep exactly.
    """

    op: str
    args: tuple[int, ...]
    dtype: str
    value: str = ""


def check(steps: tuple[Step, ...], inputs: tuple[str, ...]) -> str:
    """Check a program over inputs of some element types; return the type of its result.

    Raises:
        IntegrityError: a step is unknown, or doesn't fit its operands.
    """
    if len(steps) > MOST_STEPS:
        raise IntegrityError(f"the plan is damaged: a program has {len(steps)} steps")
    types = list(inputs)
    for step in steps:
        if any(not 0 <= arg < len(types) for arg in step.args) or step.dtype not in C_TYPES:
            raise IntegrityError(f"the plan is damaged: the operands of {step.op!r:.30}")
        if not _fits(step, [types[arg] for arg in step.args]):
            raise IntegrityError(f"the plan is damaged: the step {step.op!r:.30} or its types")
        types.append(step.dtype)
    if not types:
        raise IntegrityError("the plan is damaged: a program is empty")
    return types[-1]


def _fits(step: Step, given: list[str]) -> bool:
    same = all(one == step.dtype for one in given)
    if step.op == "value":
        return not given and _is_number(step.value, step.dtype)
    if step.op == "cast":
        return len(given) == 1
    if step.op == "where":
        return len(given) == 3 and given[0] == "bool" and given[1] == given[2] == step.dtype
    for table, fits in (
        (_WHOLE, same and step.dtype not in (*_FLOATS, "bool")),
        (_ARITHMETIC, same and (step.dtype != "bool" or step.op == "copy")),
        (_FLOAT_ONLY, same and step.dtype in _FLOATS),
        (_COMPARISONS, step.dtype == "bool" and len(set(given)) == 1),
        (_LOGIC, same and step.dtype == "bool"),
    ):
        if step.op in table and (table is not _WHOLE or fits):
            arity = 2 if "{1}" in table[step.op] else 1
            double = step.op in _NO_DOUBLE and step.dtype == "float64"
            return fits and len(given) == arity and not double
    return False


def _is_number(text: str, dtype: str) -> bool:
    try:
        number = float.fromhex(text) if dtype in _FLOATS else int(text)
    except (ValueError, OverflowError):
        return False
    if dtype == "bool":  # numpy takes every other byte for a count, and may write beyond its memory
        return number in (0, 1)
    return dtype in _FLOATS or -(2**63) < number < 2**63


def literal(text: str, dtype: str) -> str:
    """Return a number in C."""
    if dtype not in _FLOATS:
        return f"(({C_TYPES[dtype]}){int(text)}LL)"
    number, letter = float.fromhex(text), "F" if dtype == "float32" else "D"
    if math.isnan(number):
        return f"NAN_{letter}"
    if math.isinf(number):
        return f"({'-' if number < 0 else ''}INF_{letter})"
    return (
        f"{number.hex()}{'f' if letter == 'F' else ''}"
        if number >= 0
        else (f"({number.hex()}{'f' if letter == 'F' else ''})")
    )


def number(value: float, dtype: str) -> str:
    """Return the text of a step's value."""
    return float(value).hex() if dtype in _FLOATS else str(int(value))


def expression(step: Step, operands: list[str], given: list[str]) -> str:
    """Return a step in C.

    Args:
        step: Step that `check` accepted.
        operands: Operands in C.
        given: Element types of the operands.
    """
    if step.op == "value":
        return literal(step.value, step.dtype)
    if step.op == "cast":
        return (
            f"({operands[0]} != 0)"
            if step.dtype == "bool"
            else (f"(({C_TYPES[step.dtype]}){operands[0]})")
        )
    if step.op == "where":
        condition, yes, no = operands
        return f"({condition} ? {yes} : {no})"
    double = (given[0] if given else step.dtype) == "float64"
    if step.op in _WHOLE and step.dtype not in _FLOATS:
        return _WHOLE[step.op].format(*operands)
    for table in (_ARITHMETIC, _FLOAT_ONLY, _COMPARISONS, _LOGIC):
        if step.op in table:
            text = table[step.op]
            return text.format(*operands, t="d" if double else "f", f="" if double else "f")
    raise AssertionError(step.op)
