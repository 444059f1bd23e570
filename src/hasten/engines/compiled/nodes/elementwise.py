"""ONNX's elementwise operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node, broadcast, scalar
from hasten.engines.compiled.nodes.int8.lower16 import byte_type
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.tensors import C_TYPES, product
from hasten.engines.compiled.values import Value
from hasten.errors import IntegrityError

_SAME = {
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Neg": "negative",
    "Abs": "absolute",
    "Sign": "sign",
    "Exp": "exp",
    "Log": "log",
    "Sin": "sin",
    "Cos": "cos",
    "Sqrt": "sqrt",
    "Reciprocal": "reciprocal",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Erf": "erf",
    "Softplus": "softplus",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "And": "and",
    "Or": "or",
    "Xor": "xor",
    "Not": "not",
    "BitwiseAnd": "bits_and",
    "BitwiseOr": "bits_or",
    "BitwiseXor": "bits_xor",
}
"""Operators that are one step, whose result has the operands' type."""
_COMPARE = {
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Equal": "equal",
    "IsNaN": "is_nan",
}
"""Operators that are one step, whose result is a bool."""


class Program:
    """Program that is being written for a node: numbers of operands, and steps appended to them.

    Args:
        node: Node of the graph.
        values: Operands.
    """

    def __init__(self, node: Node, values: Sequence[Value]) -> None:
        self.node, self.values = node, values
        self.read = [value for value in values if scalar(value) is None]
        self.steps: list[Step] = []
        self.types = [value.dtype for value in self.read]
        self.operands: list[int] = []
        found = iter(range(len(self.read)))
        for value in values:
            text = scalar(value)
            if text is None:
                self.operands.append(next(found))
            else:
                self.operands.append(self._append(Step("value", (), value.dtype, text)))

    def _append(self, step: Step) -> int:
        self.steps.append(step)
        self.types.append(step.dtype)
        return len(self.types) - 1

    def value(self, number: float, dtype: str) -> int:
        """Append a number."""
        return self._append(Step("value", (), dtype, programs.number(number, dtype)))

    def do(self, op: str, *args: int, dtype: str = "") -> int:
        """Append a step, whose result has its last operand's type unless said."""
        return self._append(Step(op, args, dtype or self.types[args[-1]]))

    def end(self, place: int = 0) -> None:
        """Give the last step's result as the node's output, all operands broadcast to its shape."""
        node, values = self.node, self.values
        shape = np.broadcast_shapes(*(value.shape for value in values))
        dtype = self.types[-1]
        try:
            kinds = tuple(value.dtype for value in self.read)
            if not self.steps or self.steps[-1].dtype != dtype:
                self.do("copy", len(self.types) - 1)
            programs.check(tuple(self.steps), kinds)
        except IntegrityError:
            node.refuse(f"not for {', '.join(value.dtype for value in values)}")
        output = node.computed(dtype, shape, batch_of(node, values, len(shape)), place)
        node.graph.map(
            self.steps, [(value, broadcast(value, shape), 0) for value in self.read], output
        )


def batch_of(node: Node, values: Sequence[Value], rank: int) -> int | None:
    """Return the batch's axis in what is broadcast from values; rows mix where the values differ."""
    axes = {rank - len(v.shape) + v.batch for v in values if v.batch is not None}
    batch = min(axes, default=None)
    # A constant with rows of its own goes with as many rows, or makes as many of one.
    own = batch is not None and any(
        len(v.shape) >= rank - batch and v.shape[batch - rank] != 1 for v in values
    )
    if own or len(axes) > 1 or any(v.counts_rows for v in values):
        node.mixes_rows()
    return batch


def _simple(node: Node) -> None:
    program = Program(node, node.inputs)
    program.do(_SAME[node.proto.op_type], *program.operands)
    program.end()


def _compare(node: Node) -> None:
    program = Program(node, node.inputs)
    program.do(_COMPARE[node.proto.op_type], *program.operands, dtype="bool")
    program.end()


def _many(op: str) -> Callable[[Node], None]:
    """Return the lowering of an operator that joins any number of operands."""

    def lower(node: Node) -> None:
        program = Program(node, node.inputs)
        first = program.operands[0]
        for other in program.operands[1:]:
            first = program.do(op, first, other)
        if node.proto.op_type == "Mean":
            count = program.value(len(program.operands), program.types[first])
            first = program.do("divide", first, count)
        program.do("copy", first)
        program.end()

    return lower


def _unary(write: Callable[[Program, Mapping[str, float], int], int]) -> Callable[[Node], None]:
    """Return the lowering of an operator on one operand, with numbers as attributes."""

    def lower(node: Node) -> None:
        program = Program(node, node.inputs[:1])
        result = write(program, node.attributes, program.operands[0])
        program.do("copy", result)
        program.end()

    return lower


def _relu(p: Program, a: Mapping[str, float], x: int) -> int:
    return p.do("maximum", x, p.value(0, p.types[x]))


def _linear_or(p: Program, x: int, other: int) -> int:
    """Append the choice of `x` where it is above 0, and else of another number."""
    above = p.do("greater", x, p.value(0, p.types[x]), dtype="bool")
    return p.do("where", above, x, other)


def _scaled(p: Program, x: int, by: float) -> int:
    return p.do("multiply", x, p.value(by, p.types[x]))


def _less_one(p: Program, x: int) -> int:
    return p.do("subtract", p.do("exp", x), p.value(1, p.types[x]))


def _leaky(p: Program, a: Mapping[str, float], x: int) -> int:
    below = p.do("less", x, p.value(0, p.types[x]), dtype="bool")
    return p.do("where", below, _scaled(p, x, a.get("alpha", 0.01)), x)


def _elu(p: Program, a: Mapping[str, float], x: int) -> int:
    return _linear_or(p, x, _scaled(p, _less_one(p, x), a.get("alpha", 1.0)))


def _celu(p: Program, a: Mapping[str, float], x: int) -> int:
    alpha = a.get("alpha", 1.0)
    return _linear_or(p, x, _scaled(p, _less_one(p, _scaled(p, x, 1 / alpha)), alpha))


def _selu(p: Program, a: Mapping[str, float], x: int) -> int:
    alpha = a.get("alpha", 1.67326319217681884765625)
    whole = _linear_or(p, x, _scaled(p, _less_one(p, x), alpha))
    return _scaled(p, whole, a.get("gamma", 1.05070102214813232421875))


def _clamped(p: Program, x: int, low: float, high: float) -> int:
    kind = p.types[x]
    return p.do("minimum", p.do("maximum", x, p.value(low, kind)), p.value(high, kind))


def _hard_sigmoid(p: Program, a: Mapping[str, float], x: int) -> int:
    slope = _scaled(p, x, a.get("alpha", 0.2))
    return _clamped(p, p.do("add", slope, p.value(a.get("beta", 0.5), p.types[x])), 0, 1)


def _hard_swish(p: Program, a: Mapping[str, float], x: int) -> int:
    return p.do("multiply", x, _hard_sigmoid(p, {"alpha": 1 / 6, "beta": 0.5}, x))


def _softsign(p: Program, a: Mapping[str, float], x: int) -> int:
    return p.do("divide", x, p.do("add", p.do("absolute", x), p.value(1, p.types[x])))


def _mish(p: Program, a: Mapping[str, float], x: int) -> int:
    return p.do("multiply", x, p.do("tanh", p.do("softplus", x)))


def _swish(p: Program, a: Mapping[str, float], x: int) -> int:
    return p.do("multiply", x, p.do("sigmoid", _scaled(p, x, a.get("alpha", 1.0))))


def _thresholded(p: Program, a: Mapping[str, float], x: int) -> int:
    kind = p.types[x]
    above = p.do("greater", x, p.value(a.get("alpha", 1.0), kind), dtype="bool")
    return p.do("where", above, x, p.value(0, kind))


def _gelu(node: Node) -> None:
    program = Program(node, node.inputs)
    (x,) = program.operands
    kind = program.types[x]
    if node.attributes.get("approximate", "none") == "tanh":
        cube = program.do("multiply", program.do("multiply", x, x), x)
        inner = program.do("add", x, _scaled(program, cube, 0.044715))
        part = program.do("tanh", _scaled(program, inner, (2 / np.pi) ** 0.5))
    else:
        part = program.do("erf", _scaled(program, x, 0.5**0.5))
    one = program.do("add", part, program.value(1, kind))
    program.do("multiply", _scaled(program, x, 0.5), one)
    program.end()


def _prelu(node: Node) -> None:
    program = Program(node, node.inputs)
    x, slope = program.operands
    below = program.do("less", x, program.value(0, program.types[x]), dtype="bool")
    scaled = program.do("multiply", x, slope)
    program.do("where", below, scaled, x)
    program.end()


def _clip(node: Node) -> None:
    if "min" in node.attributes or "max" in node.attributes or len(node.proto.input) == 1:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    else:
        low = node.constant(1, "least value").item() if node.has(1) else None
        high = node.constant(2, "largest value").item() if node.has(2) else None
    program = Program(node, [node.input(0)])
    (result,) = program.operands
    for bound, op in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            result = program.do(op, result, program.value(bound, program.types[result]))
    program.do("copy", result)
    program.end()


def _power(node: Node) -> None:
    exponent = node.input(1).constant
    power = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else None
    if power is None or power not in (0.5, -1.0, 1.0, 2.0, 3.0, 4.0):
        program = Program(node, node.inputs)
        x, y = program.operands
        kind = program.types[x]
        if program.types[y] != kind:
            y = program.do("cast", y, dtype=kind)
        program.do("power", x, y)
        program.end()
        return
    program = Program(node, node.inputs)
    x = program.operands[0]
    if power == 0.5:
        program.do("sqrt", x)
    elif power == -1.0:
        program.do("reciprocal", x)
    else:
        result = x
        for _ in range(int(power) - 1):
            result = program.do("multiply", result, x)
        program.do("copy", result)
    program.end()


def _modulo(node: Node) -> None:
    program = Program(node, node.inputs)
    whole = not node.attributes.get("fmod", 0)
    if not whole and scalar(node.inputs[1]) == (1.0).hex():
        program.do("fraction", program.operands[0])
    else:
        program.do("modulo" if whole else "remainder", *program.operands)
    program.end()


def _is_infinite(node: Node) -> None:
    program = Program(node, node.inputs)
    (x,) = program.operands
    wanted = [
        program.do("equal", x, program.value(bound, program.types[x]), dtype="bool")
        for name, bound in (("detect_positive", np.inf), ("detect_negative", -np.inf))
        if node.attributes.get(name, 1)
    ]
    if len(wanted) == 2:
        program.do("or", *wanted)
    elif not wanted:
        program.do("not_equal", x, x, dtype="bool")
        program.do("and", len(program.types) - 1, program.value(0, "bool"))
    program.end()


def _along(node: Node, value: Value, one: Value) -> Value:
    """Return a scale or a zero point in a shape that is broadcast to a value."""
    if node.attributes.get("block_size", 0) or len(one.shape) > 1:
        node.refuse("it has a scale for each block")
    if product(one.shape) == 1:
        return _shaped(node, one, (1,) * len(value.shape))
    rank = len(value.shape)
    axis = node.axis(node.attributes.get("axis", 1), rank)
    if one.shape[0] != value.shape[axis]:
        node.refuse(f"it has {one.shape[0]} scales for {value.shape[axis]} channels")
    return _shaped(node, one, tuple(-1 if at == axis else 1 for at in range(rank)))


def _shaped(node: Node, one: Value, shape: tuple[int, ...]) -> Value:
    if one.constant is None:
        node.refuse("its scale or zero point is computed")
    array = one.constant.reshape(shape)
    return Value("", one.dtype, array.shape, None, array)


def _quantize(node: Node) -> None:
    """Lower to whole numbers: rounded half to even, shifted, and held within the type."""
    value, scale = node.input(0), node.input(1)
    if value.dtype != "float32" or scale.dtype != "float32":
        node.refuse(f"{value.dtype} by {scale.dtype}")
    if node.has(2):
        zero = node.input(2)
    else:
        made: Array = np.zeros((), byte_type(node))
        zero = Value("", str(made.dtype), (), None, made)
    if zero.dtype not in ("uint8", "int8"):
        node.refuse(f"it quantizes to {zero.dtype}")
    bounds = np.iinfo(zero.dtype)
    program = Program(node, [value, _along(node, value, scale), _along(node, value, zero)])
    x, by, shift = program.operands
    whole = program.do("round", program.do("divide", x, by))
    moved = program.do("add", whole, program.do("cast", shift, dtype="float32"))
    held = _clamped(program, moved, float(bounds.min), float(bounds.max))
    program.do("cast", program.do("cast", held, dtype="int32"), dtype=zero.dtype)
    program.end()


def _dequantize(node: Node) -> None:
    value, scale = node.input(0), node.input(1)
    if value.dtype not in ("uint8", "int8", "int32") or scale.dtype != "float32":
        node.refuse(f"{value.dtype} by {scale.dtype}")
    given = [value, _along(node, value, scale)]
    if node.has(2):
        given.append(_along(node, value, node.input(2)))
    program = Program(node, given)
    whole = program.do("cast", program.operands[0], dtype="int32")
    if node.has(2):
        zero = program.do("cast", program.operands[2], dtype="int32")
        whole = program.do("subtract", whole, zero)
    program.do("multiply", program.do("cast", whole, dtype="float32"), program.operands[1])
    program.end()


def _cast(node: Node) -> None:
    import onnx

    value = node.input(0)
    if node.proto.op_type == "CastLike":
        dtype = node.input(1).dtype
    else:
        dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"])))
    if dtype not in C_TYPES:
        node.refuse(f"it casts to {dtype}")
    if value.dtype == dtype:
        node.give(value)
        return
    program = Program(node, [value])
    program.do("cast", *program.operands, dtype=dtype)
    program.end()


def _where(node: Node) -> None:
    program = Program(node, node.inputs)
    program.do("where", *program.operands)
    program.end()


def _identity(node: Node) -> None:
    node.give(node.input(0))


def _batch_normalization(node: Node) -> None:
    """Lower a normalization by constants: one scale and one shift for each channel."""
    if node.attributes.get("training_mode", 0):
        node.refuse("it is in training mode")
    value = node.input(0)
    scale, shift, mean, variance = (
        node.constant(place, "statistics").astype(np.float64) for place in (1, 2, 3, 4)
    )
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    shape = (-1, *(1,) * (len(value.shape) - 2))
    kind = value.dtype
    constants = [
        Value("", kind, one.shape, None, one)
        for one in (
            factor.astype(kind).reshape(shape),
            (shift - mean * factor).astype(kind).reshape(shape),
        )
    ]
    output = node.computed(kind, value.shape, value.batch)
    steps = [Step("multiply", (0, 1), kind), Step("add", (3, 2), kind)]
    read = [(one, broadcast(one, value.shape), 0) for one in (value, *constants)]
    node.graph.map(steps, read, output)


LOWERINGS: dict[str, Callable[[Node], None]] = {
    **dict.fromkeys(_SAME, _simple),
    **dict.fromkeys(_COMPARE, _compare),
    "Max": _many("maximum"),
    "Min": _many("minimum"),
    "Sum": _many("add"),
    "Mean": _many("add"),
    "Relu": _unary(_relu),
    "LeakyRelu": _unary(_leaky),
    "Elu": _unary(_elu),
    "Celu": _unary(_celu),
    "Selu": _unary(_selu),
    "HardSigmoid": _unary(_hard_sigmoid),
    "HardSwish": _unary(_hard_swish),
    "Softsign": _unary(_softsign),
    "Mish": _unary(_mish),
    "Swish": _unary(_swish),
    "ThresholdedRelu": _unary(_thresholded),
    "Gelu": _gelu,
    "PRelu": _prelu,
    "Clip": _clip,
    "Pow": _power,
    "Mod": _modulo,
    "IsInf": _is_infinite,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Cast": _cast,
    "CastLike": _cast,
    "Where": _where,
    "Identity": _identity,
    "Dropout": _identity,
    "BatchNormalization": _batch_normalization,
}
"""Lowering of each operator by its name."""
