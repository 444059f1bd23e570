import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")


from tests.support.networks import Encoder, Linear, with_program

from hasten.core.devices import FAMILIES, find_target
from hasten.core.model import Model
from hasten.core.records import to_record
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.core.workers import Worker
from hasten.engines.estimates import Estimate
from hasten.engines.tpu import engine as tpu
from hasten.engines.tpu.conversion import Precision
from hasten.engines.tpu.engine import Tpu
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.passes.jax_program import JaxProgram
from hasten.testing.pass_tests import answers, run

pytestmark = pytest.mark.filterwarnings("ignore")
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
GENERATIONS = ("v5e", "v4", "v6e")
"""The others take the same way, and benchmarks/tpu.py goes it."""
SIDE = 2048
SAMPLE = np.zeros((64, 256), np.float32)


def estimated(model: Model, target: Target, workdir: Path) -> Estimate:
    workdir.mkdir()
    artifact = Tpu().build(model, target, workdir)
    assert {file.name for file in artifact.files} == {tpu.EXECUTABLE, tpu.FACTS}
    assert all(file.stat().st_size for file in artifact.files)
    return Tpu().estimate(artifact, target, workdir)


def check(found: Estimate, target: Target) -> None:
    figures = found.figures
    assert (found.source, found.unit, found.latency_ns) == ("compiler estimate", "cycles", None)
    assert found.rank == figures["estimated_cycles"] > 0
    assert figures["flops"] > 0 < figures["accessed_bytes"]
    least = figures["argument_bytes"] + figures["output_bytes"]
    assert least < figures["peak_memory_bytes"] < found.limits["peak_memory_bytes"]
    assert found.limits["peak_memory_bytes"] == tpu.GENERATIONS[target.part].memory_bytes


def test_every_generation_that_can_be_named_can_be_compiled_for() -> None:
    assert set(tpu.GENERATIONS) == set(FAMILIES["tpu"].parts)


@pytest.fixture(scope="module")
def mobilenet(
    mobilenet_v2: Any, photos: Array, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Model]:
    """MobileNetV2 in every precision, ranges set by the photographs."""
    folder = tmp_path_factory.mktemp("mobilenet")
    model = with_program(mobilenet_v2, {"x": photos[0]}, folder)
    results: dict[str, Model] = {}
    for precision in PRECISIONS:
        (folder / precision).mkdir()
        step = JaxProgram(precision)
        results[precision] = step(model, ArrayDataset({"x": photos}), folder / precision)
    return results


def test_mobilenet_with_its_real_weights_answers_as_torch_does(
    mobilenet: Mapping[str, Model], mobilenet_v2: Any, photos: Array, tmp_path: Path
) -> None:
    import torch

    data = ArrayDataset({"x": photos[::3]})
    with torch.no_grad():
        want = mobilenet_v2(torch.from_numpy(photos[::3])).numpy()
    off = {}
    for precision, model in mobilenet.items():
        got = answers(model, data, tmp_path / precision, Tpu())["output"]
        off[precision] = float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))
    assert off["f32"] < 1e-5 < off["bf16"] < 0.1
    assert off["int8"] < 0.2


@pytest.mark.parametrize("part", GENERATIONS)
def test_mobilenet_with_its_real_weights_compiles(
    part: str, mobilenet: Mapping[str, Model], tmp_path: Path
) -> None:
    target = find_target(f"tpu:{part}")
    found = estimated(mobilenet["bf16"], target, tmp_path / "built")
    check(found, target)
    assert found.figures["flops"] > 5e8


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    """A transformer's layers in every precision."""
    folder = tmp_path_factory.mktemp("encoder")
    model = with_program(Encoder(), {"x": SAMPLE}, folder)
    return {one: run(JaxProgram(one), model, folder, one) for one in PRECISIONS}


@pytest.mark.parametrize("part", GENERATIONS)
def test_an_encoder_compiles_in_every_precision(
    part: str, encoder: Mapping[str, Model], tmp_path: Path
) -> None:
    target = find_target(f"tpu:{part}")
    sizes = []
    for precision in PRECISIONS:
        found = estimated(encoder[precision], target, tmp_path / f"{precision}-built")
        check(found, target)
        sizes.append(found.figures["program_bytes"])
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("part", ["v5e", "v5p"])
def test_cycles_of_a_product_follow_the_arithmetic(part: str, tmp_path: Path) -> None:
    """Matrix units multiply twice as many int8 as bfloat16; float32 takes six products of bfloat16.

    Source: Google Cloud's documentation, "TPU v5e" and "TPU v5p": 394 and 918 TOPS of int8, 197 and
    459 TFLOPS of bfloat16.
    """
    target = find_target(f"tpu:{part}")
    cycles = {
        dtype: estimated(_product(dtype, tmp_path), target, tmp_path / f"{dtype}-built").rank
        for dtype in ("float32", "bfloat16", "int8")
    }
    assert None not in cycles.values()
    units = {"v5e": 4, "v5p": 8}[part]  # of 128 by 128
    least = SIDE**3 / (units * 128 * 128)
    assert 1 < (cycles["bfloat16"] or 0) / least < 1.3
    assert 0.4 < (cycles["int8"] or 0) / (cycles["bfloat16"] or 1) < 0.65
    assert 4 < (cycles["float32"] or 0) / (cycles["bfloat16"] or 1) < 8


def _product(dtype: str, folder: Path) -> Model:
    """Write one product of two square matrices."""
    from hasten.engines.tpu import stablehlo

    def multiplied(values: Mapping[str, Any]) -> dict[str, Any]:
        import jax.numpy as jnp

        gives = jnp.int32 if dtype == "int8" else jnp.float32
        return {"y": jnp.matmul(values["a"], values["b"], preferred_element_type=gives)}

    specs = tuple(TensorSpec(name, dtype, (SIDE, SIDE)) for name in "ab")
    path = folder / f"{dtype}.stablehlo"
    stablehlo.write(multiplied, specs, path, exact=True)
    gives = TensorSpec("y", "int32" if dtype == "int8" else "float32", (SIDE, SIDE))
    return Model(path, "stablehlo", specs, (gives,), specs)


def test_what_a_tpu_has_no_room_for_says_by_how_much(tmp_path: Path) -> None:
    from hasten.engines.tpu import stablehlo

    side = 1 << 17

    def wide(values: Mapping[str, Any]) -> dict[str, Any]:
        import jax

        pairs = values["x"][0, :, None] * values["x"]
        return {"y": jax.lax.sort(jax.lax.sort(pairs, dimension=0), dimension=1)[0]}

    spec = TensorSpec("x", "float32", (1, side))
    path = tmp_path / "model.stablehlo"
    stablehlo.write(wide, [spec], path, exact=True)
    model = Model(path, "stablehlo", (spec,), (TensorSpec("y", "float32", (side,)),), (spec,))
    (tmp_path / "built").mkdir()
    with pytest.raises(CandidateError) as caught:
        Tpu().build(model, find_target("tpu:v5e"), tmp_path / "built")
    assert re.fullmatch(
        r"XLA can't compile the model for tpu:v5e: RESOURCE_EXHAUSTED: .*\d+\.\d+G.*15\.75G.*",
        str(caught.value),
    )


def test_a_compiler_that_takes_too_long_is_killed(
    mobilenet: Mapping[str, Model], tmp_path: Path
) -> None:
    target = find_target("tpu:v5e")
    with Worker(tmp_path / "log", target.memory_bytes) as worker:
        with pytest.raises(CandidateError, match=r"^hung: no answer within 3 s, killed$"):
            worker.ask(
                "build",
                limit_s=3,
                engine=to_record(Tpu()),
                model=to_record(mobilenet["f32"]),
                target=to_record(target),
                workdir=str(tmp_path / "built"),
            )
        assert not worker.alive


def test_importing_the_engine_loads_neither_jax_nor_libtpu() -> None:
    import subprocess
    import sys

    code = (
        "import sys, hasten.engines.tpu.engine, hasten.passes.jax_program; "
        "sys.exit(any(name in sys.modules for name in ('jax', 'libtpu', 'torch', 'torchax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_compiling_leaves_the_environment_alone(tmp_path: Path) -> None:
    import os

    before = dict(os.environ)
    model = with_program(Linear(128), {"x": np.zeros((8, 128), np.float32)}, tmp_path)
    result = run(JaxProgram(), model, tmp_path)
    estimated(result, find_target("tpu:v5e"), tmp_path / "built")
    assert dict(os.environ) == before
