import ast
import contextlib
import importlib.util
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from tests.inputs.models.test_hugging_face_folders import config, with_tokenizer
from tests.support import ragged
from tests.support.at_hand import EXPORT, at_hand
from tests.support.quick import quick_runs

from hasten.cli import main
from hasten.errors import InputError
from hasten.evaluation.project import init
from hasten.testing import models


@pytest.fixture
def torch_is_at_hand() -> Iterator[None]:
    with at_hand(*EXPORT):
        yield


def filled_in(folder: Path) -> None:
    """Fill in `samples` as its line says, with labels that are none."""
    script = folder / "data.py"
    lines = [line for line in script.read_text().splitlines() if "raise InputError" not in line]
    script.write_text("\n".join(lines).replace("yield inputs, label ", "yield inputs "))


def samples_of(folder: Path) -> list[Any]:
    spec = importlib.util.spec_from_file_location("project_data", folder / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.samples())


def test_a_project_holds_a_data_script_with_the_models_own_inputs(tmp_path: Path) -> None:
    place = init(str(models.two_inputs(tmp_path)), tmp_path / "project")
    assert sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()) == [
        ".github/workflows/hasten.yml",
        "Makefile",
        "data.py",
        "hasten.toml",
    ]
    assert "\nMODEL = ../two_inputs.onnx\n" in (place / "Makefile").read_text()
    filled_in(place)
    first = samples_of(place)[0]
    assert {name: (array.shape, str(array.dtype)) for name, array in first.items()} == {
        "features": ((8,), "float32"),
        "ids": ((3,), "int64"),
    }
    workflow = yaml.safe_load((place / ".github/workflows/hasten.yml").read_text())
    assert workflow["jobs"]["certify"]["steps"][-1]["with"]["data"] == "data.py:new_samples"


def test_the_data_script_says_what_is_to_be_filled_in(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    place = init(str(model), tmp_path / "project")
    data = f"{place}/data.py:samples"
    result = CliRunner().invoke(main, ["optimize", str(model), "--data", data])
    assert result.exit_code == 2
    assert result.stderr == (
        "hasten: data.py: samples is still to be filled in; delete this line then\n"
    )


def test_make_runs_a_first_try_without_data(tmp_path: Path) -> None:
    place = init(str(models.linear_classifier(tmp_path)), tmp_path / "project")
    command = f"{sys.executable} -m tests.support.quick"
    done = subprocess.run(
        ["make", "-n", "-C", str(place), "try", f"HASTEN={command}"],
        capture_output=True,
        text=True,
        check=True,
    )
    asked = done.stdout.split("tests.support.quick ")[1].split("\n")[0].split()
    assert asked[:4] == ["--config", "off", "optimize", "../linear_classifier.onnx"]
    asked = [word for word in asked if word not in ("--effort", "quick")]  # quicker still
    with quick_runs(races=False), pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = CliRunner().invoke(main, [*asked, "--engine", "onnxruntime"])
    assert result.exit_code == 0, result.output
    assert (place / "first-try.hasten" / "manifest.json").exists()


def test_open_axes_are_named_in_the_data_script(tmp_path: Path) -> None:
    text = "open_axes (float[batch, 3, height, width] x) => (float[batch, 3, height, width] y) { y = Relu(x) }"
    place = init(str(models.write(tmp_path / "m.onnx", text, {})), tmp_path / "project")
    line = next(one for one in (place / "data.py").read_text().splitlines() if "'x'" in one)
    assert line.strip() == (
        "'x': np.zeros((3, 224, 224), 'float32'),  # axis 1 is open (height), axis 2 is open (width)"
    )


def lines_of(model: str, place: Path) -> list[str]:
    """Return the lines of a new project's data script that give its inputs."""
    init(model, place)
    lines = (place / "data.py").read_text().splitlines()
    return [line.strip() for line in lines if "np.zeros" in line or "# A placeholder" in line]


def test_inputs_that_a_model_doesnt_state_are_said_to_be_filled_in(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="a live model needs the extra torch")
    (tmp_path / "mine.py").write_text("import torch\n\nnet = torch.nn.Linear(4, 2)\n")
    place = tmp_path / "project"
    made = CliRunner().invoke(main, ["init", f"{tmp_path / 'mine.py'}:net", "--out", str(place)])
    assert made.exit_code == 0, made.output
    assert made.output.splitlines()[-1] == (
        f"{place}/data.py has a placeholder for the inputs, since the model doesn't state their shapes and types: "
        "fill them in"
    )
    script = (place / "data.py").read_text()
    compile(script, "data.py", "exec")
    assert lines_of(f"{tmp_path / 'mine.py'}:net", tmp_path / "another") == [
        "# A placeholder: give each of the model's inputs the shape and type of one sample.",
        "'input': np.zeros((3, 224, 224), 'float32'),",
    ]
    known = CliRunner().invoke(
        main, ["init", str(models.linear_classifier(tmp_path)), "--out", str(tmp_path / "other")]
    )
    assert "placeholder" not in known.output


def test_a_named_network_states_the_shape_of_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra torch")
    found = lines_of("timm:test_resnet@random", tmp_path / "project")
    assert found == ["'x': np.zeros((3, 160, 160), 'float32'),"]


@pytest.mark.usefixtures("torch_is_at_hand")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_an_exported_program_and_torchscript_state_what_they_know(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    net = torch.nn.Conv1d(2, 3, 1).eval()
    axes = {"input": {0: torch.export.Dim("batch"), 2: torch.export.Dim("length")}}
    program = torch.export.export(net, (torch.ones(2, 2, 9),), dynamic_shapes=axes)
    torch.export.save(program, tmp_path / "net.pt2")
    (line,) = lines_of(str(tmp_path / "net.pt2"), tmp_path / "one")
    assert line.startswith("'input': np.zeros((2, ")
    assert "'float32'),  # axis 1 is open (" in line
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    assert lines_of(str(tmp_path / "net.pt"), tmp_path / "two") == [
        "# A placeholder: give each of the model's inputs the shape and type of one sample.",
        "'input': np.zeros((3, 224, 224), 'float32'),",
    ]


def test_a_folder_of_an_encoder_states_tokens_of_any_number(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hugging-face")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    own = transformers.BertConfig(**small, intermediate_size=16, max_position_embeddings=64)
    transformers.BertModel(own).save_pretrained(tmp_path / "m")
    assert lines_of(str(tmp_path / "m"), tmp_path / "project") == [
        f"'{name}': np.zeros((64,), 'int64'),  # axis 0 is open (sequence)"
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]


@pytest.mark.parametrize(
    ("kind", "labels", "metric", "given"),
    [
        (
            "BertForTokenClassification",
            3,
            "regression:0.01@all",
            "logits: float32[batch, sequence, 3]",
        ),
        ("BertForSequenceClassification", 1, "regression:0.01@all", "logits: float32[batch, 1]"),
        ("BertForSequenceClassification", 3, None, None),
        (
            "BertForQuestionAnswering",
            2,
            "agreement@all",
            "start_logits: float32[batch, sequence], end_logits: float32[batch, sequence]",
        ),
    ],
)
def test_a_folder_without_an_onnx_file_gets_a_metric_too(
    tmp_path: Path, kind: str, labels: int, metric: str | None, given: str | None
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hugging-face")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    own = transformers.BertConfig(**small, intermediate_size=16, num_labels=labels)
    getattr(transformers, kind)(own).save_pretrained(tmp_path / "m")
    place = init(str(tmp_path / "m"), tmp_path / "project")
    written = (place / "hasten.toml").read_text()
    assert tomllib.loads(written)["optimize"].get("metric") == metric
    if given is not None:
        assert f"# the output's unit. The model gives {given}.\n" in written


@pytest.mark.usefixtures("torch_is_at_hand")
def test_an_exported_program_gets_a_metric_by_the_outputs_that_it_states(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")

    class Both(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            scores = x @ torch.ones(4, 3)
            return {"scores": scores, "others": -scores, "x": x.sum(1, keepdim=True)}

    axes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Both(), (torch.ones(2, 4),), dynamic_shapes=axes)
    torch.export.save(program, tmp_path / "net.pt2")
    written = (init(str(tmp_path / "net.pt2"), tmp_path / "one") / "hasten.toml").read_text()
    assert "The model gives scores: float32[" in written
    assert tomllib.loads(written)["optimize"]["metric"] == [
        "agreement@scores",
        "agreement@others",
        "regression:0.01@x_out",  # its name in ONNX, where an input is called x
    ]


def test_a_keras_file_gets_a_metric_by_its_outputs(tmp_path: Path) -> None:
    keras: Any = pytest.importorskip("keras", reason="needs the extra keras")
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="logit")])
    made.save(tmp_path / "net.keras")
    written = (init(str(tmp_path / "net.keras"), tmp_path / "one") / "hasten.toml").read_text()
    assert "The model gives logit: float32[batch, 1]." in written
    assert tomllib.loads(written)["optimize"]["metric"] == "regression:0.01@all"


@pytest.mark.usefixtures("torch_is_at_hand")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_model_that_doesnt_state_its_outputs_leaves_the_metric_to_be_named(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    torch.jit.save(torch.jit.script(torch.nn.Linear(4, 3)), tmp_path / "net.pt")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    for number, model in enumerate(("net.pt", "saved")):
        place = init(str(tmp_path / model), tmp_path / str(number))
        written = (place / "hasten.toml").read_text()
        assert "# Nothing states the model's outputs. If a command says that no metric" in written
        assert "metric" not in tomllib.loads(written)["optimize"]


def test_a_network_by_name_gets_a_metric_too(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="needs the extra torch")
    place = init("torchvision:lraspp_mobilenet_v3_large@random", tmp_path / "project")
    options = tomllib.loads((place / "hasten.toml").read_text())
    assert options["optimize"]["metric"] == "regression:0.01@all"


def test_a_folder_with_a_tokenizer_gets_a_script_of_texts(tmp_path: Path) -> None:
    folder = with_tokenizer(config(tmp_path / "m"))
    models.two_inputs(folder)
    place = init(str(folder), tmp_path / "project")
    filled_in(place)
    assert samples_of(place) == ["a text"] * 1000
    assert (
        '"""Yield samples that choose and certify: a text, and a label."""'
        in (place / "data.py").read_text()
    )


def test_the_script_says_what_a_label_is(tmp_path: Path) -> None:
    for make, said in (
        (models.linear_classifier, "a label is the number of a class, 0 to 3"),
        (
            ragged.convolutional,
            "a label is what the metric reads; the model gives y: float32[batch, 2, height, width]",
        ),
    ):
        place = init(str(make(tmp_path)), tmp_path / f"{make.__name__}-project")
        assert f"    for label in range(1000):  # {said}\n" in (place / "data.py").read_text()


def test_a_tflite_file_states_its_inputs(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    from hasten.core.target import Target
    from hasten.engines.litert.engine import LiteRt
    from hasten.inputs.models.onnx import load

    (tmp_path / "built").mkdir()
    sample = {"x": np.zeros(16, np.float32)}
    model = load(models.linear_classifier(tmp_path)).settled_by(sample)
    built = LiteRt().build(model, Target.host(), tmp_path / "built").path
    assert built.suffix == ".tflite"
    (line,) = lines_of(str(built), tmp_path / "project")
    assert line.endswith(": np.zeros((16,), 'float32'),")
    script = (tmp_path / "project" / "data.py").read_text()
    assert "a label is the number of a class, 0 to 3" in script
    (tmp_path / "no.tflite").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"no\.tflite can't be read: "):
        init(str(tmp_path / "no.tflite"), tmp_path / "none")


def test_a_tflite_file_that_crashes_its_interpreter_crashes_no_command(tmp_path: Path) -> None:
    """LiteRT takes it for granted that a file has a graph."""
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    builder, without_graph = flatbuffers.Builder(64), schema.ModelT()
    without_graph.version = 3
    builder.Finish(without_graph.Pack(builder), b"TFL3")
    (tmp_path / "m.tflite").write_bytes(builder.Output())
    with pytest.raises(InputError) as error:
        init(str(tmp_path / "m.tflite"), tmp_path / "none")
    assert str(error.value) == (
        f"{tmp_path}/m.tflite is damaged: LiteRT crashed (SIGSEGV) while it read the file"
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    (tmp_path / "project").mkdir()
    result = CliRunner().invoke(main, ["init", str(model), "--out", str(tmp_path / "project")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"hasten: {tmp_path}/project exists already: give another folder, or move it away\n"
    )
    assert not list((tmp_path / "project").iterdir())


def test_a_place_that_cant_be_written_leaves_nothing(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=rf"^can't write {tmp_path}/file/project: Not a directory$"
    ):
        init(str(model), tmp_path / "file" / "project")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "linear_classifier.onnx"]


def test_nothing_in_a_model_is_code_in_its_project(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    harm = f"{chr(10)}import pathlib; pathlib.Path({str(witness)!r}).touch(){chr(10)}#"
    model = onnx.load(models.linear_classifier(tmp_path))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = f"width{harm}"
    for node in model.graph.node:
        node.input[:] = [
            'x"""' if name == model.graph.input[0].name else name for name in node.input
        ]
    model.graph.input[0].name = 'x"""'
    (tmp_path / "inner").mkdir()
    path = (
        tmp_path
        / "inner"
        / f'a"""; import pathlib; pathlib.Path("{witness.name}").touch(); """ <<inputs>>.onnx'
    )
    onnx.save(model, path)
    place = init(str(path), tmp_path / "project")
    filled_in(place)
    with contextlib.chdir(tmp_path):
        samples_of(place)
    assert not witness.exists()
    assert path.name in (ast.get_docstring(ast.parse((place / "data.py").read_text())) or "")


@pytest.mark.parametrize(
    "name", ["a # b", "$(shell touch witness)", "a\\#'b", "`touch witness`", "a\\"]
)
def test_make_asks_for_the_model_whatever_its_name_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.onnx"
    models.linear_classifier(tmp_path).rename(path)
    place = init(str(path), tmp_path / "project")
    show = f"{shlex.quote(sys.executable)} -c 'import sys; print(sys.argv[2:])'"
    done = subprocess.run(
        ["make", "-s", "-C", str(place), "plan", "try", f"HASTEN={show}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert repr(f"../{name}.onnx") in done.stdout
    assert not (place / "witness").exists()
    options = tomllib.loads((place / "hasten.toml").read_text())
    assert options["optimize"]["model"] == f"../{name}.onnx"


def test_a_name_of_several_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a\nall:\n\ttouch witness\n.onnx"
    models.linear_classifier(tmp_path).rename(path)
    with pytest.raises(InputError) as error:
        init(str(path), tmp_path / "project")
    assert str(error.value) == (
        f"{str(path)!r} contains control characters, which a Makefile can't contain: rename the "
        "model"
    )
    assert not (tmp_path / "project").exists()


def test_a_projects_commands_take_their_options_from_its_file(tmp_path: Path) -> None:
    place = init(str(models.linear_classifier(tmp_path)), tmp_path / "project")
    (place / "data.py").write_text(
        "import numpy as np\n"
        "rng = np.random.default_rng(0)\n"
        "def samples():\n"
        "    yield from ({'x': rng.standard_normal(16, np.float32)} for _ in range(300))\n"
        "new_samples = samples\n"
    )
    with quick_runs(races=False), contextlib.chdir(place):
        made = CliRunner().invoke(main, ["optimize", "--engine", "onnxruntime"])
        tested = CliRunner().invoke(main, ["certify"])
    assert made.exit_code == 0, made.output
    assert made.stderr.startswith(
        "hasten: from hasten.toml: MODEL, --data, --max-drop, --out\nmodel:    linear_classifier.onnx"
    )
    assert tested.exit_code == 0, tested.output
    assert tested.stderr == "hasten: from hasten.toml: BUNDLE, --data\n"


OUTPUTS = {
    "y": ("float[n, 3]", "y = MatMul(x, w)"),
    "other": ("float[n, 3]", "m = MatMul(x, w) other = Neg(m)"),
    "logit": ("float[n, 1]", "n = MatMul(x, w) logit = ReduceSum(n, axes)"),
    "all": ("float[n]", "o = MatMul(x, w) all = ReduceSum<keepdims=0>(o, axes)"),
    "top": ("int64[n]", "p = MatMul(x, w) top = ArgMax<axis=1, keepdims=0>(p)"),
    "high": ("bool[n, 3]", "q = MatMul(x, w) high = Greater(q, zero)"),
}


@pytest.mark.parametrize(
    ("outputs", "metric"),
    [
        (("y",), None),
        (("y", "top"), None),
        (("y", "other"), "agreement@all"),
        (("logit",), "regression:0.01@all"),
        (("y", "other", "logit"), ["agreement@y", "agreement@other", "regression:0.01@logit"]),
        (("top",), None),
        (("high", "top"), "agreement@all"),
        (("logit", "high"), ["regression:0.01@logit", "agreement@high"]),
        (("all", "high"), "same_answers"),
    ],
)
def test_a_project_names_a_metric_where_the_outputs_suggest_none(
    tmp_path: Path, outputs: tuple[str, ...], metric: object
) -> None:
    shown = ", ".join(f"{OUTPUTS[name][0]} {name}" for name in outputs)
    text = f"""
        some (float[n, 8] x) => ({shown}) <int64[1] axes = {{1}}, float zero = {{0}}> {{
            {" ".join(OUTPUTS[name][1] for name in outputs)}
        }}"""
    model = models.write(tmp_path / "some.onnx", text, {"w": (8, 3)})
    place = init(str(model), tmp_path / "project")
    written = (place / "hasten.toml").read_text()
    assert tomllib.loads(written)["optimize"].get("metric") == metric
    assert ("# Choose how answers are judged" in written) == (metric is not None)
    (place / "data.py").write_text(
        "import numpy as np\n"
        "rng = np.random.default_rng(0)\n"
        "def samples():\n"
        "    yield from ({'x': rng.standard_normal(8, np.float32)} for _ in range(300))\n"
    )
    with quick_runs(races=False), contextlib.chdir(place):
        made = CliRunner().invoke(main, ["optimize", "--engine", "onnxruntime"])
    assert made.exit_code == 0, made.output
