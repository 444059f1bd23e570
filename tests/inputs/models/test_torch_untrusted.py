"""A .pt2 file from a stranger: nothing in it runs, unless it is trusted."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.at_hand import EXPORT, at_hand
from tests.support.bombs import padded, with_little_unasked

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")

from hasten.cli import main  # noqa: E402
from hasten.errors import InputError  # noqa: E402
from hasten.inputs.models.torch import load_program  # noqa: E402

ADVICE = "; if you trust it, add trust_code=True, or load it in a my.py and give my.py:model"


class Harm:
    """What a pickle calls when it is read."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


class Linear(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, features: Any) -> Any:
        return torch.relu(self.layer(features))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    axis = torch.export.Dim("n")
    program = torch.export.export(
        Linear().eval(), (torch.zeros(2, 4),), dynamic_shapes={"features": {0: axis}}
    )
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def rewrite(path: Path, changed: Callable[[str, bytes], bytes]) -> None:
    """Change the records of a program."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, changed(name, content))


def with_harm_in_a_sample(path: Path, witness: Path) -> None:
    harm = pickle.dumps(Harm(witness))
    rewrite(path, lambda name, old: harm if "sample_inputs" in name else old)


def with_harm_in_the_program(path: Path, harm: Callable[[Any], None]) -> None:
    def changed(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        harm(program)
        return json.dumps(program).encode()

    rewrite(path, changed)


def load(path: Path, **settings: Any) -> str:
    """Load a program as its own process does, and call it; return why it is refused, or nothing."""
    try:
        load_program(path, **settings).module()(torch.zeros(2, 4))
    except InputError as error:
        return str(error)
    return ""


def test_a_pickle_among_sample_inputs_isnt_read(path: Path, tmp_path: Path) -> None:
    with_harm_in_a_sample(path, tmp_path / "witness")
    said = load(path)
    assert not (tmp_path / "witness").exists()
    assert said.startswith(f"{path} can't be loaded without running code that it contains: ")
    assert said.endswith(ADVICE)
    assert said.isprintable()


def test_torchs_own_words_are_told_without_what_controls_a_terminal(path: Path) -> None:
    """Torch prints a part of its advice in bold where it doesn't know what a pickle calls."""
    wanted = b"_rebuild_tensor_v2"
    rewrite(
        path,
        lambda name, old: old.replace(wanted, wanted.upper()) if "sample_inputs" in name else old,
    )
    said = load(path)
    assert "Weights only load failed" in said
    assert said.isprintable()


def test_a_guard_isnt_evaluated(path: Path, tmp_path: Path) -> None:
    code = f"__import__('pathlib').Path({str(tmp_path / 'witness')!r}).touch() or True"
    with_harm_in_the_program(path, lambda program: program.update(guards_code=[code]))
    assert load(path) == ""
    assert not (tmp_path / "witness").exists()


def test_an_operator_of_another_library_is_refused(path: Path) -> None:
    def harm(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"

    with_harm_in_the_program(path, harm)
    assert load(path) == (
        f"{path} can't be loaded without running code that it contains: a program may only call known operators of "
        "torch, but net.pt2 has the target 'torch.os.system', which could run other code or reach other memory: build "
        f"it again from the model{ADVICE}"
    )


@pytest.mark.parametrize(
    "operator",
    [
        "aten.adaptive_max_pool2d_backward.default",
        "aten._sparse_coo_tensor_unsafe.default",
        "aten.segment_reduce.default",
        "aten.set_.source_Tensor",
        "aten.from_file.default",
        "prims.copy_strided.default",
    ],
)
def test_an_operator_that_could_reach_any_memory_is_refused(path: Path, operator: str) -> None:
    def harm(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = f"torch.ops.{operator}"

    with_harm_in_the_program(path, harm)
    assert load(path) == (
        f"{path} can't be loaded without running code that it contains: a program may only call known operators of "
        f"torch, but net.pt2 has the target 'torch.ops.{operator}', which could run other code or reach other memory: "
        f"build it again from the model{ADVICE}"
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own
def test_a_program_whose_batch_normalization_was_decomposed_says_when_to_save_it(
    tmp_path: Path,
) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    program = torch.export.export(module, (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program.run_decompositions(), tmp_path / "decomposed.pt2")
    assert "memory: save it before run_decompositions(); if" in load(tmp_path / "decomposed.pt2")


def test_a_program_that_is_trusted_is_read_as_torch_reads_it(path: Path, tmp_path: Path) -> None:
    with_harm_in_a_sample(path, tmp_path / "witness")
    load(path, trust_code=True)
    assert (tmp_path / "witness").exists()


def test_the_command_refuses_it_in_one_line(path: Path, tmp_path: Path) -> None:
    with_harm_in_a_sample(path, tmp_path / "witness")
    asked = ["optimize", str(path), "--out", str(tmp_path / "b.hasten")]
    with at_hand(*EXPORT):
        result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert not (tmp_path / "witness").exists()
    assert "add --trust-code, or" in result.stderr


def test_a_program_that_would_unpack_to_far_more_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_unasked(monkeypatch)
    said = padded(path, "net/data/constants/tensor_9")
    assert f"net.pt2 can't be unpacked safely: {said}" in load(path)


def test_an_archive_among_a_programs_records_that_would_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_unasked(monkeypatch)
    inner = tmp_path / "inner.zip"
    zipfile.ZipFile(inner, "w").close()
    said = padded(inner, "archive/data.pkl")
    rewrite(path, lambda name, old: inner.read_bytes() if "sample_inputs" in name else old)
    assert f"net.pt2 can't be unpacked safely: {said}" in load(path)


def test_a_tensor_that_claims_far_more_than_the_file_has_is_refused(path: Path) -> None:
    def claimed(name: str, content: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return content
        config = json.loads(content)
        meta = config["config"]["layer.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": 1 << 33}, {"as_int": 4}]
        meta["strides"] = [{"as_int": 0}, {"as_int": 1}]
        return json.dumps(config).encode()

    rewrite(path, claimed)
    assert (
        "the numbers of 'layer.weight' have the shape [8589934592, 4], of 137,438,953,472 bytes, but the file has 48"
        in load(path)
    )
