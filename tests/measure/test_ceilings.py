"""Ceilings by the real engines, on kernels made small."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.forked_workers import forked_workers, workers_as_asked

from hasten.cli import main
from hasten.core.records import read_json, write_json
from hasten.core.target import Target
from hasten.core.words import amount
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import InputError
from hasten.inputs.data.spool import Spool
from hasten.measure import bandwidth, ceilings, kernels
from hasten.measure.ceilings import measure
from hasten.measure.kernels import Kernel
from hasten.measure.latency import Pace
from hasten.measure.roofline import Ceilings

ONE = Target.host().with_threads(1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name, value in (
        (kernels, "_SIDE", 64),
        (kernels, "_CHANNELS", 16),
        (kernels, "_PIXELS", 8),
        (bandwidth, "_BLOCK_NS", 0),
        (bandwidth, "_LEAST_MEMORY_BYTES", 1 << 20),
        (ceilings, "TURNS", 2),
        (ceilings, "PACE", Pace(warmup_ns=0, block_ns=0)),
    ):
        monkeypatch.setattr(module, name, value)
    with forked_workers():
        yield


@pytest.fixture
def made(tmp_path: Path) -> dict[tuple[str, str], Kernel]:
    return {(one.name, one.precision): one for one in kernels.kernels(tmp_path, 1)}


@pytest.mark.seconds
def test_ceilings_are_those_of_installed_engines_on_so_many_threads(tmp_path: Path) -> None:
    found = measure(ONE, tmp_path)
    assert found.threads == 1
    has_bf16 = bool({"avx512_bf16", "amx_bf16"} & set(ONE.isa))
    assert found.operations_per_s.keys() == {"f32", "i8"} | ({"bf16"} if has_bf16 else set())
    assert found.reached_by.keys() == found.operations_per_s.keys()
    assert all(rate > 0 for rate in found.operations_per_s.values())
    engine, kernel = found.reached_by["f32"].split(", ")
    assert engine in ("ONNX Runtime", "OpenVINO", "LiteRT", "compiled C")
    assert kernel in ("matrix products", "convolutions")
    assert found.levels[-1].name == "memory"
    assert 0 < found.empty_call_ns < 1e9


def test_each_engine_shows_them_in_a_fresh_interpreter(tmp_path: Path) -> None:
    with workers_as_asked() as fresh:
        found = measure(ONE, tmp_path, ("onnxruntime",))
    assert set(fresh) == {True}
    assert found.operations_per_s["f32"] > 0


def test_they_are_measured_once_for_a_folder_a_machine_and_a_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(ONE, tmp_path, ("onnxruntime",))
    assert [file.name for file in tmp_path.iterdir()] == ["ceilings.json"]
    again = []

    def measured(*asked: object) -> Ceilings:
        again.append(asked)
        return found

    monkeypatch.setattr(ceilings, "_measured", measured)
    assert measure(ONE, tmp_path, ("onnxruntime",)) == found
    assert not again
    measure(ONE, tmp_path, ("openvino",))
    measure(ONE.with_threads(2), tmp_path, ("openvino",))
    assert len(again) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"taken_on": 1}', "{"])
def test_a_damaged_file_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "ceilings.json").write_text(text)
    found = Ceilings(1, {"f32": 1.0}, {"f32": "x"}, (), 1.0)
    monkeypatch.setattr(ceilings, "_measured", lambda *asked: found)
    assert measure(ONE, tmp_path) == found
    assert measure(ONE, tmp_path) == found


def test_a_record_that_does_not_fit_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Ceilings(1, {"f32": 1.0}, {"f32": "x"}, (), 1.0)
    monkeypatch.setattr(ceilings, "_measured", lambda *asked: found)
    measure(ONE, tmp_path)
    record = read_json(tmp_path / "ceilings.json")
    del record["ceilings"]["empty_call_ns"]
    write_json(tmp_path / "ceilings.json", record)
    assert measure(ONE, tmp_path) == found


def test_an_engine_that_computes_nothing_shows_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        measure(ONE, tmp_path, ("null",))
    assert str(error.value) == (
        "no engine can show what this machine can do: none that is exact is installed"
    )
    assert not list(tmp_path.iterdir())


def test_where_no_engine_runs_a_kernel_the_first_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "PACE", Pace(limit_s=0.0))
    with pytest.raises(InputError) as error:
        measure(ONE, tmp_path, ("onnxruntime",))
    assert str(error.value) == (
        "no engine can show what this machine can do: hung: no answer within 0 s, killed"
    )


@pytest.mark.parametrize("engine", [OnnxRuntime(), OpenVino()])
@pytest.mark.parametrize("precision", ["f32", "i8"])
def test_all_products_of_a_kernel_run_in_its_precision(
    made: dict[tuple[str, str], Kernel], tmp_path: Path, engine: Engine, precision: str
) -> None:
    for name in ("matrix products", "convolutions"):
        kernel, workdir = made[name, precision], tmp_path / name
        workdir.mkdir()
        artifact = engine.build(kernel.model, ONE, workdir)
        steps = engine.profile(artifact, ONE, [Spool.open(kernel.samples).inputs([0])])
        products = [step.precision for step in steps if step.kind == "arithmetic"]
        assert products == [precision] * 4


def test_a_kernels_operations_are_those_of_its_products(
    made: dict[tuple[str, str], Kernel],
) -> None:
    products, convolutions = made["matrix products", "f32"], made["convolutions", "i8"]
    assert products.operations == made["matrix products", "i8"].operations
    assert products.operations == 4 * 2 * 256 * 64 * 64
    assert convolutions.operations == 4 * 2 * 16 * 16 * (3 * 8 - 2) ** 2
    assert made["empty call", "f32"].operations == 0


def test_a_kernels_answers_are_finite_and_the_empty_call_hands_its_input_on(
    made: dict[tuple[str, str], Kernel], tmp_path: Path
) -> None:
    for number, kernel in enumerate(made.values()):
        workdir = tmp_path / f"built{number}"
        workdir.mkdir()
        engine = OnnxRuntime()
        request = Spool.open(kernel.samples).inputs([0])
        with engine.open(engine.build(kernel.model, ONE, workdir), ONE) as session:
            answer = session.run(request)["y"]
        assert np.isfinite(answer).all()
        assert answer.std() > 0 or np.array_equal(answer, request["x"])


@pytest.mark.seconds
def test_the_doctor_says_what_the_machine_can_do_at_all() -> None:
    result = CliRunner().invoke(main, ["doctor", "--ceilings"])
    assert result.exit_code == 0, result.output
    lines = dict(line.split(":", 1) for line in result.output.splitlines())
    threads = Target.host().threads
    assert (
        lines["ceilings"].strip()
        == f"the highest rates measured with {amount(threads, 'thread')} at once"
    )
    by = r"\w+( \w+)?(, \d+ threads)?, \w+( \w+)?"
    assert re.fullmatch(rf" +\d+ billion operations/s \({by}\)", lines["  f32"])
    assert re.fullmatch(r" +[\d.]+ GB/s copied, [\d.]+ GB/s read", lines["  memory"])
    assert re.fullmatch(r" +[\d.]+ µs", lines["  empty call"])
