"""Whole runs without data, and what they can't be asked for."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tests.support import models as more
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.cli import main
from hasten.errors import InputError
from hasten.optimization.without_data import deciding_inputs
from hasten.testing import models


@pytest.mark.seconds
def test_exact_candidates_alone_ship_and_others_are_drafted(tmp_path: Path) -> None:
    model = models.small_cnn(tmp_path)
    with quick_runs(passes=True, races=False):
        result = hasten.optimize(
            model,
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
            passes=["static_quantization"],
        )
    assert result.status == "exact"
    assert result.why.endswith("ships: without data none can be judged")
    assert not any("int8" in label for label in result.tried)
    notes = "\n".join(result.notes)
    assert "no data was given: 64 inputs were made up; " in notes
    assert re.search(r"a certificate at --max-drop 1% takes about 2,300 samples in all", notes)
    assert "draft" in notes
    assert result.population == "made-up inputs: no data was given"
    manifest = read(tmp_path / "b.hasten")
    assert manifest.certificate is None
    assert not list(tmp_path.glob("*.work"))


def test_a_model_of_token_numbers_is_tried_within_its_table(tmp_path: Path) -> None:
    with quick_runs(races=False):
        result = hasten.optimize(
            models.two_inputs(tmp_path), out=tmp_path / "b.hasten", engines=["onnxruntime"]
        )
    with hasten.load(tmp_path / "b.hasten") as model:
        assert {spec.name for spec in model.inputs} == {"features", "ids"}
    assert result.status == "exact"


def said(*arguments: object) -> str:
    """Return the one line of a command that must end with 2."""
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 2, result.output
    return result.stderr.removeprefix("preparing ...\n")


def test_inputs_decide_by_their_values_not_by_their_sizes() -> None:
    graph = onnx.parser.parse_graph(
        """
        g (float[b, n] x, float[1] step, int64[1] rate, bool[1] flag) => (float[b, n] y) {
            sizes = Shape (x)
            wide = Gather (sizes, rate)
            some = Cast <to = 9> (wide)
            either = And (some, flag)
            scaled = Mul (x, step)
            y = If (either) <
                then_branch = a () => (float[b, n] one) { one = Identity (scaled) },
                else_branch = c () => (float[b, n] two) { two = Neg (scaled) }>
        }
        """
    )
    assert deciding_inputs(graph) == {"rate", "flag"}


@pytest.mark.parametrize("rate", ["int64", "int64[1]"])
def test_a_single_number_without_data_is_refused_in_one_line(tmp_path: Path, rate: str) -> None:
    line = said("optimize", more.voice_detector(tmp_path, rate), "--out", tmp_path / "b.hasten")
    assert line == (
        "hasten: input 'rate' is a single number, and a made-up number may take a branch that no real "
        "request takes: give --data that contains it\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voice_detector.onnx"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training", "train.npz"),
        ("small_model", "small.onnx"),
        ("ask_labels", "page"),
        ("accept_uncertified", True),
    ],
)
def test_what_takes_data_is_refused_without(tmp_path: Path, name: str, value: Any) -> None:
    model = models.linear_classifier(tmp_path)
    with pytest.raises(
        InputError, match=rf"^{name}= needs data to judge with: give data=, or leave it out$"
    ):
        hasten.optimize(model, out=tmp_path / "b.hasten", **{name: value})


def test_a_model_that_no_made_up_input_suits(tmp_path: Path) -> None:
    text = """
        picky (float[batch, length] x) => (float[batch, 7] y) { y = MatMul(x, w) }"""
    model = models.write(tmp_path / "picky.onnx", text, {"w": (5, 7)})
    line = said("optimize", model, "--out", tmp_path / "b.hasten")
    assert line.startswith(
        "hasten: made-up inputs don't suit the model, which takes x: float32[batch, length]: "
        "give --data; "
    )
    assert line.count("\n") == 1


def test_a_folder_with_code_of_its_own_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "mine.Mine"}}')
    (folder / "mine.py").write_text("raise SystemExit('it ran')\n")
    line = said("optimize", folder, "--out", tmp_path / "b.hasten")
    assert line == (
        f"hasten: {folder} contains Python code of its own (auto_map in config.json), which isn't run: if you "
        "trust it, add --trust-code\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_an_unknown_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "spiece.model").write_bytes(b"")
    line = said("optimize", folder, "--out", tmp_path / "b.hasten")
    assert line == (
        f"hasten: {folder} has a tokenizer that isn't supported (spiece.model without "
        "tokenizer.json): load it with transformers' AutoTokenizer and save it with "
        "save_pretrained, which writes that file\n"
    )


@pytest.mark.seconds
def test_a_batch_that_the_export_fixed_is_said_with_its_reason(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")

    class OneBatch(torch.nn.Module):  # type: ignore[misc,name-defined]
        hasten_sample = (4,)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
            return x.reshape(1, 2, 2) + 1

    with quick_runs(races=False):
        result = hasten.optimize(
            OneBatch(), out=tmp_path / "b.hasten", engines=["onnxruntime"], metric="regression:0.1"
        )
    assert (
        "the exported batch is 1, so a server can't batch requests: the model can't run "
        "x float32[2, 4]: shape '[1, 2, 2]' is invalid for input of size 8"
    ) in result.notes


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (
            "(float[n, 8] x) => (float[n, 3] logits, float[n, 3] twice) "
            "{ logits = MatMul(x, w) twice = Add(logits, logits) }",
            "(logits, twice): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
        (
            "(float[n, 8] x) => (float[n, 1] y) { m = MatMul(x, w) y = ReduceSum(m, axes) }",
            "(y): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
        (
            "(float[n, 8] x) => (int64[n] y) { m = MatMul(x, w) y = ArgMax<axis=1, keepdims=0>(m) }",
            "(y): they must be equal",
        ),
        (
            "(float[n, 8] x) => (bool[n, 3] y, float[n, 3] m) { m = MatMul(x, w) y = Greater(m, zero) }",
            None,  # the scores' class is compared
        ),
        (
            "(float[n, 8] x) => (bool[n, 3] y) { m = MatMul(x, w) y = Greater(m, zero) }",
            "(y): they must be equal",
        ),
        (
            "(float[n, 8] x) => (bool[n, 3] y, float[n, 1] s) "
            "{ m = MatMul(x, w) y = Greater(m, zero) s = ReduceSum(m, axes) }",
            "(y, s): floats may differ by 0.1% of the largest, as rounding makes them, and all else must be equal",
        ),
        (
            "(float[n, 8] x) => (float y) { m = MatMul(x, w) y = ReduceSum<keepdims=0>(m) }",
            "(y): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
        (
            "(float[8] x) => (float[3] y) { y = MatMul(x, w) }",
            "(y): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
        (
            "(float[n, 2, 4, 8] x) => (float[n, 2, 4, 3] y) { y = MatMul(x, w) }",
            "(y): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
        (
            "(float[n, t, 8] x) => (float[n, t, 3] y) { y = MatMul(x, w) }",
            "(y): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
        (
            "(float[4, 8] x) => (float[4, 3] y) { y = MatMul(x, w) }",
            "(y): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
        (
            "(float[T, N, 8] x) => (float[N, 3] y) "
            "{ m = MatMul(x, w) y = ReduceMean<keepdims=0>(m, first) }",
            "(y): floats may differ by 0.1% of the largest, as rounding makes them",
        ),
    ],
)
def test_a_first_try_needs_no_metric_whatever_the_outputs_are(
    tmp_path: Path, signature: str, said: str | None
) -> None:
    rng = np.random.default_rng(0)
    graph = onnx.parser.parse_graph(f"g {signature}")
    for name, array in {
        "w": rng.standard_normal((8, 3)).astype(np.float32),
        "zero": np.float32(0),
        "axes": np.array([1]),
        "first": np.array([0]),
    }.items():
        if any(name in node.input for node in graph.node):
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "m.onnx")
    with quick_runs(races=False):
        result = hasten.optimize(
            tmp_path / "m.onnx", out=tmp_path / "b.hasten", engines=["onnxruntime"], passes=[]
        )
    assert result.status == "exact"
    notes = [note for note in result.notes if note.startswith("answers were compared")]
    begin = "answers were compared with the original's by every output "
    assert notes == ([] if said is None else [begin + said])


def test_what_was_made_without_a_metric_can_be_certified_without_one(tmp_path: Path) -> None:
    text = """
        two (float[n, 8] x) => (float[n, 3] one, float[n, 2] other) {
            one = MatMul(x, v)
            other = MatMul(x, w)
        }"""
    model = models.write(tmp_path / "two.onnx", text, {"v": (8, 3), "w": (8, 2)})
    data = tmp_path / "new.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((300, 8), np.float32))
    with quick_runs(races=False):
        made = hasten.optimize(
            model, out=tmp_path / "b.hasten", engines=["onnxruntime"], guard="changed"
        )
    assert made.status == "exact"
    result = CliRunner().invoke(
        main, ["certify", str(tmp_path / "b.hasten"), "--data", str(data), "--max-drop", "5%"]
    )
    assert result.exit_code == 0, result.output


NEW = "or install a newer ONNX Runtime"


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize(
    ("header", "node", "line"),
    [
        (
            '<ir_version: 99, opset_import: ["" : 17]>',
            "Neg(x)",
            rf"the file has IR version 99; ONNX Runtime \d+\.\d+ reads up to (\d+): set the model's ir_version to \1 and "
            rf"save it, {NEW}",
        ),
        (
            '<ir_version: 8, opset_import: ["" : 99]>',
            "Neg(x)",
            r"the file has opset 99; ONNX Runtime \d+\.\d+ reads up to (\d+): export it with opset_version=\1, "
            + NEW,
        ),
        (
            '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 99]>',
            "Neg(x)",
            r"the file has opset 99 of ai\.onnx\.ml; ONNX Runtime \d+\.\d+ reads up to \d+: export it with an older one, "
            + NEW,
        ),
        (
            '<ir_version: 8, opset_import: ["" : 17]>',
            "mine.Own(x)",
            r".*No opset import for domain 'mine'; if you have a library with the operator, give it with "
            "--custom-ops LIBRARY",
        ),
        (
            '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>',
            "mine.Own(x)",
            r".*mine:Own\(-1\) is not a registered function/op \(node that gives 'y'\); if you have a library with the "
            "operator, give it with --custom-ops LIBRARY",
        ),
    ],
)
def test_a_model_that_cant_be_opened_is_said_to_be_so(
    tmp_path: Path, header: str, node: str, line: str, with_data: bool
) -> None:
    text = f"{header} some (float[n, 8] x) => (float[n, 8] y) {{ y = {node} }}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "some.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((99, 8), np.float32))
    data = ["--data", tmp_path / "d.npz"] if with_data else []
    out = ["--out", tmp_path / "b.hasten", "--engine", "onnxruntime"]
    last = said("optimize", tmp_path / "some.onnx", *data, *out).splitlines()[-1]
    begin = "hasten: no engine runs this model: original, ONNX Runtime: ONNX Runtime can't load the model: "
    assert re.fullmatch(re.escape(begin) + line, last), last
