"""What a bundle says, and what it gets, on a machine that isn't the one it was made on."""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tests.support.bundles import built, forge, stated
from tests.support.quantized import quantized

from hasten.bundle import (
    MeasuredElsewhere,
    NotCertifiedHere,
    Part,
    UnfinishedRun,
    differences,
    engine_of,
    load,
    write,
)
from hasten.bundle.manifest import untimed_yet
from hasten.bundle.packing.writer import pack
from hasten.cli import main
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.operators.maps import Map
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.tensors import Access, Tensor
from hasten.engines.null import Null, NullSession
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.measure.environment import environment, packages
from hasten.testing import models

X = np.arange(16, dtype=np.float32).reshape(1, 16)


def test_what_differs_from_the_certified_machine_is_said(tmp_path: Path, winner: Part) -> None:
    host = Target.host()
    there = replace(host, processor="Another CPU", isa=("avx2",), threads=host.threads + 1)
    versions = {**environment(host), "onnxruntime": "0.1"}
    other = stated(winner, None, target=there, environment=versions)
    write(tmp_path / "b", other, {})
    notes = (
        f"processor: Another CPU there, {host.processor} here",
        f"instruction sets: avx2 there, {' '.join(host.isa)} here",
        f"onnxruntime: 0.1 there, {OnnxRuntime.version()} here",
        f"threads: {host.threads + 1} there, {host.threads} here",
    )
    with pytest.warns(NotCertifiedHere) as caught:
        loaded = load(tmp_path / "b")
    with loaded:
        assert loaded.not_certified == notes
        assert loaded(X)["logits"].shape == (1, 4)
    assert [str(w.message) for w in caught] == [f"not certified here: {'; '.join(notes)}"]
    assert caught[0].filename == __file__


def test_what_is_certified_before_its_run_has_finished_says_so(
    tmp_path: Path, winner: Part
) -> None:
    why = untimed_yet("sure enough")
    write(tmp_path / "b", stated(winner, None, why=why), {})
    with pytest.warns(UnfinishedRun) as caught:
        loaded = load(tmp_path / "b")
    with loaded:
        assert loaded.not_certified == ()
    assert [str(one.message) for one in caught] == [f"{tmp_path / 'b'}: {why}"]
    assert caught[0].filename == __file__
    assert why == (
        "the run has not finished: sure enough; it hasn't been timed again yet, so another model may "
        "still ship; continue with --resume"
    )


@pytest.mark.parametrize(("status", "which"), [("exact", "winner"), ("uncertified", "exact")])
def test_an_exact_model_on_another_machine_says_that_it_was_measured_elsewhere(
    tmp_path: Path, winner: Part, status: str, which: Literal["winner", "exact"]
) -> None:
    host = Target.host()
    there = replace(host, processor="Another CPU")
    write(tmp_path / "b", stated(winner, winner, status=status, why="interim", target=there), {})
    with pytest.warns(MeasuredElsewhere) as caught:
        loaded = load(tmp_path / "b", which=which)
    with loaded:
        note = f"processor: Another CPU there, {host.processor} here"
        assert loaded.not_certified == (note,)
        assert loaded(X)["logits"].shape == (1, 4)
    assert [str(w.message) for w in caught] == [
        f"measured elsewhere: {note}; the answers are exact here too, within the tolerance, but "
        "another candidate may be faster here: run hasten optimize on this machine to find out"
    ]
    assert caught[0].filename == __file__


def test_the_version_that_counts_is_that_of_the_engine_that_is_opened(
    tmp_path: Path, winner: Part
) -> None:
    zeros = built(tmp_path, models.small_cnn(tmp_path), Null())
    versions = {**environment(Target.host()), "onnxruntime": "0.1"}
    write(tmp_path / "b", stated(zeros, winner, environment=versions), {})
    with load(tmp_path / "b") as fast:
        assert fast.not_certified == ()
    with pytest.warns(MeasuredElsewhere, match="^measured elsewhere: onnxruntime: 0.1 there, "):
        load(tmp_path / "b", which="exact").close()


def test_more_threads_than_were_certified_are_no_difference(winner: Part) -> None:
    host = Target.host()
    other = stated(winner, None, target=replace(host, threads=1))
    assert differences(other, replace(host, threads=8), environment(host)) == []


VERSIONS = {
    "openvino_npu": ("openvino",),
    "litert_reference": ("ai-edge-litert",),
    "coreml": ("coremltools", "onnx2coreml", "torch"),
    "qnn": ("onnxruntime-qnn", "onnxruntime"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings",),
    "tensorrt": ("tensorrt-cu13-bindings",),
    "onnxruntime_cuda": ("onnxruntime-gpu",),
    "torch_cuda": ("torch", "triton"),
    "tpu": ("jax", "jaxlib", "libtpu"),
    "fpga": ("da4ml",),
    "compiled": ("C compiler",),
}


@pytest.mark.parametrize(("engine", "packages"), VERSIONS.items())
def test_another_version_of_what_an_engine_stands_on_is_said(
    winner: Part, engine: str, packages: tuple[str, ...]
) -> None:
    there = stated(
        replace(winner, engine={"type": engine}), None, environment=dict.fromkeys(packages, "0.1")
    )
    assert differences(there, Target.host(), dict.fromkeys(packages, "0.2")) == [
        f"{package}: 0.1 there, 0.2 here" for package in packages
    ]


def test_every_engine_says_what_it_stands_on_and_a_bundle_records_it() -> None:
    silent = {name for name, kind in Engine.members().items() if not kind.distributions}
    # Two are hasten's own code; the C compiler is no package. A cascade and buckets are made of engines.
    assert silent == {"null", "compiled", "cascade", "buckets", "split"}
    stood_on = {name for kind in Engine.members().values() for name in kind.distributions}
    assert stood_on <= set(packages())
    assert len(set(packages())) == len(packages())


def test_of_a_design_that_answers_alike_anywhere_only_the_packages_count(winner: Part) -> None:
    host = Target.host()
    other = replace(host, processor="Another CPU", isa=("avx2",), threads=host.threads + 1)
    device = other.with_device("fpga:ecp5-85k", present=False)
    design = replace(winner, engine={"type": "fpga"})
    made = stated(design, winner, target=device, environment={"da4ml": "0.1", "onnxruntime": "1"})
    here = host.with_device("fpga:ecp5-85k", present=False)
    assert differences(made, here, {"da4ml": "0.1"}) == []
    assert differences(made, here, {"da4ml": "0.2"}) == ["da4ml: 0.1 there, 0.2 here"]
    of_the_original = differences(made, here, {"onnxruntime": "1"}, winner)
    assert [note.partition(":")[0] for note in of_the_original] == [
        "processor",
        "instruction sets",
        "threads",
    ]
    tpu = other.with_device("tpu:v5e", present=False)
    stand_in = stated(replace(winner, engine={"type": "tpu"}), None, target=tpu, environment={})
    assert differences(stand_in, here, {})[0].startswith("processor: Another CPU there")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writer of a bundle of compiled C as another machine, with another compiler, would have made it."""

    def made(nodes: str, output: str, floats: Collection[str] = (), **fields: Any) -> Path:
        text = f"""
            <ir_version: 8, opset_import: ["": 17]>
            small (float[1, 4, 6, 6] x) => (float[1, 3] {output}) {{
                p = GlobalAveragePool (x)
                f = Flatten (p)
                {nodes}
            }}"""
        onnx.save(quantized(text, {"w": (3, 4), "b": (3,)}, floats=floats), tmp_path / "s.onnx")
        part = built(tmp_path, tmp_path / "s.onnx", CompiledC())
        host = Target.host()
        there = replace(host, processor="Another CPU", isa=("avx2",), threads=host.threads + 1)
        versions = {**environment(host), "C compiler": "gcc-1.0"}
        facts = {"target": there, "environment": versions, **fields}
        write(tmp_path / "there.hasten", stated(part, part, **facts), {})
        return tmp_path / "there.hasten"

    return made


_LAST = "y = Gemm <transB = 1> (f, w, b)"


@pytest.mark.filterwarnings("error")
def test_a_certificate_of_bytes_alone_holds_on_every_machine(
    elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    path = elsewhere(_LAST, "y")
    for one in (path, pack(path).path):
        with load(one, cache=tmp_path / "cache") as loaded:
            assert loaded.not_certified == ()
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    (line,) = [line for line in shown.output.splitlines() if line.startswith("this machine")]
    assert "processor: Another CPU there" in line
    assert line.endswith(
        "; the certificate holds here, since the answers are the same bits everywhere"
    )


def test_a_certificate_of_a_plan_with_floats_holds_on_its_own_machine_only(
    elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    path = elsewhere("s = Gemm <transB = 1> (f, w, b) y = Softmax (s)", "y", ["y"])
    with pytest.warns(NotCertifiedHere), load(path, cache=tmp_path / "cache") as loaded:
        names = [note.partition(":")[0] for note in loaded.not_certified]
    assert names == ["processor", "instruction sets", "C compiler", "threads"]


def test_the_plan_that_is_opened_tells_whether_a_certificate_holds_everywhere(
    elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    path = elsewhere(_LAST, "y")
    for file in path.rglob("plan.json"):
        plan = Plan.read(file)
        (last,) = plan.outputs
        twice = Map(
            (Step("add", (0, 0), "float32"),), (Access(last, (1,)),), Access("z", (1,)), (3,)
        )
        tensors = {**plan.tensors, "z": Tensor("float32", 3)}
        steps = (*plan.operations, twice)
        replace(plan, tensors=tensors, operations=steps, outputs=("z",)).write(file)
        forge(path, files={str(file.relative_to(path)): file.read_bytes()})
    with pytest.warns(NotCertifiedHere, match="processor: Another CPU there"):
        load(path, cache=tmp_path / "cache").close()


def test_an_exact_model_of_bytes_may_be_slower_elsewhere_though_its_answers_are_the_same(
    elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    path = elsewhere(_LAST, "y", status="exact", why="nothing was faster")
    with pytest.warns(MeasuredElsewhere, match="processor: Another CPU there"):
        load(path, cache=tmp_path / "cache").close()


def nvidia(proc: Path, models: tuple[str, ...], release: str) -> Path:
    """A /proc as NVIDIA's driver fills it."""
    folder = proc / "driver" / "nvidia"
    for number, model in enumerate(models):
        gpu = folder / "gpus" / f"0000:0{number}:00.0"
        gpu.mkdir(parents=True)
        (gpu / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 24\n")
    (folder / "version").write_text(f"NVRM version: {release}\nGCC version:  gcc 12.2.0 (x)\n")
    return proc


@pytest.mark.parametrize(
    "release",
    [
        "NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (u@h)  Mon 2023",
    ],
)
def test_a_bundle_certified_on_one_gpu_says_so_on_another(
    tmp_path: Path, winner: Part, release: str
) -> None:
    gpu = Target.host().with_device("cuda", present=True)
    one, two = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"
    proc = nvidia(tmp_path / "one", (one, one), release)
    there = environment(gpu, proc=proc)
    assert (there["device"], there["driver"]) == (one, "535.104.05")
    newer = nvidia(tmp_path / "two", (two, one), release.replace("535.104.05", "570.1"))
    made = stated(replace(winner, engine={"type": "tensorrt"}), None, target=gpu, environment=there)
    assert differences(made, gpu, there) == []
    assert differences(made, gpu, environment(gpu, proc=newer)) == [
        f"device: {one} there, {one}, {two} here",
        "driver: 535.104.05 there, 570.1 here",
    ]
    board = tmp_path / "three" / "device-tree" / "model"
    board.parent.mkdir(parents=True)
    board.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    jetson = environment(gpu, proc=tmp_path / "three")
    assert (jetson["device"], "driver" in jetson) == ("NVIDIA Jetson AGX Orin Developer Kit", False)
    nowhere = gpu.with_device("cuda", present=False)
    assert "device" not in environment(nowhere, proc=proc)
    assert differences(made, nowhere, environment(nowhere))[:1] == [
        f"device: {one} there, none here"
    ]
    assert "driver" not in environment(gpu, proc=tmp_path)


@pytest.mark.parametrize(
    ("asked", "given"), [(None, None), (10**9, 2), (2, 2), (1, 1), (0, 1), (-3, 1)]
)
def test_an_engine_gets_no_more_threads_than_there_are_whatever_the_bundle_asks(
    winner: Part, asked: int | None, given: int | None
) -> None:
    asking = replace(winner, engine={"type": "onnxruntime", "threads": asked})
    assert engine_of(asking, 2) == OnnxRuntime(threads=given)


@pytest.mark.parametrize("threads", [10**9, 0, -(10**9)])
def test_a_loaded_bundle_runs_on_threads_that_this_process_may_use(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def change(record: dict[str, Any]) -> None:
        record["target"]["threads"] = record["winner"]["engine"]["threads"] = threads

    @contextlib.contextmanager
    def opened(engine: OnnxRuntime, artifact: Artifact, target: Target) -> Iterator[Session]:
        asked.append((engine.threads, target.threads))
        yield NullSession(artifact)

    asked: list[tuple[int | None, int]] = []
    forge(bundle, change)
    monkeypatch.setattr(OnnxRuntime, "open", opened)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCertifiedHere)
        load(bundle).close()
    most = Target.host().threads if threads > 0 else 1
    assert asked == [(most, most)]


@pytest.mark.parametrize(
    ("status", "said"), [("uncertified", ["not certified here: interim"]), ("exact", [])]
)
def test_at_home_an_uncertified_bundle_says_so_and_an_exact_one_has_nothing_to_say(
    tmp_path: Path, winner: Part, status: str, said: list[str]
) -> None:
    write(tmp_path / "b", stated(winner, winner, status=status, why="interim"), {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(tmp_path / "b").close()
        load(tmp_path / "b", which="exact").close()
    assert [str(w.message) for w in caught] == said


def test_batches_that_are_not_certified_run_where_they_are_asked_for_and_are_warned_of_once(
    bundle: Path,
) -> None:
    note = "3 rows at once: not certified at this batch size, but at 1"
    three = np.zeros((3, 16), np.float32)
    for arrays, named in (((three,), {}), ((), {"x": three})):
        with load(bundle, any_batch=True) as loaded:
            with pytest.warns(NotCertifiedHere) as caught:
                assert loaded(*arrays, **named)["logits"].shape == (3, 4)
            assert [str(w.message) for w in caught] == [f"not certified here: {note}"]
            assert caught[0].filename == __file__
            assert loaded.not_certified == (note,)
            loaded(np.zeros((5, 16), np.float32))
    with load(bundle, which="exact") as loaded:
        loaded(np.zeros((3, 16), np.float32))
