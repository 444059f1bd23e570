"""Operations of bytes equal numpy's integers bit for bit, on many shapes at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.support.plans import PROCESSORS, answers, planned

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled import source
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.definition import MOST_LENGTH
from hasten.engines.compiled.operators.int8.elementwise import (
    Add8,
    Dequantize,
    Gate8,
    Multiply8,
    Quantize,
    Table8,
)
from hasten.engines.compiled.operators.int8.numbers import Gate, Rounding, Sum8
from hasten.engines.compiled.operators.int8.pools import Pool8
from hasten.engines.compiled.plan import Operation
from hasten.engines.compiled.tensors import product
from hasten.errors import IntegrityError

SHAPES: list[dict[str, Any]] = [
    {"channels": (8, 16), "size": (5, 7)},
    {"channels": (3, 32), "size": (17, 15), "kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"channels": (24, 40), "size": (1, 1)},
    {"channels": (100, 7), "size": (3, 2)},
    {"channels": (16, 16), "groups": 16, "size": (9, 9), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    {"channels": (33, 33), "groups": 33, "size": (8, 11), "kernel": (5, 5), "strides": (2, 2), "pads": (2, 2, 2, 2)},
    {"channels": (72, 72), "groups": 72, "size": (14, 14), "kernel": (3, 3), "strides": (2, 2), "pads": (0, 0, 1, 1)},
    {"channels": (8, 12), "groups": 4, "size": (6, 6), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    {"channels": (6, 6), "groups": 6, "size": (10, 9), "kernel": (3, 3), "dilations": (2, 2), "pads": (2, 2, 2, 2)},
    {"channels": (5, 9), "size": (12, 4), "kernel": (7, 1), "pads": (3, 0, 3, 0)},
    {"channels": (4, 8), "size": (11, 13), "kernel": (5, 7), "strides": (3, 1), "dilations": (1, 2), "pads": (0, 5, 4, 6)},
    {"channels": (1, 1), "size": (1, 1)},
    {"channels": (64, 96), "size": (7, 7), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    {"channels": (160, 320), "size": (4, 3)},
    {"channels": (32, 32), "groups": 32, "size": (5, 5), "kernel": (7, 7), "pads": (3, 3, 3, 3)},
    {"channels": (8, 16), "groups": 8, "size": (6, 5), "kernel": (3, 3)},
]  # fmt: skip
ODD: list[dict[str, Any]] = [
    {"channels": (7, 37), "size": (3, 5)},
    {"channels": (70, 41), "size": (1, 7)},
    {"channels": (19, 70), "size": (1, 4), "kernel": (1, 3), "pads": (0, 1, 0, 1)},
    {"channels": (2, 23), "size": (6, 5), "kernel": (3, 2), "dilations": (1, 2), "pads": (1, 0, 2, 1)},
    {"channels": (15, 50), "groups": 5, "size": (4, 7), "kernel": (2, 2), "strides": (2, 1)},
    {"channels": (3, 9), "size": (7, 9), "kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
]  # fmt: skip
ISAS: dict[str, tuple[tuple[str, ...], bool]] = {
    "avx2": (("avx2", "fma"), True),
    **{name: (target.isa, spelled) for name, (target, spelled) in PROCESSORS.items()},
}
ENDS = ("plain", "table", "sloped", "residual", "float", "all")


class Made:
    """Operations that are being collected for one plan."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.operations: list[Operation] = []
        self.constants: dict[str, Array] = {}
        self.given: dict[str, Array] = {}
        self.made: dict[str, tuple[str, int]] = {}

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def bytes(self, size: int) -> str:
        """Return the name of an input of random bytes, with the extremes among them."""
        name = f"x{len(self.given)}"
        self.given[name] = self.rng.choice([0, 255, *self.rng.integers(0, 256, 30)], size).astype(
            np.uint8
        )
        return name

    def output(self, size: int, dtype: str = "uint8") -> str:
        name = f"y{len(self.made)}"
        self.made[name] = (dtype, size)
        return name

    def rounding(self) -> Rounding:
        low = int(self.rng.choice([0, 0, 17]))
        return Rounding(int(self.rng.integers(0, 256)), low, int(self.rng.choice([255, 255, 201])))

    def table(self) -> str:
        return self.constant(self.rng.integers(0, 256, 256).astype(np.uint8))

    def gated(self, pixels: int, channels: int) -> Gate8:
        """Return a product with gates whose ratio is anywhere between the smallest and the largest."""
        zeros = tuple(int(zero) for zero in self.rng.choice([0, 7, 128, 255], 2))
        largest = 63.9 / max(zeros[1], 255 - zeros[1])
        ratio = largest * float(self.rng.choice([1, 2.0**-5, 2.0**-8, 1e-9]))
        product = Gate.near(ratio, (zeros[0], zeros[1]), self.rounding())
        assert product is not None
        given = (self.bytes(pixels * channels), self.bytes(channels))
        return Gate8(*given, self.output(pixels * channels), pixels, channels, product)

    def slopes(self, size: int) -> str:
        """Return the name of slopes, of which some leave nothing below 0, or turn it round."""
        found = self.rng.choice([0.0, 0.1, 0.5, 1.0, -0.25, -3.0, *self.rng.uniform(0, 1, 6)], size)
        return self.constant(found.astype(np.float32))

    def conv(self, end: str, **shape: Any) -> Conv8:
        rng = self.rng
        usual: dict[str, Any] = {
            "groups": 1,
            "kernel": (1, 1),
            "strides": (1, 1),
            "dilations": (1, 1),
            "pads": (0, 0, 0, 0),
        }
        bare = Conv8(
            "", "", "", "", "", zero=int(rng.integers(0, 256)), rounding=None, **(usual | shape)
        )
        ins, outs = bare.channels
        result = product(bare.output_size) * outs
        weight = rng.integers(-128, 128, (outs, bare.taps)).astype(np.int8)
        weight[0] = 127 if bare.zero < 128 else -128
        spread = 60 / np.sqrt(bare.taps) / 5000
        found = replace(
            bare,
            input=self.bytes(product(bare.size) * ins),
            weight=self.constant(weight),
            bias=self.constant(rng.integers(-5000, 5000, outs).astype(np.int32)),
            scale=self.constant(rng.uniform(spread / 2, spread, outs).astype(np.float32)),
            output=self.output(result, "float32" if end == "float" else "uint8"),
        )
        if end != "float":
            found = replace(found, rounding=self.rounding())
        if end in ("sloped", "all"):
            found = replace(found, slope=self.slopes(outs))
        if end in ("table", "all"):
            found = replace(found, table=self.table())
        if end in ("residual", "all"):
            ratios = (float(rng.uniform(0.1, 3)), float(rng.uniform(-2, 2)))
            summed = Sum8.near(ratios, (3, 200), self.rounding())
            found = replace(found, residual=self.bytes(result), sum=summed)
        if end == "all":
            found = replace(found, last=self.table())
        return found

    def check(
        self,
        rows: int = 1,
        isa: tuple[str, ...] | None = None,
        threads: int = 1,
        spelled: bool = True,
    ) -> None:
        """Compile all operations as one plan, and compare each one's bytes with numpy's.

        Args:
            rows: Rows of a batch.
            isa: Instruction sets to write C for; this processor's by default.
            threads: Number of threads.
            spelled: Whether the C may spell instructions; without, any processor's can be run here.
        """
        plan, weights = planned(
            self.operations, self.constants, self.given, self.made, by_row=rows > 1
        )
        repeated = {
            name: np.concatenate([np.roll(array, row) for row in range(rows)])
            for name, array in self.given.items()
        }
        target = Target.host() if isa is None else replace(Target.host(), isa=isa)
        found = answers(
            plan, weights, repeated, rows=rows, target=target, threads=threads, spelled=spelled
        )
        for row in range(rows):
            known = self.constants | {
                name: np.roll(array, row) for name, array in self.given.items()
            }
            for operation in self.operations:
                name = operation.writes[0]
                operation.calculate(known)
                wanted = known[name]
                size = plan.tensor(name).size
                got = found[name][row * size : (row + 1) * size]
                assert got.tobytes() == wanted.tobytes(), operation


@pytest.mark.parametrize("first", [0, pytest.param(3, marks=pytest.mark.seconds)])
def test_convolutions_of_each_shape_with_some_end_equal_those_of_integers(first: int) -> None:
    made = Made(first)
    ends = (ENDS[(first + i) % len(ENDS)] for i in range(len(SHAPES)))
    made.operations = [made.conv(end, **shape) for end, shape in zip(ends, SHAPES, strict=True)]
    made.check()


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_convolutions_of_each_shape_with_each_end_equal_those_of_integers(end: str) -> None:
    made = Made(ENDS.index(end))
    made.operations = [made.conv(end, **shape) for shape in SHAPES]
    made.check()


@pytest.mark.parametrize(("isa", "spelled"), ISAS.values(), ids=ISAS)
def test_each_instruction_set_gives_the_same_bytes(isa: tuple[str, ...], *, spelled: bool) -> None:
    made = Made(len(isa))
    ends = itertools.cycle(ENDS)
    made.operations = [made.conv(next(ends), **shape) for shape in ODD]
    made.operations += [made.conv("sloped", **shape) for shape in ODD[::2]]
    made.check(isa=isa, spelled=spelled)


@pytest.mark.parametrize("name", ["widest", "avx512-vnni"])
def test_channels_that_fill_half_a_vector_or_little_more_give_the_same_bytes(name: str) -> None:
    made = Made(3)
    ends = itertools.cycle(ENDS)
    outs = (8, 24, 40, 56, 72, 25, 41, 57)  # of vectors of 16 channels, in blocks of up to four
    channels = [*((10, each) for each in outs), *((160, each) for each in outs[:4])]
    made.operations = [made.conv(next(ends), channels=each, size=(3, 7)) for each in channels]
    isa, spelled = ISAS[name]
    made.check(isa=isa, spelled=spelled)


@pytest.mark.parametrize("end", ["residual", "float"])
def test_threads_give_the_same_bytes(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = Made(7)
    few = {"channels": (12, 300), "size": (3, 2)}  # which threads share by channels, not by rows
    padded = {"channels": (5, 170), "size": (2, 3), "kernel": (3, 3), "pads": (1, 1, 1, 1)}
    shapes = (SHAPES[0], SHAPES[1], SHAPES[4], SHAPES[12], *ODD[:2], few, padded)
    made.operations = [made.conv(end, **shape) for shape in shapes]
    made.check(threads=3)


def test_rows_of_a_batch_are_those_of_one_row() -> None:
    made = Made(0)
    made.operations = [made.conv("all", **shape) for shape in SHAPES[:6]]
    made.check(rows=3)


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_goes_byte_by_byte_equals_integers(name: str) -> None:
    made = Made(1)
    for size in (1, 31, 64, 257):
        ratios = (0.7, -1.3)
        summed = Sum8.near(ratios, (1, 250), made.rounding())
        made.operations += [
            Table8(made.bytes(size), made.table(), made.output(size), size),
            Add8(made.bytes(size), made.bytes(size), made.output(size), size, summed),
        ]
    for pixels, channels in ((1, 5), (7, 3), (49, 64), (10, 40), (3, 150)):
        size = pixels * channels
        scale = made.constant(np.array([0.004], np.float32))
        made.operations.append(made.gated(pixels, channels))
        for gate in (True, False):
            second = made.bytes(channels if gate else size)
            made.operations.append(
                Multiply8(
                    *(made.bytes(size), second, scale, made.output(size), pixels, channels, gate),
                    *((7, 128), made.rounding()),
                )
            )
        floats = made.constant(made.rng.standard_normal(256).astype(np.float32))
        made.operations.append(
            Dequantize(made.bytes(size), floats, made.output(size, "float32"), channels, pixels)
        )
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pools_equal_those_of_integers(name: str) -> None:
    made = Made(2)
    for channels, size, kernel, strides, pads in (
        (16, (7, 7), (7, 7), (1, 1), (0, 0, 0, 0)),
        (33, (9, 8), (3, 3), (2, 2), (1, 1, 1, 1)),
        (5, (6, 6), (2, 2), (2, 2), (0, 0, 0, 0)),
        (8, (5, 9), (2, 3), (1, 1), (0, 1, 1, 1)),
        (100, (3, 5), (1, 5), (1, 1), (0, 0, 0, 0)),
        (16, (20, 30), (20, 30), (1, 1), (0, 0, 0, 0)),
        (65, (2, 300), (2, 300), (1, 1), (0, 0, 0, 0)),
    ):
        for largest in (True, False):
            scale = "" if largest else made.constant(np.array([0.02], np.float32))
            bare = Pool8("", scale, "", channels, size, kernel, strides, pads, 9, None)
            given = made.bytes(product(size) * channels)
            result = made.output(product(bare.output_size) * channels)
            rounding = None if largest else made.rounding()
            made.operations.append(replace(bare, input=given, output=result, rounding=rounding))
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.parametrize("name", PROCESSORS)
def test_floats_become_bytes_with_the_ends_nan_and_infinities(name: str) -> None:
    made = Made(3)
    sizes = ((1, 9), (30, 3), (49, 16), (100, 3), (70, 1), (500, 3), (65, 40), (16, 17), (140, 33))
    for pixels, channels in sizes:
        size = pixels * channels
        values = (made.rng.standard_normal(size) * 3).astype(np.float32)
        step = 0.5 if pixels < 100 else float(made.rng.uniform(1e-3, 0.1))
        if pixels >= 100:  # halves of steps, as they are and as floats round them
            values = ((made.rng.integers(-600, 600, size) / 2) * np.float32(step)).astype(
                np.float32
            )
        values[:7] = [np.nan, np.inf, -np.inf, 0.25, 0.75, 3e38, -0.0]
        made.given[f"x{pixels}"] = values
        made.operations.append(
            Quantize(f"x{pixels}", made.output(size), channels, pixels, step, made.rounding())
        )
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_share_an_operation_give_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = Made(6)
    byte, floats = np.float32(0.004), made.rng.standard_normal(256).astype(np.float32)
    scale = made.constant(np.array([byte]))
    for channels, size in ((40, (30, 6)), (144, (7, 7)), (5, (9, 9))):
        pixels, total = product(size), product(size) * channels
        shape = {"channels": (channels, channels), "groups": channels, "size": size}
        made.operations += [
            made.conv("all", kernel=(3, 3), pads=(1, 1, 1, 1), **shape),
            made.conv("plain", kernel=(5, 5), strides=(2, 2), pads=(2, 2, 2, 2), **shape),
            Table8(made.bytes(total), made.table(), made.output(total), total),
        ]
        made.operations.append(made.gated(pixels, channels))
        for gate in (True, False):
            second = made.bytes(channels if gate else total)
            given = (made.bytes(total), second, scale, made.output(total), pixels, channels, gate)
            made.operations.append(Multiply8(*given, (7, 128), made.rounding()))
        for kernel in (size, (3, 3)):
            bare = Pool8("", scale, "", channels, size, kernel, (1, 1), (0,) * 4, 9, None)
            result = made.output(product(bare.output_size) * channels)
            pool = replace(bare, input=made.bytes(total), output=result, rounding=made.rounding())
            made.operations.append(pool)
            result = made.output(product(bare.output_size) * channels)
            most = replace(bare, scale="", input=made.bytes(total), output=result)
            made.operations.append(most)
        made.operations.append(
            Dequantize(
                *(made.bytes(total), made.constant(floats), made.output(total, "float32")),
                *(channels, pixels),
            )
        )
    made.given["x"] = made.rng.standard_normal(3 * 500).astype(np.float32)
    made.operations.append(Quantize("x", made.output(1500), 3, 500, 0.01, made.rounding()))
    summed = Sum8.near((0.7, -1.3), (1, 250), made.rounding())
    made.operations.append(Add8(made.bytes(999), made.bytes(999), made.output(999), 999, summed))
    made.check(threads=threads)


@pytest.mark.parametrize("zeros", [(0, 0), (128, 0), (255, 255), (3, 200)])
@pytest.mark.parametrize("ratio", [1e-6, 1 / 255, 0.004, 0.03, 0.2])
def test_a_gate_gives_the_byte_nearest_to_the_product(zeros: tuple[int, int], ratio: float) -> None:
    product = Gate.near(ratio, zeros, Rounding(100))
    assert product is not None
    product.check()
    every = np.arange(256, dtype=np.uint8)
    found = product.of(np.repeat(every[:, None], 256, 1), every).astype(np.float64)
    real = np.outer(every - float(zeros[0]), every - float(zeros[1])) * ratio + 100
    within = (real > 1) & (real < 254)
    assert np.abs(found - real)[within].max() < 0.5 + 0.5 * 255 / 2**product.shift + 0.01
    assert (found[real < -1] == 0).all()
    assert (found[real > 256] == 255).all()


def test_a_gate_that_multiplies_by_more_than_64_has_no_such_product() -> None:
    assert Gate.near(64 / 255, (0, 0), Rounding(0)) is None
    assert Gate.near(63.9 / 255, (0, 0), Rounding(0)) is not None


@pytest.mark.parametrize(
    ("factor", "shift"), [(1 << 30, 15), (-1, 15), (1 << 20, 8), (1 << 20, 16)]
)
def test_a_gate_that_may_overflow_is_refused(factor: int, shift: int) -> None:
    with pytest.raises(IntegrityError, match="a product with a gate overflows"):
        Gate((0, 0), factor, shift, Rounding(0)).check()


def test_a_sum_that_may_overflow_is_refused() -> None:
    made = Made(4)
    conv = made.conv("plain", channels=(8, 1), size=(1, 1))
    made.operations = [conv]
    made.constants[conv.bias] = np.array([2**31 - 1], np.int32)
    with pytest.raises(IntegrityError, match="a sum of products may overflow"):
        made.check()
    made.constants[conv.bias] = np.array([0], np.int32)
    made.constants[conv.scale] = np.array([np.inf], np.float32)
    with pytest.raises(IntegrityError, match="a scale isn't a positive number"):
        made.check()


@pytest.mark.parametrize("name", ["widest", "sse2", "avx-vnni", "avx512-vnni"])
def test_halves_of_products_with_a_slope_go_to_the_even_byte(name: str) -> None:
    made = Made(6)
    target, spelled = PROCESSORS[name]
    for groups, kernel in ((1, (1, 1)), (1, (2, 2)), (24, (2, 2)), (24, (9, 9))):
        shape: dict[str, Any] = {"channels": (24, 24), "groups": groups, "kernel": kernel}
        conv = replace(made.conv("sloped", size=(9, 10), **shape), zero=1, rounding=Rounding(128))
        weight = np.zeros((24, conv.taps), np.int8)
        weight[:, 0] = -1
        made.constants[conv.weight] = weight
        made.constants[conv.bias] = np.arange(-12, 12, dtype=np.int32)
        made.constants[conv.scale] = np.full(24, 0.5, np.float32)
        made.constants[conv.slope] = np.tile(np.array([0.5, 1, -0.5], np.float32), 8)
        made.operations.append(conv)
    made.check(isa=target.isa, spelled=spelled)
    sums = np.array([-5, -4, -3, -2, -1, 0, 1, 3])
    found = Rounding(128).of(sums, np.float32(1), np.full(8, 0.5, np.float32))
    assert found.tolist() == [126, 126, 126, 127, 128, 128, 129, 131]


def test_the_largest_sums_are_exact() -> None:
    made = Made(5)
    conv = made.conv("float", channels=(2048, 2), size=(1, 1), kernel=(1, 1))
    conv = replace(conv, zero=0)
    made.given[conv.input] = np.full(2048, 255, np.uint8)
    made.constants[conv.weight] = np.repeat(np.array([[127], [-128]], np.int8), 2048, 1)
    made.operations = [conv]
    made.check()


@pytest.mark.parametrize(("zero", "byte"), [(255, 0), (0, 255)])
def test_the_average_of_the_longest_signal_overflows_nowhere(zero: int, byte: int) -> None:
    length, channels = MOST_LENGTH, 16
    scale = np.array([100 / (255 * length)], np.float32)
    pads = (0, 0, 0, 0)
    pool = Pool8(
        "x", "s", "y", channels, (length, 1), (length, 1), (1, 1), pads, zero, Rounding(110)
    )
    x = np.full(length * channels, byte, np.uint8)
    plan, weights = planned([pool], {"s": scale}, {"x": x}, {"y": ("uint8", channels)})
    assert set(answers(plan, weights, {"x": x})["y"]) == {110 + (100 if byte else -100)}
