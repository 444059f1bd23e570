from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")

from conftest import GENERATIONS  # noqa: E402

from hasten.data.arrays import ArrayDataset  # noqa: E402
from hasten.devices import FAMILIES, find_target  # noqa: E402
from hasten.engines import tpu  # noqa: E402
from hasten.engines.estimates import Estimate  # noqa: E402
from hasten.engines.tpu import Tpu  # noqa: E402
from hasten.errors import CandidateError  # noqa: E402
from hasten.measure.process import Worker  # noqa: E402
from hasten.model import Model  # noqa: E402
from hasten.passes.jax_program import JaxProgram  # noqa: E402
from hasten.records import to_record  # noqa: E402
from hasten.target import Target  # noqa: E402
from hasten.tensors import Array  # noqa: E402
from hasten.testing.networks import Encoder, Linear, with_program  # noqa: E402
from hasten.testing.pass_tests import answers, run, samples_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
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
    assert figures["program_bytes"] < figures["peak_memory_bytes"]
    assert figures["peak_memory_bytes"] < found.limits["peak_memory_bytes"]
    assert found.limits["peak_memory_bytes"] == tpu.GENERATIONS[target.part].memory_bytes


def test_every_generation_that_can_be_named_can_be_compiled_for() -> None:
    assert set(tpu.GENERATIONS) == set(FAMILIES["tpu"].parts)


def test_mobilenet_with_its_real_weights_answers_as_torch_does(
    mobilenet_v2: Any, photos: Array, tmp_path: Path
) -> None:
    import torch

    model = with_program(mobilenet_v2, {"x": photos[0]}, tmp_path)
    data = ArrayDataset({"x": photos})
    with torch.no_grad():
        want = mobilenet_v2(torch.from_numpy(photos)).numpy()
    off = {}
    for precision in ("f32", "bf16", "int8"):
        (tmp_path / precision).mkdir()
        result = JaxProgram(precision)(model, data, tmp_path / precision)
        got = answers(result, data, tmp_path / f"{precision}-answers", Tpu())["output"]
        off[precision] = float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))
    assert off["f32"] < 1e-5 < off["bf16"] < 0.05 < off["int8"] < 0.4


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", GENERATIONS)
def test_mobilenet_with_its_real_weights_compiles(
    part: str, mobilenet_v2: Any, photos: Array, tmp_path: Path
) -> None:
    target = find_target(f"tpu:{part}")
    model = with_program(mobilenet_v2, {"x": photos[0]}, tmp_path)
    (tmp_path / "bf16").mkdir()
    result = JaxProgram("bf16")(model, ArrayDataset({"x": photos[:1]}), tmp_path / "bf16")
    found = estimated(result, target, tmp_path / "built")
    check(found, target)
    assert found.figures["flops"] > 5e8


@pytest.mark.parametrize("part", GENERATIONS)
def test_an_encoder_compiles_in_every_precision(part: str, tmp_path: Path) -> None:
    target = find_target(f"tpu:{part}")
    model = with_program(Encoder(), {"x": SAMPLE}, tmp_path)
    sizes = []
    for precision in ("f32", "bf16", "int8"):
        result = run(JaxProgram(precision), model, tmp_path, precision)
        found = estimated(result, target, tmp_path / f"{precision}-built")
        check(found, target)
        sizes.append(found.figures["program_bytes"])
    assert sizes[0] > sizes[1] > sizes[2]


def test_cycles_of_a_product_follow_the_arithmetic(tmp_path: Path) -> None:
    """A v5e's matrix unit multiplies twice as many int8 as bfloat16; float32 takes six bfloat16.

    Source: Google Cloud's documentation, "TPU v5e": 394 TOPS of int8, 197 TFLOPS of bfloat16.
    """
    rows, width = 4096, 2048
    target = find_target("tpu:v5e")
    model = with_program(Linear(width), {"x": np.zeros((rows, width), np.float32)}, tmp_path)
    cycles = {}
    for precision in ("f32", "bf16", "int8"):
        result = run(JaxProgram(precision, samples=1), model, tmp_path, precision)
        estimate = estimated(result, target, tmp_path / f"{precision}-built")
        assert estimate.rank is not None
        cycles[precision] = _of_product(tmp_path / f"{precision}-built")
    least = rows * width * width / (4 * 128 * 128)  # four matrix units of 128 by 128
    assert 1 < cycles["bf16"] / least < 1.3
    assert 0.4 < cycles["int8"] / cycles["bf16"] < 0.65
    assert 4 < cycles["f32"] / cycles["bf16"] < 8


def _of_product(folder: Path) -> float:
    import json

    facts = json.loads((folder / tpu.FACTS).read_text())
    return float(facts["cycles_by_node"]["linear"])


def test_what_a_tpu_has_no_room_for_says_by_how_much(tmp_path: Path) -> None:
    import torch

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pairs = x[:, :, None] * x[:, None, :]
            return pairs.cumsum(-1).sort(-1).values.cumsum(1).sort(1).values.sum()

    sample = {"x": np.zeros(100_000, np.float32)}
    model = _of(Wide(), sample, tmp_path)
    result = run(JaxProgram(), model, tmp_path)
    (tmp_path / "built").mkdir()
    with pytest.raises(CandidateError) as caught:
        Tpu().build(result, find_target("tpu:v5e"), tmp_path / "built")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("XLA can't compile the model for tpu:v5e: RESOURCE_EXHAUSTED")


def _of(module: Any, sample: dict[str, Array], folder: Path) -> Model:
    """Keep a program whose ONNX file nobody could run here; the model's specs are another's."""
    from dataclasses import replace

    import torch

    from hasten.frontends.source import load_model
    from hasten.frontends.torch import keep_program
    from hasten.tensors import TensorSpec

    other = load_model(torch.nn.Flatten(0), {"x": np.zeros(4, np.float32)}, folder)
    spec = TensorSpec("x", "float32", (1, *sample["x"].shape))
    with torch.device("meta"):
        program = keep_program(module, sample, folder / "wide.pt2")
    return replace(other, inputs=(spec,), request=(spec,), program=program)


def test_a_compiler_that_takes_too_long_is_killed(mobilenet_v2: Any, tmp_path: Path) -> None:
    sample = {"x": np.zeros((3, 224, 224), np.float32)}
    model = with_program(mobilenet_v2, sample, tmp_path)
    result = run(JaxProgram(), model, tmp_path)
    target = find_target("tpu:v5e")
    with Worker(tmp_path / "log", target.memory_bytes) as worker:
        with pytest.raises(CandidateError, match=r"^hung: no answer within 4 s, killed$"):
            worker.ask(
                "build",
                limit_s=4,
                engine=to_record(Tpu()),
                model=to_record(result),
                target=to_record(target),
                workdir=str(tmp_path / "built"),
            )
        assert not worker.alive


def test_importing_the_engine_loads_neither_jax_nor_libtpu() -> None:
    import subprocess
    import sys

    code = (
        "import sys, hasten.engines.tpu, hasten.passes.jax_program; "
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
    assert samples_of(model, 1)
