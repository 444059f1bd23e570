"""A file of torch.jit.save from a stranger: its code touches no other file, unless it is trusted."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bombs import padded, with_little_unasked

from hasten.errors import InputError
from hasten.inputs.models.source import find_model, load_model

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; its files aren't gone

ADVICE = (
    " in its code, so it could touch other files: if you trust it, add trust_code=True, or load it in a my.py "
    "and give my.py:model"
)


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return self.layers(x)


def written(path: Path, line: str = "") -> Path:
    """Write a module whose forward begins with a line of code, as a stranger could."""
    torch.jit.script(Net().eval()).save(str(path))
    if line:
        head = "input: Tensor) -> Tensor:\n"
        rewrite(path, lambda name, old: old.replace(head, f"{head}    {line}\n"))
    return path


def rewrite(path: Path, changed: Callable[[str, str], str]) -> None:
    """Change the code in a file."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            code = name.endswith(".py")
            new.writestr(name, changed(name, content.decode()) if code else content)


def refusal(path: Path) -> str:
    """Find a model and export it; return why it is refused, or nothing."""
    try:
        found = find_model(str(path))
        load_model(found, {"x": np.ones(4, np.float32)}, path.parent)
    except InputError as error:
        return str(error)
    return ""


LINES = [
    ('torch.save(input, "W")', "torch.save"),
    ('getattr(torch, "\\163ave")(input, "W")', "torch"),
    ('getattr(ops.aten, "sa" "ve")(input, "W")', "ops.aten"),
    ('t = torch\n    t.save(input, "W")', "torch"),
    ('f = ops.aten.save\n    f(input, "W")', "ops.aten.save"),
    ('_9 = torch.from_file("W", True, 4)', "torch.from_file"),
    ('_9 = ops.image.read_file("W")', "ops.image.read_file"),
    ('_9 = \'"\'\n    torch.save(input, "W")  # "', "'"),
    ('_9 = """a"b""", torch.save(input, "W")', '"""'),
    ('_9 = "a\\\n", torch.save(input, "W")', "torch.save"),
    ('# "a\\\n    torch.save(input, "W")', "torch.save"),
]


@pytest.mark.parametrize(("line", "what"), LINES)
def test_code_that_touches_other_files_isnt_run(tmp_path: Path, line: str, what: str) -> None:
    witness = tmp_path / "witness"
    path = written(tmp_path / "net.pt", line.replace("W", str(witness)))
    said = refusal(path)
    assert not witness.exists()
    assert said == f"{path} has {what!r}{ADVICE}"


def test_a_file_that_is_replaced_after_the_check_isnt_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.inputs.models import torchscript

    witness = tmp_path / "witness"
    harmful = written(tmp_path / "harmful.pt", f'torch.save(input, "{witness}")').read_bytes()
    path = written(tmp_path / "net.pt")
    check = torchscript._check_touches_nothing

    def then_replaced(*given: Any) -> None:
        check(*given)
        path.write_bytes(harmful)

    monkeypatch.setattr(torchscript, "_check_touches_nothing", then_replaced)
    find_model(str(path))(torch.zeros(1, 4))
    assert path.read_bytes() == harmful
    assert not witness.exists()


def test_code_in_another_form_isnt_run(tmp_path: Path) -> None:
    said = (
        "has an older TorchScript format, or the one for phones: save the model with torch.jit.save"
    )
    path = written(tmp_path / "net.pt")
    plain = path.read_bytes()
    path.write_bytes(b"\0\0\0\0PTMF" + plain)
    assert refusal(path) == f"{path} {said}"
    path.write_bytes(plain)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/model.json", b"{}")
    assert refusal(path) == f"{path} {said}"


def test_code_that_is_trusted_is_run(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt", f'torch.save(input, "{tmp_path / "witness"}")')
    find_model(str(path), trust_code=True)(torch.zeros(1, 4))
    assert (tmp_path / "witness").exists()


class Named(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Attributes that have refused words' letters in them."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = torch.nn.ModuleDict({"a-b": torch.nn.Linear(4, 4)})
        self.num_classes = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        for part in self.ops.values():
            x = part(x)
        assert x.shape[0] > 0, 'torch and ops in a text # "'  # and in a comment
        return x + self.num_classes


def test_plain_modules_are_taken(tmp_path: Path) -> None:
    assert refusal(written(tmp_path / "net.pt")) == ""
    torch.jit.script(Named().eval()).save(str(tmp_path / "named.pt"))
    assert refusal(tmp_path / "named.pt") == ""


def test_a_file_that_would_unpack_to_far_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_unasked(monkeypatch)
    path = written(tmp_path / "net.pt")
    said = padded(path, "net/code/zeros.py")
    assert refusal(path) == f"{path} can't be unpacked safely: {said}"
