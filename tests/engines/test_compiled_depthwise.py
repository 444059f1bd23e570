"""Depthwise convolutions of bytes equal numpy's integers bit for bit, whatever the shape and the processor."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.test_compiled_bytes import ENDS, Made
from tests.support.plans import PROCESSORS, WITH_AMX, planned

from hasten.core.c_compiler import Compiler
from hasten.core.target import Target
from hasten.engines.compiled.source import write


def _shape(rng: np.random.Generator, channels: int) -> dict[str, Any]:
    """Return a random shape of few pixels."""
    kernel = [int(rng.choice([3, 3, 3, 5, 7, 1, 2])) for _ in range(2)]
    dilations = [int(rng.choice([1, 1, 1, 2, 3])) for _ in range(2)]
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = [int(rng.integers(0, one)) for one in (*reach, *reach)]
    least = [max(1, reach[at] - pads[at] - pads[at + 2]) for at in (0, 1)]
    size = [int(rng.integers(one, max(16, one + 3))) for one in least]
    return {
        "channels": (channels, channels),
        "groups": channels,
        "size": tuple(size),
        "kernel": tuple(kernel),
        "strides": tuple(int(rng.choice([1, 1, 2, 2, 3])) for _ in range(2)),
        "dilations": tuple(dilations),
        "pads": tuple(pads),
    }


@pytest.mark.parametrize("name", PROCESSORS)
def test_any_depthwise_convolution_equals_that_of_integers(name: str) -> None:
    made = Made(list(PROCESSORS).index(name))
    numbers = [1, 4, 7, 9, 17, 24, 40, 64, 70]
    made.operations = [
        made.conv(ENDS[at % len(ENDS)], **_shape(made.rng, one)) for at, one in enumerate(numbers)
    ]
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.parametrize("name", ["widest", "avx512-vnni", "avx512-without-vnni"])
def test_steps_of_two_equal_integers_at_every_edge(name: str) -> None:
    made = Made(4)
    for at, wide in enumerate([3, 4, 7, 8, 9, 15, 16, 17]):
        kernel = (1 + at % 4, 1 + (at + 1) % 3)
        pads = (kernel[0] - 1, at % kernel[1], at % kernel[0], kernel[1] - 1)
        channels = (64, 96, 100, 128)[at % 4]
        made.operations += [
            made.conv(
                ENDS[(at + more) % len(ENDS)],
                channels=(channels, channels),
                groups=channels,
                size=(5 + at % 3, wide),
                kernel=kernel,
                strides=(1 + (at + more) % 3, 2),
                pads=pads,
            )
            for more in range(2)
        ]
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.parametrize("name", ["widest", "sse2"])
def test_large_pictures_are_computed_strip_by_strip(name: str) -> None:
    made = Made(9)
    usual = {"channels": (80, 80), "groups": 80, "kernel": (3, 3), "pads": (1, 1, 1, 1)}
    made.operations = [
        made.conv("plain", size=(29, 75), **usual),
        made.conv("residual", size=(30, 74), strides=(2, 2), **usual),
        made.conv("plain", size=(9, 300), **(usual | {"kernel": (5, 5)})),
        made.conv("plain", size=(40, 40), **(usual | {"pads": (0, 0, 0, 0)})),
    ]
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.seconds
@pytest.mark.parametrize("name", PROCESSORS)
def test_pads_larger_than_picture_and_kernel_equal_those_of_integers(name: str) -> None:
    made = Made(12)
    for at, pads in enumerate(
        [
            *((0, 300, 0, 0), (0, 0, 0, 300), (0, 90, 0, 90), (40, 0, 0, 0), (0, 0, 40, 0)),
            (9, 70, 11, 80),
        ]
    ):
        shape: dict[str, Any] = {
            "size": (1 + at, 8),
            "kernel": (1 + at % 2, 1 + at // 2),
            "pads": pads,
        }
        across = (1 + at % 2, 1 + at % 3)
        for channels, groups in ((32, 32), (7, 7), (70, 70), (8, 1), (24, 3)):
            shape |= {"channels": (channels, channels), "groups": groups, "strides": across}
            made.operations.append(made.conv(ENDS[at], **shape))
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.parametrize("name", PROCESSORS)
def test_odd_steps_beyond_a_byte_equal_those_of_integers(name: str) -> None:
    made = Made(13)
    shape: dict[str, Any] = {"kernel": (3, 1), "strides": (1001, 1), "size": (5008, 1)}
    made.operations.append(made.conv("plain", channels=(32, 32), groups=32, **shape))
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


def test_steps_and_distances_of_many_columns_equal_those_of_integers() -> None:
    made = Made(14)
    usual: dict[str, Any] = {"channels": (32, 32), "groups": 32}
    made.operations = [
        made.conv("plain", size=(1, 90_000), kernel=(1, 7), strides=(1, 20_000), **usual),
        made.conv("plain", size=(1, 90_000), kernel=(1, 3), dilations=(1, 40_000), **usual),
    ]
    made.check()


@pytest.mark.parametrize("name", PROCESSORS)
def test_large_kernels_equal_those_of_integers(name: str) -> None:
    made = Made(11)
    for at, (channels, kernel) in enumerate(
        [(16, (9, 9)), (40, (13, 13)), (7, (17, 1)), (24, (1, 65)), (33, (31, 31)), (1, (9, 11))]
    ):
        made.operations.append(
            made.conv(
                ENDS[at],
                channels=(channels, channels),
                groups=channels,
                size=(10, 7) if kernel[0] > 1 else (1, 90),
                kernel=kernel,
                strides=(1 + at % 2, 1),
                dilations=(1, 1 + (at == 5)),
                pads=(kernel[0] // 2, kernel[1], kernel[0] // 2, kernel[1] // 2),
            )
        )
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize(
    ("march", "isa"),
    [
        ("sapphirerapids", " ".join(WITH_AMX.isa)),
        ("icelake-server", "avx2 fma avx512f avx512bw avx512vbmi avx512_vnni"),
        ("cascadelake", "avx2 fma avx512f avx512bw avx512_vnni"),
        ("skylake-avx512", "avx2 fma avx512f avx512bw"),
        ("alderlake", "avx2 fma avx_vnni"),
    ],
)
def test_c_for_a_processor_that_isnt_here_compiles(tmp_path: Path, march: str, isa: str) -> None:
    made = Made(1)
    usual = {"kernel": (3, 3), "pads": (1, 1, 1, 1), "size": (3, 5)}
    made.operations = [
        made.conv("all", channels=(channels, channels), groups=channels, **usual)
        for channels in (144, 24)
    ]
    made.operations.append(made.conv("all", channels=(64, 48), **usual))
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    target = replace(Target.host(), isa=tuple(isa.split()))
    Path(tmp_path, "model.c").write_text(write(plan, weights, target).text)
    compiler = Compiler.find()
    flags = [f"-march={march}" if flag == "-march=native" else flag for flag in compiler.flags]
    command = [*compiler.command, *flags, "-c", "-o", "model.o", "model.c"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
