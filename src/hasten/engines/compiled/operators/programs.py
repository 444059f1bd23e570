"""Small programs over single numbers: what a loop computes for each element."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.tensors import C_TYPES
from hasten.errors import BeyondRange, IntegrityError

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
    "bits_and": "({0} & {1})",
    "bits_or": "({0} | {1})",
    "bits_xor": "({0} ^ {1})",
}
"""Steps that differ for whole numbers, or are for them only: a request that divides by 0 is refused."""
_WRAPPING = {"add": "+", "subtract": "-", "multiply": "*"}
_UNSIGNED = {"int64": "u64", "int32": "u32"}
"""Steps and types whose result wraps, as ONNX Runtime's and numpy's: C defines that without a sign only."""
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

_KEEPS_NAN = frozenset(
    [
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negative", "absolute"),
        *(
            "remainder",
            "copy",
            "sign",
            "exp",
            "log",
            "sigmoid",
            "tanh",
            "erf",
            "sin",
            "cos",
            "sqrt",
        ),
        *("floor", "ceil", "round", "fraction", "reciprocal", "softplus"),
        "value",  # which reads none
    ]
)
"""Operators whose result is NaN in ONNX wherever a number that they read is."""


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


def keeps_nan(step: Step) -> bool:
    """Whether a step's result is NaN wherever one of the numbers that it reads is."""
    if step.op == "cast":
        return step.dtype.startswith("float")
    return step.op in _KEEPS_NAN


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


_KEPT_FLOATS = frozenset({"copy", "where", "maximum", "minimum"})
"""Steps on floats that give one of their operands."""
_Range = tuple[int, int]
_MOST_EXACT = 1 << 24
"""Largest whole number up to which a float32 has all of them."""


def same_bits(steps: tuple[Step, ...], inputs: tuple[str, ...]) -> bool:
    """Whether a program that `check` accepted gives the same bits on every processor.

    Then it only moves and compares floats, and no whole number leaves the range of its type. Beyond that,
    only sums, differences and products of int32 and int64 are defined in the C that is generated.

    Args:
        steps: The program.
        inputs: Element types of the inputs.
    """
    types = list(inputs)
    ranges: list[_Range | None] = [_range(dtype) for dtype in inputs]
    for step in steps:
        given = [ranges[arg] for arg in step.args]
        found = _range_of(step, [types[arg] for arg in step.args], given)
        if found is False:
            return False
        types.append(step.dtype)
        ranges.append(found)
    return True


def _range(dtype: str) -> _Range | None:
    """Return the least and the largest number of a type; None for floats."""
    if dtype in _FLOATS:
        return None
    if dtype == "bool":
        return (0, 1)
    found = np.iinfo(dtype)
    return int(found.min), int(found.max)


def _range_of(
    step: Step, types: list[str], given: list[_Range | None]
) -> _Range | Literal[False] | None:
    """Return the range of a step's result, None for a float; False where its bits may differ."""
    own = _range(step.dtype)
    if step.op in _COMPARISONS or step.op in _LOGIC:
        return (0, 1)
    if step.op == "value":
        return None if own is None else (int(step.value), int(step.value))
    if step.op == "cast" and own is None:
        known = given[0]
        wider = types[0] == step.dtype or (types[0], step.dtype) == _FLOATS
        small = known is not None and max(abs(known[0]), abs(known[1])) <= _MOST_EXACT
        return None if wider or small else False
    whole = [one for one in given[step.op == "where" :] if one is not None]
    if own is None or len(whole) < len(given) - (step.op == "where"):
        return None if own is None and step.op in _KEPT_FLOATS else False
    lows, highs = zip(*whole, strict=True)
    if step.op in ("copy", "cast"):
        found = whole[0]
    elif step.op == "where":
        found = (min(lows), max(highs))
    elif step.op == "maximum":
        found = (max(lows), max(highs))
    elif step.op == "minimum":
        found = (min(lows), min(highs))
    elif step.op == "add":
        found = (sum(lows), sum(highs))
    elif step.op == "subtract":
        found = (lows[0] - highs[1], highs[0] - lows[1])
    elif step.op == "multiply":
        ends = [one * other for one in whole[0] for other in whole[1]]
        found = (min(ends), max(ends))
    else:
        return False
    if step.op == "cast" and step.dtype == "bool":
        return (0, 1)
    return found if own[0] <= found[0] and found[1] <= own[1] else False


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
    if step.op in _WRAPPING and step.dtype in _UNSIGNED:
        one, other = (f"({_UNSIGNED[step.dtype]}){operand}" for operand in operands)
        return f"(({C_TYPES[step.dtype]})({one} {_WRAPPING[step.op]} {other}))"
    for table in (_ARITHMETIC, _FLOAT_ONLY, _COMPARISONS, _LOGIC):
        if step.op in table:
            text = table[step.op]
            return text.format(*operands, t="d" if double else "f", f="" if double else "f")
    raise AssertionError(step.op)


def calculated(steps: tuple[Step, ...], inputs: Sequence[Array]) -> Array:
    """Return what a program gives for arrays of one shape, by numpy.

    Floats are near what C gives: the last bits of functions, and of a product that is added to
    something, differ. Where `same_bits` says so, all bits are equal.

    Args:
        steps: Program that `check` accepted.
        inputs: Array of each input.
    """
    known = list(inputs)
    with np.errstate(all="ignore"):
        for step in steps:
            if step.op == "value":
                floats = step.dtype in _FLOATS
                value = float.fromhex(step.value) if floats else int(step.value)
                known.append(np.asarray(value).astype(step.dtype))
                continue
            given = [known[arg] for arg in step.args]
            if step.op == "cast":
                found = given[0] != 0 if step.dtype == "bool" else given[0]
            elif step.op in _WHOLE and step.dtype not in _FLOATS:
                found = _IN_WHOLE[step.op](*given)
            else:
                found = _IN_NUMPY[step.op](*given)
            known.append(np.asarray(found).astype(step.dtype))
    return known[-1]


def _larger(one: Array, other: Array) -> Array:
    return np.where((one > other) | (one != one), one, other)


def _smaller(one: Array, other: Array) -> Array:
    return np.where((one < other) | (one != one), one, other)


def _sign(x: Array) -> Array:
    return np.where(x > 0, 1, np.where(x < 0, -1, x))


def _quotient(one: Array, other: Array) -> Array:
    """Return whole quotients towards 0."""
    down = one // _divisor(other)
    return np.asarray(down + ((down < 0) & (down * other != one)))


def _remainder(one: Array, other: Array) -> Array:
    return np.asarray(np.fmod(one, _divisor(other)))


def _modulo(one: Array, other: Array) -> Array:
    return np.asarray(np.mod(one, _divisor(other)))


def _divisor(other: Array) -> Array:
    """Return whole numbers to divide by.

    Raises:
        BeyondRange: one of them is 0.
    """
    if not np.all(other):
        raise BeyondRange(
            "the model divides a whole number by 0 for this request: give other numbers"
        )
    return other


_IN_WHOLE: Mapping[str, Callable[..., Any]] = {
    "divide": _quotient,
    "remainder": _remainder,
    "modulo": _modulo,
    "bits_and": np.bitwise_and,
    "bits_or": np.bitwise_or,
    "bits_xor": np.bitwise_xor,
}
_IN_NUMPY: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": _larger,
    "minimum": _smaller,
    "negative": lambda x: 0 - x if x.dtype.kind in "ui" else -x,
    "absolute": np.abs,
    "remainder": np.fmod,
    "copy": lambda x: x,
    "sign": _sign,
    "exp": np.exp,
    "log": np.log,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sin": np.sin,
    "cos": np.cos,
    "power": np.power,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "fraction": lambda x: np.copysign(x - np.trunc(x), x),
    "reciprocal": np.reciprocal,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "is_nan": np.isnan,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": lambda x: ~x,
    "where": np.where,
}
"""Steps by numpy, of arrays of the operands' types."""
