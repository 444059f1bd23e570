import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")

from torch import Tensor, nn  # noqa: E402

from hasten.core.tensors import Array, TensorSpec  # noqa: E402
from hasten.errors import InputError  # noqa: E402
from hasten.inputs.models import frozen  # noqa: E402
from hasten.inputs.models import torch as frontend  # noqa: E402
from hasten.inputs.models.torch import export, load_program  # noqa: E402
from hasten.inputs.models.torch_inputs import has_optional_inputs, input_names  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.standard_normal(4).astype(np.float32)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.dropout(self.layer(features)))


def note(path: Path) -> str:
    return str({p.key: p.value for p in onnx.load(path).metadata_props}["hasten.batch"])


def answers(path: Path, inputs: Mapping[str, Array]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(str(path)).run(None, dict(inputs)))


def test_the_batch_is_kept_open_and_names_come_from_forward(tmp_path: Path) -> None:
    module = Linear()
    model = export(module, {"features": X}, tmp_path)
    assert model.inputs == (TensorSpec("features", "float32", ("batch", 4)),)
    assert model.outputs == (TensorSpec("output", "float32", ("batch", 3)),)
    proto = onnx.load(model.path)
    assert (proto.ir_version, proto.opset_import[0].version) == (10, 20)
    assert note(model.path) == "open"
    module.eval()
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(
        answers(model.path, {"features": x})[0],
        module(torch.from_numpy(x)).detach().numpy(),
        atol=1e-6,
    )


def test_the_file_says_nothing_of_the_code_that_made_it(tmp_path: Path) -> None:
    """So the same network is the same file wherever its code lies."""
    model = export(Linear(), {"features": X}, tmp_path)
    assert b"test_torch" not in model.path.read_bytes()
    assert b"stack_trace" not in model.path.read_bytes()


def test_a_single_input_needs_no_matching_name(tmp_path: Path) -> None:
    model = export(nn.Sequential(nn.Linear(4, 2)), {"anything": X}, tmp_path)
    assert [spec.name for spec in model.inputs] == ["input"]


def test_training_mode_is_put_back_part_by_part(tmp_path: Path) -> None:
    module = Linear()
    module.dropout.eval()
    export(module, [X], tmp_path)
    assert (module.training, module.layer.training, module.dropout.training) == (True, True, False)


def test_training_mode_is_put_back_after_a_failure(tmp_path: Path) -> None:
    module = Linear()
    with pytest.raises(InputError):
        export(module, [X[:3]], tmp_path)
    assert module.training


class Many(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, scale: Tensor | None = None) -> dict[str, Any]:
        y = ids.float() * mask
        if scale is not None:
            y = y * scale
        return {"sum": y.sum(1), "parts": (y, None, y + 1), "mask": mask * 2}


IDS = np.arange(6)
MASK = np.ones(6, np.float32)


def test_several_inputs_and_nested_outputs_are_named(tmp_path: Path) -> None:
    model = export(Many(), {"mask": MASK, "ids": IDS}, tmp_path)
    assert [str(spec) for spec in model.inputs] == [
        "ids: int64[batch, 6]",
        "mask: float32[batch, 6]",
    ]
    assert [spec.name for spec in model.outputs] == ["sum", "parts_0", "parts_2", "mask_out"]
    given: dict[str, Array] = {"ids": IDS[None], "mask": MASK[None]}
    np.testing.assert_array_equal(answers(model.path, given)[0], [15])


class Encoder(nn.Module):
    """Returns an output that is called as an operator inside: torch calls its value "embedding", too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.table(tokens).mean(1)}


def test_an_output_may_have_the_name_of_an_operator_inside(tmp_path: Path) -> None:
    model = export(Encoder().eval(), {"tokens": np.array([1, 4, 2])}, tmp_path)
    assert [spec.name for spec in model.outputs] == ["embedding"]


def test_an_optional_input_is_taken_where_the_data_has_it(tmp_path: Path) -> None:
    sample: dict[str, Array] = {"scale": 2 * MASK, "ids": IDS, "mask": MASK}
    model = export(Many(), sample, tmp_path)
    assert [spec.name for spec in model.inputs] == ["ids", "mask", "scale"]
    given = {name: array[None] for name, array in sample.items()}
    np.testing.assert_array_equal(answers(model.path, given)[0], [30])


class Counting(Linear):
    """Returns numbers and texts beside its tensors."""

    def forward(self, features: Tensor) -> Any:
        return {
            "count": 3,
            "scores": super().forward(features),
            "parts": [features, "b", features.shape[0]],
        }


def test_numbers_and_texts_beside_the_tensors_are_left_out(tmp_path: Path) -> None:
    module = Counting().eval()
    model = export(module, {"features": X}, tmp_path)
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == [
        "features: float32[batch, 4]",
        "scores: float32[batch, 3]",
        "parts_0: float32[batch, 4]",
    ]
    assert module(torch.zeros(1, 4))["count"] == 3
    kept = load_program(frontend.keep_program(module, {"features": X}, tmp_path / "kept.pt2"))
    assert list(kept.module()(features=torch.zeros(1, 4))) == ["scores", "parts_0"]
    program = torch.export.export(module, (torch.zeros(1, 4),))
    (tmp_path / "program").mkdir()
    assert refused(program, {"features": X}, tmp_path / "program") == (
        "the program also returns ['count'] of type int, ['parts'][1] of type str, ['parts'][2] of type int, and only tensors "
        "can be compared: capture it again from a module whose forward returns only tensors"
    )


class BatchOfOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 2, 2) + 1


class OtherForOne(nn.Module):
    """Takes another way for a batch of one, which tracing a batch of two can't see."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 3 if x.shape[0] == 1 else x * 2


class Counter(nn.Module):
    """Module that counts its calls in a buffer, an attribute, or a buffer of a part; or not at all."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.where, self.calls = where, 0
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.kept: Tensor | None = None
        if where == "part":
            self.part = Counter("buffer")

    def forward(self, features: Tensor) -> Tensor:
        if self.where == "attribute":
            self.calls += 1
        if self.where == "buffer":
            self.count += 1
        if self.where == "part":
            self.part(features)
        if self.kept is None:  # what is filled in once, and stays
            self.kept = torch.full((4,), float("nan"))
        return cast(Tensor, self.layer(features))


@pytest.mark.parametrize(
    ("where", "names"),
    [("buffer", "count"), ("attribute", "calls"), ("part", "part.count"), ("", "")],
)
def test_what_a_call_changes_in_a_module_is_said(tmp_path: Path, where: str, names: str) -> None:
    model = export(Counter(where), {"features": X}, tmp_path)
    said = frozen.words(onnx.load(model.path), model.inputs)
    assert said == (
        [
            f"a call of the model changes {names} in it, and the exported file keeps what it had: if its answers "
            "depend on that, give it as an input and an output, or leave it out of forward"
        ]
        if names
        else []
    )


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning", "ignore:.*Sparse:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "compressed", "nested", "nowhere"])
def test_tensors_that_can_not_be_compared_are_no_reason_to_refuse_a_module(
    tmp_path: Path, kind: str
) -> None:
    module = nn.Linear(4, 3)
    tensor = {
        "sparse": lambda: torch.eye(4).to_sparse(),
        "compressed": lambda: torch.eye(4).to_sparse_csr(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "nowhere": lambda: torch.empty(3, device="meta"),
    }[kind]()
    module.register_buffer("kept", tensor)
    model = export(module, {"input": X}, tmp_path)
    assert frozen.words(onnx.load(model.path), model.inputs) == []


def test_a_module_that_takes_a_batch_of_one_only_is_exported_so(tmp_path: Path) -> None:
    model = export(BatchOfOne(), [X], tmp_path)
    assert model.inputs[0].shape == (1, 4)
    assert note(model.path).startswith("1: ")


def test_an_open_batch_with_wrong_answers_is_not_kept(tmp_path: Path) -> None:
    model = export(OtherForOne(), [X], tmp_path)
    assert model.inputs[0].shape == (1, 4)
    np.testing.assert_allclose(answers(model.path, {"x": X[None]})[0], 3 * X[None])


def test_an_export_with_wrong_answers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = frontend._to_onnx
    wrong = Linear()

    def other_weights(module: Any, *rest: Any) -> Any:
        return exported(wrong.eval(), *rest)

    monkeypatch.setattr(frontend, "_to_onnx", other_weights)
    with torch.no_grad():
        wrong.layer.weight.zero_()
        wrong.layer.bias.fill_(8)
    module = Linear()
    with torch.no_grad():
        module.layer.weight.zero_()
        module.layer.bias.fill_(4)
    with pytest.raises(InputError) as error:
        export(module, [X], tmp_path)
    assert str(error.value) == (
        "the exported model's output 'output' is off by 4 from the module's (largest magnitude 4)"
    )


class Answers:
    """Stands for an exported program that answers what it is told to."""

    def __init__(self, *answers: Tensor) -> None:
        self.answers = answers
        self.released = False

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        if not self.answers:
            raise RuntimeError("no kernel\nfor this operator")
        return self.answers

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (Answers(), "the exported model can't be run: no kernel"),
        (
            Answers(torch.ones(1, 4), torch.ones(1, 4)),
            "the exported model gives 2 outputs, but the module returns 1",
        ),
        (
            Answers(torch.ones(4)),
            "the exported model's output 'y' is torch.float32[4], the module's torch.float32[1, 4]",
        ),
        (
            Answers(torch.ones(1, 4, dtype=torch.float64)),
            "the exported model's output 'y' is torch.float64[1, 4], "
            "the module's torch.float32[1, 4]",
        ),
        (
            Answers(torch.full((1, 4), float("nan"))),
            "the exported model's output 'y' is off by nan from the module's (largest magnitude 1)",
        ),
    ],
)
def test_other_answers_than_the_modules_are_named(program: Answers, message: str) -> None:
    source = frontend._Module(nn.Identity(), {"input": np.ones(4, np.float32)}, False)
    with pytest.raises(InputError) as error:
        frontend._check(program, source, ["y"], (1,))
    assert str(error.value) == message
    assert program.released


def test_the_exporter_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger("torch").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(Many(), {"mask": MASK, "ids": IDS}, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch").level == level


def refused(module: Any, sample: Any, tmp_path: Path) -> str:
    with pytest.raises(InputError) as error:
        export(module, sample, tmp_path)
    assert not list(tmp_path.iterdir())
    return str(error.value)


def test_inputs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    assert refused(Many(), {"ids": IDS, "masks": MASK}, tmp_path) == (
        "the module takes the inputs ids, mask and may take scale; the data has ids, masks"
    )
    assert refused(Many(), [IDS], tmp_path) == (
        "the module takes the inputs ids, mask and may take scale; the data has 1"
    )
    assert refused(Linear(), {"a": X, "b": X}, tmp_path) == (
        "the module takes the inputs features; the data has a, b"
    )


def test_float64_data_is_told_how_to_convert(tmp_path: Path) -> None:
    assert refused(Linear(), [X.astype(np.float64)], tmp_path) == (
        "input 'features': the module computes in float32; a sample of the data is float64[4]; "
        'convert it with x.astype("float32")'
    )


def test_a_sample_that_the_module_can_not_run_is_one_line(tmp_path: Path) -> None:
    said = refused(Linear(), [X[:3]], tmp_path)
    assert said.startswith("the model can't run features float32[1, 3]: ")
    assert said.endswith("mat1 and mat2 shapes cannot be multiplied (1x3 and 4x3)")
    assert "\n" not in said


OLDER = (
    "; leave out of forward what depends on computed numbers, such as a choice of boxes, or try the older exporter, "
    "torch.onnx.export(module, (x,), 'model.onnx', dynamo=False), and give that file"
)


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Tensor(np.linalg.inv(x.reshape(2, 2).numpy()))


def test_what_can_not_be_exported_is_one_line(tmp_path: Path) -> None:
    message = refused(Unexportable(), [X], tmp_path)
    assert message.startswith("torch can't export the model to ONNX: ")
    assert "\n" not in message


class Choosing(nn.Module):
    """Rows that are chosen by their numbers, and a branch on how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, x[0] > 0]
        return chosen if chosen.shape[1] > 2 else chosen * 2


def test_a_model_that_the_exporter_cant_follow_is_named_with_a_short_reason(tmp_path: Path) -> None:
    said = f"torch's exporter can't follow Choosing: Could not guard on data-dependent expression u0 > 2{OLDER}"
    assert refused(Choosing(), [X], tmp_path) == said
    with pytest.raises(InputError) as error:
        frontend.keep_program(Choosing(), [X], tmp_path / "net.pt2")
    assert str(error.value) == said


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.special.bessel_j0(x)
        return found


def test_an_operator_without_an_onnx_form_is_named_with_ways_on(tmp_path: Path) -> None:
    assert refused(Bessel(), [X], tmp_path) == (
        "torch can't export the model to ONNX: torch's exporter has no ONNX form of prims.bessel_j0 for these inputs: calculate "
        "it with other operators in forward, or in your own code before or after the model; or call "
        "torch.onnx.export with a custom_translation_table for it, and give the ONNX file"
    )


def test_a_module_that_gives_nothing_is_refused(tmp_path: Path) -> None:
    assert refused(Nothing(), [X], tmp_path) == (
        "the model returns no tensor: there is nothing to compare"
    )


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    assert (
        refused(json, [X], tmp_path) == "a module is neither a torch module nor an exported program"
    )


def test_an_exported_program_keeps_its_open_batch(tmp_path: Path) -> None:
    axis = torch.export.Dim("n")
    program = torch.export.export(
        Linear().eval(), (torch.zeros(2, 4),), dynamic_shapes={"features": {0: axis}}
    )
    torch.export.save(program, tmp_path / "linear.pt2")
    model = export(load_program(tmp_path / "linear.pt2"), {"x": X}, tmp_path)
    assert isinstance(model.inputs[0].shape[0], str)
    assert (model.inputs[0].name, note(model.path)) == ("features", "open")


def test_an_exported_program_keeps_its_fixed_batch(tmp_path: Path) -> None:
    program = torch.export.export(Linear().eval(), (torch.zeros(5, 4),))
    model = export(program, [X], tmp_path)
    assert model.inputs[0].shape == (5, 4)
    assert note(model.path) == "5: the exported program has a batch of 5"


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"not a program")
    with pytest.raises(InputError) as error:
        load_program(tmp_path / "bad.pt2")
    assert str(error.value).startswith(f"{tmp_path / 'bad.pt2'} isn't an exported torch program: ")
    with pytest.raises(InputError) as error:
        load_program(tmp_path / "no.pt2")
    assert str(error.value) == f"no such file: {tmp_path / 'no.pt2'}"


class OneOptional(nn.Module):
    def forward(self, pixels: Tensor | None = None) -> Tensor | None:
        return pixels


class AllOptional(nn.Module):
    def forward(self, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor | None:
        return ids if mask is None or ids is None else ids * mask


class MainNamed(AllOptional):
    main_input_name = "ids"


class Any_(nn.Module):  # noqa: N801
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]


def test_required_inputs_are_read_from_forward() -> None:
    assert input_names(Many()) == ("ids", "mask")
    assert input_names(OneOptional()) == ("pixels",)
    assert input_names(AllOptional()) == ()
    assert input_names(MainNamed()) == ("ids",)
    assert input_names(Any_()) == ()


def test_whether_more_inputs_may_come_is_read_from_forward() -> None:
    assert [
        has_optional_inputs(m) for m in (Many(), OneOptional(), AllOptional(), MainNamed())
    ] == [
        True,
        False,
        True,
        True,
    ]


def test_where_all_inputs_are_optional_the_data_says_which(tmp_path: Path) -> None:
    model = export(MainNamed(), {"mask": MASK, "ids": IDS}, tmp_path)
    assert [spec.name for spec in model.inputs] == ["ids", "mask"]
    model = export(MainNamed(), {"ids": IDS}, tmp_path)
    assert [spec.name for spec in model.inputs] == ["ids"]


def test_where_forward_takes_any_inputs_the_data_names_them(tmp_path: Path) -> None:
    model = export(Any_(), {"left": X, "right": X}, tmp_path)
    assert [spec.name for spec in model.inputs] == ["left", "right"]
    assert model.inputs[0].shape == ("batch", 4)
    model = export(Any_(), [X, X], tmp_path)
    assert [spec.name for spec in model.inputs] == ["input_0", "input_1"]


def test_one_module_exports_to_the_same_file_twice_so_that_a_stopped_run_can_go_on(
    tmp_path: Path,
) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    sample = [np.zeros(8, np.float32)]
    hashes = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        hashes.add(frontend.export(module, sample, tmp_path / name).sha256)
    assert len(hashes) == 1
