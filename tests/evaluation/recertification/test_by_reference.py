"""`hasten certify --reference`: a bundle of compiled C is judged in numpy where there is no compiler."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from tests.support.bundles import built, stated
from tests.support.quantized import quantized

from hasten.bundle import NotCertifiedHere, load, write
from hasten.bundle.packing.writer import pack
from hasten.cli import main
from hasten.core.tensors import Array
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError, InputError

pytestmark = pytest.mark.seconds

_TEXT = """
    <ir_version: 8, opset_import: ["": 17]>
    small (float[N, 4, 6, 6] x) => (float[N, 3] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, v)
        r = Relu (c)
        p = GlobalAveragePool (r)
        f = Flatten (p)
        ENDS
    }"""
_NOTHING_SEEN: dict[str, list[str]] = {"hashes": [], "seen": [], "groups": []}
_PLAIN, _SOFT = (
    "y = Gemm <transB = 1> (f, w, b)",
    "s = Gemm <transB = 1> (f, w, b) y = Softmax (s)",
)


def _bundle(folder: Path, ends: str = _PLAIN, floats: Collection[str] = ()) -> Path:
    """A bundle of compiled C whose exact model ONNX Runtime answers."""
    shapes = {"v": (8, 4, 3, 3), "w": (3, 8), "b": (3,)}
    text = _TEXT.replace("ENDS", ends).replace("[N,", "[1,")
    model = quantized(text, shapes, floats=floats)
    for one in (model.graph.input[0], model.graph.output[0]):
        one.type.tensor_type.shape.dim[0].dim_param = "N"
    parts = []
    for name, engine in (("fast", CompiledC()), ("exact", OnnxRuntime(threads=1))):
        onnx.save(model, folder / f"{name}.onnx")
        parts.append(built(folder, folder / f"{name}.onnx", engine))
    write(folder / "small.hasten", stated(*parts), {"sealed.json": _NOTHING_SEEN})
    return folder / "small.hasten"


def _samples(folder: Path, count: int = 200) -> tuple[Path, Array]:
    x = np.random.default_rng(7).standard_normal((count, 4, 6, 6)).astype(np.float32)
    np.savez(folder / "new.npz", x=x, labels=np.zeros(count, np.int64))
    return folder / "new.npz", x


def _run(bundle: Path, data: Path, *words: str) -> Result:
    return CliRunner().invoke(
        main, ["certify", str(bundle), "--data", str(data), "--max-drop", "20%", *words]
    )


def test_a_bundle_is_judged_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, (data, x) = _bundle(tmp_path), _samples(tmp_path)
    with load(bundle, cache=tmp_path / "cache") as compiled:
        wanted = compiled(x)["y"]
    monkeypatch.setenv("HASTEN_CC", "off")
    refused = _run(bundle, data)
    assert (refused.exit_code, refused.output) == (
        2,
        "hasten: HASTEN_CC=off: nothing is compiled\n",
    )
    ended = _run(bundle, data, "--reference")
    assert ended.exit_code == 0, ended.output
    assert (
        "the winner's answers were calculated by its reference engine (integers in numpy): the same "
        "bits as those of compiled C" in ended.output
    )
    with load(bundle, reference=True) as reference:
        assert reference.not_certified == ()
        assert reference(x)["y"].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("which", ["winner", "exact"])
def test_the_reference_needs_no_compiler_and_asks_no_cache_for_a_packed_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, *, kept: bool
) -> None:
    _bundle(tmp_path)
    part = built(tmp_path, (tmp_path / "fast.onnx").rename(tmp_path / "one.onnx"), CompiledC())
    write(tmp_path / "both.hasten", stated(part, part), {})
    packed, cache = pack(tmp_path / "both.hasten").path, tmp_path / "cache" if kept else False
    x = np.random.default_rng(7).standard_normal((3, 4, 6, 6)).astype(np.float32)
    with load(packed, cache=cache) as compiled:
        wanted = compiled(x)["y"]
    monkeypatch.setenv("HASTEN_CC", "off")
    with load(packed, which=which, reference=True, cache=cache) as reference:  # type: ignore[arg-type]
        assert reference(x)["y"].tobytes() == wanted.tobytes()
        assert "compiler" not in reference.properties()


def test_what_ends_in_floats_is_said_to_be_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, (data, x) = _bundle(tmp_path, _SOFT, ["y"]), _samples(tmp_path)
    with load(bundle, cache=tmp_path / "cache") as compiled:
        wanted = compiled(x)["y"]
    ended = _run(bundle, data, "--reference")
    assert ended.exit_code == 0, ended.output
    assert "(integers in numpy): near, but not the same bits as those of" in ended.output
    with (
        pytest.warns(NotCertifiedHere, match="calculates floats, whose last bits differ"),
        load(bundle, reference=True) as reference,
    ):
        np.testing.assert_allclose(reference(x)["y"], wanted, rtol=1e-5)


def test_an_engine_without_a_reference_is_refused_in_one_line(tmp_path: Path) -> None:
    bundle, (data, _) = _bundle(tmp_path), _samples(tmp_path, 20)
    with pytest.raises(InputError, match=r"ONNX Runtime.* has no reference engine: leave out"):
        load(bundle, which="exact", reference=True)
    part = built(
        tmp_path, (tmp_path / "exact.onnx").rename(tmp_path / "o.onnx"), OnnxRuntime(threads=1)
    )
    write(tmp_path / "plain.hasten", stated(part, part), {})
    ended = _run(tmp_path / "plain.hasten", data, "--reference")
    assert ended.exit_code == 2
    assert ended.output.count("\n") == 1
    assert ended.output.endswith("which has no reference engine: leave out --reference\n")


def test_a_step_that_only_the_c_has_is_named(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        floats (float[1, 4] x) => (float[1, 3] y) { y = MatMul (x, w) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    onnx.save(model, tmp_path / "floats.onnx")
    part = built(tmp_path, tmp_path / "floats.onnx", CompiledC())
    write(tmp_path / "floats.hasten", stated(part, part), {})
    with (
        pytest.warns(NotCertifiedHere),
        load(tmp_path / "floats.hasten", reference=True) as opened,
        pytest.raises(CandidateError, match=r"^a step calculates with floats \(dense\)"),
    ):
        opened(np.ones((1, 4), np.float32))
