"""Convolutions of bytes by AMX equal numpy's integers bit for bit, here where the processor has it and in plain C."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.test_compiled_bytes import ENDS, ODD, SHAPES, Made
from tests.support.plans import WITH_AMX, planned

from hasten.core.c_compiler import Compiler
from hasten.engines.compiled import granted, library, source
from hasten.engines.compiled.library import Library
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.source import write
from hasten.engines.compiled.tensors import product
from hasten.errors import CandidateError

DEEP: list[dict[str, Any]] = [
    {"channels": (96, 64), "size": (7, 7)},
    {"channels": (184, 80), "size": (5, 9)},  # 184 bytes are no whole number of even runs
    {"channels": (32, 24), "size": (1, 5)},  # fewer pixels than a register has rows for
    {"channels": (28, 130), "size": (3, 11)},
    {"channels": (48, 33), "size": (2, 33), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    {"channels": (20, 70), "size": (9, 17), "kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"channels": (64, 64), "groups": 2, "size": (3, 20), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    {"channels": (25, 17), "size": (6, 9), "kernel": (3, 2), "dilations": (2, 2), "pads": (2, 1, 2, 1)},
]  # fmt: skip
_SHAPES = st.fixed_dictionaries(
    {
        "end": st.sampled_from(ENDS),
        "channels": st.tuples(st.integers(24, 150), st.integers(1, 140)),
        "size": st.tuples(st.integers(3, 9), st.integers(3, 40)),
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "strides": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "pads": st.tuples(*[st.integers(0, 1)] * 4),
    }
)
here = pytest.mark.skipif(
    not granted.amx_granted(), reason="no AMX here, or the system denies it: plain C ran instead"
)
SPELLED = [pytest.param(True, marks=here, id="AMX"), pytest.param(False, id="plain C")]


@pytest.mark.parametrize("spelled", SPELLED)
def test_convolutions_equal_those_of_integers(*, spelled: bool) -> None:
    made = Made(3)
    ends = itertools.cycle(ENDS)  # more ends than divide the shapes: neighbours differ
    shapes = [*DEEP, *SHAPES[8:], *ODD[:3]] if spelled else DEEP
    made.operations = [made.conv(next(ends), **shape) for shape in shapes]
    made.check(isa=WITH_AMX.isa, spelled=spelled)


@pytest.mark.parametrize("spelled", SPELLED)
def test_threads_and_rows_of_a_batch_give_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, *, spelled: bool
) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = Made(2)
    made.operations = [made.conv("residual", **shape) for shape in DEEP[1:6]]
    made.check(rows=3, isa=WITH_AMX.isa, threads=3, spelled=spelled)


@pytest.mark.parametrize(
    ("compiler", "isa"),
    [
        ("gcc-12.2.0", ("asimddp", "i8mm")),
        ("clang-22.1.0", ("asimddp", "i8mm")),
        ("gcc-9.4.0", ("asimddp",)),
        ("gcc-7.3.1", ()),
        ("tcc-unknown", ()),
    ],
)
def test_an_old_compiler_gets_only_instructions_of_arm_that_it_spells(
    compiler: str, isa: tuple[str, ...]
) -> None:
    target = replace(WITH_AMX, isa=("asimddp", "i8mm"))
    assert granted.granted(target, compiler).isa == isa


@here
@settings(max_examples=5)
@given(shapes=st.lists(_SHAPES, min_size=4, max_size=4))
def test_any_shape_equals_integers(shapes: list[dict[str, Any]]) -> None:
    made = Made(4)
    made.operations = [made.conv(**shape) for shape in shapes]
    made.check(isa=WITH_AMX.isa)


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_largest_sums_are_right(weight: int, *, spelled: bool) -> None:
    made = Made(1)
    made.operations = [made.conv("float", channels=(512, 40), size=(2, 8), kernel=(2, 1))]
    conv = made.operations[0]
    assert isinstance(conv, Conv8)
    made.constants[conv.weight] = np.full_like(made.constants[conv.weight], weight)
    made.given[conv.input] = np.full(product(conv.size) * 512, 255, np.uint8)
    made.check(isa=WITH_AMX.isa, spelled=spelled)


def test_a_system_that_denies_amx_and_an_old_compiler_get_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = replace(WITH_AMX, isa=tuple(one for one in WITH_AMX.isa if not one.startswith("amx")))
    monkeypatch.setattr(granted, "amx_granted", lambda: True)
    assert (
        granted.granted(WITH_AMX, "gcc-12.2.0") is granted.granted(WITH_AMX, "clang-22") is WITH_AMX
    )
    assert granted.granted(WITH_AMX, "gcc-10.2.1") == granted.granted(WITH_AMX, "tcc") == vectors
    monkeypatch.setattr(granted, "amx_granted", lambda: False)
    assert granted.granted(WITH_AMX, "gcc-12.2.0") == vectors
    assert granted.granted(vectors, "gcc-12.2.0") is vectors


@here
def test_a_library_with_amx_is_refused_where_the_system_denies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Made(5)
    made.operations = [made.conv("plain", **DEEP[0])]
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    content = Compiler.find().compile(write(plan, weights, WITH_AMX).text).content
    Library(content)
    monkeypatch.setattr(library, "amx_granted", lambda: False)
    with pytest.raises(
        CandidateError, match="needs AMX, which the system doesn't allow this process to use"
    ):
        Library(content)
