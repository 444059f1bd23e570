"""Labels are for people, and no two candidates of a run have the same."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hasten.core.devices import FAMILIES
from hasten.core.model import Model
from hasten.core.objects import load_object
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.cascade import Cascade
from hasten.engines.fpga.engine import Fpga
from hasten.engines.fpga.fixed_point import FixedPointProgram
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import InputError
from hasten.inputs.models.onnx import load
from hasten.measure.candidate import Single
from hasten.optimization.measured.mixing import mixed
from hasten.passes.base import Pass, Selective
from hasten.passes.fix_shapes import FixShapes
from hasten.passes.fixed_point import FixedPoint, LayerWidth
from hasten.passes.float_layers import FloatLayers
from hasten.passes.hgq_training import HgqTraining
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.simplify import Simplify
from hasten.passes.small_model import SmallModel
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing import models

WIDE = replace(
    Target.host(),
    cpus=(0, 1, 2, 3),
    threads=4,
    isa=("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
)
NARROW = replace(WIDE, isa=("avx2", "fma"))
QUOTA = replace(WIDE, threads=2)
TARGETS = [
    *(WIDE, NARROW, QUOTA),
    *(WIDE.with_device(name, present=True) for name in ("cuda:sm75", "cuda:sm89", "tpu:v5e")),
    *(
        WIDE.with_device(name, present=False)
        for name in ("cuda:sm89", "tpu:v5e", "fpga:ecp5-85k", "npu", "igpu")
    ),
    *(WIDE.with_device(name, present=False) for name in ("qnn:sm8550", "litert", "coreml")),
]


@pytest.fixture(params=[models.small_cnn, models.tiny_transformer_block])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    found = load(request.param(tmp_path))
    return found.settled_by(
        {
            spec.name: np.zeros([n for n in spec.shape[1:] if isinstance(n, int)], spec.dtype)
            for spec in found.inputs
        }
    )


def engines_for(target: Target) -> list[Engine]:
    """Every registered engine's variants for a target, each with its tunings."""
    found: list[Engine] = []
    for path in Engine.registry.values():
        try:
            for variant in load_object(path).variants(target):
                found += [variant, variant.beside(), *variant.tunings(target)]
                found += [other for one in variant.tunings(target) for other in one.tunings(target)]
        except InputError:  # it has to ask a runtime that isn't installed what there is
            continue
    return list(dict.fromkeys(found))


def passes_for(model: Model, target: Target) -> list[tuple[Pass, ...]]:
    """Every registered pass's variants for a target, with layers in float too, and the exact ones before."""
    small = [SmallModel(Path("a"), (), "0", name) for name in ("", "a", "b")]
    ready = SmallModel(Path("a"), (), "0", "a", quantized=True)
    steps = [
        variant
        for path in Pass.registry.values()
        for variant in load_object(path).variants(model, target)
    ]
    wider = [
        mixed(Single((step,), OnnxRuntime()), [f"n_{i}=" for i in range(count)])
        for step in steps
        if isinstance(step, Selective)
        for count in (1, 9)
    ]
    chains = [(step,) for step in steps] + [one.passes for one in wider]
    alone: list[tuple[Pass, ...]] = [(), (ready,), (FixShapes(),), *((s,) for s in small)]
    before: list[tuple[Pass, ...]] = [(), (Simplify(),), (small[1],)]
    return list(dict.fromkeys([*alone, *((*b, *c) for b in before for c in chains if b != c)]))


def check(candidates: Iterable[Single]) -> None:
    """Every label is for people, and names one candidate."""
    code = {
        kind.rpartition(":")[2] for kind in (*Engine.registry.values(), *Pass.registry.values())
    }
    code -= {"Null", "Reference"}  # words of the language
    by_label: dict[str, Single] = {}
    for candidate in candidates:
        label = candidate.label
        assert by_label.setdefault(label, candidate) == candidate, label
        assert not re.search(r"[_=]|None|True|False", label), label
        assert code.isdisjoint(re.findall(r"\w+", label)), label
        assert label == " ".join(label.split())
        assert ", ," not in label


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.device}-{t.kind}-{t.threads}")
def test_no_two_candidates_have_the_same_label_and_none_has_a_name_from_code(
    model: Model, target: Target
) -> None:
    engines = engines_for(target)
    assert engines
    check(
        Single(steps, engine)
        for steps in passes_for(model, target)
        for engine in engines
        if (steps[-1].gives if steps else model.format) in engine.formats
    )


def test_the_devices_of_every_family_are_among_these_targets() -> None:
    assert {target.family for target in TARGETS} >= set(FAMILIES)


def test_cascades_differ_by_their_models_engines_and_margins() -> None:
    fast = [OpenVino(), OpenVino("bf16"), OnnxRuntime()]
    careful = [OpenVino(), OnnxRuntime(), OnnxRuntime(spinning=False), OnnxRuntime(threads=1)]
    passes: list[tuple[Pass, ...]] = [
        (),
        (NncfQuantization("performance"),),
        (NncfQuantization("performance"), FloatLayers(("a",))),
        (SmallModel(Path("a"), (), "0", "a"),),
    ]
    check(
        Single(steps, Cascade(one, other, margin, "logits", 1))
        for steps in passes
        for one in fast
        for other in careful
        for margin in (0.0, 0.123456, 0.123457, 12.5)
    )


def test_fixed_point_programs_differ_by_every_bit() -> None:
    widths = [
        (),
        *((LayerWidth(node, bits, 8),) for node in "ab" for bits in (6, 7)),
        (LayerWidth("a", 8, 7),),
    ]
    check(
        Single((FixedPoint(*bits, layers=layers),), engine)
        for bits in ((8, 8, 8), (7, 8, 8), (8, 7, 8), (8, 8, 7))
        for layers in widths
        for engine in (FixedPointProgram(), Fpga(), Fpga(4.0), Fpga(seed=2))
    )


@pytest.mark.parametrize(
    ("candidate", "label"),
    [
        (Single((), OnnxRuntime()), "original, ONNX Runtime"),
        (Single((), OpenVino("bf16", threads=1)), "bf16, OpenVINO, 1 thread"),
        (
            Single((NncfQuantization("performance", False, samples=300),), OpenVino()),
            "int8 (NNCF, accurate biases), OpenVINO",
        ),
        (
            Single((StaticQuantization(),), OnnxRuntime()),
            "int8 (ONNX Runtime, per channel, minmax), ONNX Runtime",
        ),
        (
            Single((Simplify(), NncfQuantization(), FloatLayers(("a", "b"))), OpenVino("bf16")),
            "simplified, int8 (NNCF, zero points), 2 layers in float, bf16, OpenVINO",
        ),
        (
            Single(
                (SmallModel(Path("a"), (), "0", "tiny"),),
                Cascade(OpenVino(), OnnxRuntime(spinning=False), 0.5, "logits"),
            ),
            "small model tiny first, then the original "
            "(OpenVINO, then ONNX Runtime, idle threads asleep below a margin of 0.5)",
        ),
        (
            Single((HgqTraining(Path("a"), "0", pressure=0.5),), Fpga()),
            "trained fixed point (HGQ2, pressure 0.5, 200 epochs), pipeline of 2 additions a cycle",
        ),
    ],
)
def test_a_label_says_what_was_done(candidate: Single, label: str) -> None:
    assert candidate.label == label


def test_the_settings_are_spelled_out_beside_the_label() -> None:
    step = NncfQuantization("performance", False, keep_float=("a", "b"), samples=300)
    assert Single((step,), OpenVino("bf16")).settings == (
        "nncf_quantization(preset=performance, fast_bias_correction=False, keep_float=2 nodes, "
        "samples=300) + openvino(precision=bf16)"
    )
