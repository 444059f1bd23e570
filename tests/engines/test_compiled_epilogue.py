"""Sums become bytes as numpy makes them, for any number of channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.support.plans import PROCESSORS, answers, planned

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.epilogue import ChannelSums, Epilogue, laned_channels
from hasten.engines.compiled.operators.int8.numbers import Rounding, Sum8
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.writer import Writer


@dataclass(frozen=True)
class Sums(Operation):
    """End of a convolution, whose sums are given.

    Attributes:
        given: Tensor of `pixels x channels` int32.
        conv: The convolution.
        laned: Whether four vectors at a time have their channels in lanes.
    """

    given: str
    conv: Conv8
    laned: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.given, *filter(None, self.conv.reads))

    @property
    def writes(self) -> tuple[str, ...]:
        return self.conv.writes

    @property
    def work(self) -> int:
        return 1

    def check(self, plan: Plan) -> None:
        pass

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.writes[0]] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        sums = tensors[self.given].reshape(1, -1, self.conv.channels[1]).astype(np.int64)
        return self.conv.finish(sums, tensors)

    def emit(self, writer: Writer) -> None:
        wide = writer.byte_widths[0]
        lanes, channels = wide // 4, self.conv.channels[1]
        given = writer.read(self.given)
        pixels = self.conv.size[1]
        parts: list[ChannelSums] = []
        for pixel in range(pixels):
            for first in range(0, channels, lanes):
                name = f"s{len(parts)}"
                writer.line(f"vi_{wide} {name} = {{0}};")
                for lane in range(min(lanes, channels - first)):
                    channel = first + lane
                    if self.laned:
                        channel = laned_channels(wide)[channel]
                    writer.line(f"{name}[{lane}] = {given}[{pixel * channels + channel}];")
                count = min(lanes, channels - first)
                parts.append(ChannelSums(name, pixel * channels + first, first, count))
        epilogue = Epilogue.of(writer, self.conv, wide)
        if self.laned:  # scales and slopes lie as the sums do
            order, conv = laned_channels(wide), self.conv
            scale = writer.table(writer.constant(conv.scale)[order])
            slope = writer.table(writer.constant(conv.slope)[order]) if conv.slope else ""
            epilogue = replace(epilogue, scale=scale, slope=slope)
        epilogue.emit(writer, parts, self.laned)


@pytest.mark.parametrize("name", PROCESSORS)
def test_sums_become_what_numpy_makes_of_them(name: str) -> None:
    target, spelled = PROCESSORS[name]
    wide = 64 if "avx512bw" in target.isa else 32 if "avx2" in target.isa else 16
    rng = np.random.default_rng(0)
    operations: list[Operation] = []
    constants: dict[str, Array] = {}
    given: dict[str, Array] = {}
    made: dict[str, tuple[str, int]] = {}
    for number, channels in enumerate([1, 3, 5, 8, 11, 16, 24, 31, 32, 64, 70]):
        for end in range(number % 2, 5, 2):
            pixels = 1 + number % 3
            key = f"_{number}_{end}"
            sums = rng.integers(-3000, 3000, pixels * channels).astype(np.int32)
            sums[: min(4, channels)] = [2**31 - 1, -(2**31) + 1, 2**30, -(2**30)][:channels]
            given["s" + key] = sums
            given["r" + key] = rng.integers(0, 256, pixels * channels).astype(np.uint8)
            constants["k" + key] = rng.choice([0.05, 0.0625, 0.11], channels).astype(np.float32)
            constants["p" + key] = rng.uniform(-0.5, 1, channels).astype(np.float32)
            for each in "tl":
                constants[each + key] = rng.integers(0, 256, 256).astype(np.uint8)
            made["y" + key] = ("uint8" if end < 4 else "float32", pixels * channels)
            bounds = Rounding(*((5, 0, 255), (255, 3, 200), (0, 0, 200))[number % 3])
            conv = Conv8(
                *("", "", "", "k" + key, "y" + key, (1, channels), 1, (1, pixels)),
                *((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 0, bounds if end < 4 else None),
                table="t" + key if end in (1, 3) else "",
                residual="r" + key if end in (2, 3) else "",
                sum=Sum8.near((0.7, -1.9), (3, 250), bounds) if end in (2, 3) else None,
                last="l" + key if end == 3 else "",
                slope="p" + key if end in (1, 2) else "",
            )
            operations.append(Sums("s" + key, conv, channels == wide))
    plan, weights = planned(operations, constants, given, made)
    found = answers(plan, weights, given, target=target, spelled=spelled)
    for operation in operations:
        known = constants | given
        operation.calculate(known)
        wanted = known[operation.writes[0]]
        assert found[operation.writes[0]].tobytes() == wanted.tobytes(), operation
