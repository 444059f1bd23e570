"""A file of torch.jit.save from a stranger: its code touches no other file, unless it is trusted."""

import zipfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bombs import padded, with_little_unasked

from hasten.errors import InputError
from hasten.inputs.models import torchscript
from hasten.inputs.models.source import find_model

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; its files aren't gone

ADVICE = (
    " in its code, so it could touch other files or memory outside its tensors: if you trust it, add "
    "trust_code=True, or load it in a my.py and give my.py:model"
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
    """Load a file and export it, as its own process does; return why it is refused, or nothing."""
    try:
        torchscript.export(torchscript.load(path), {"x": np.ones(4, np.float32)}, path.parent)
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
    (
        "_9 = torch._sparse_coo_tensor_unsafe(torch.tensor([[3000000000]]), torch.ones([1]), [4])\n"
        "    _8 = input + _9.to_dense()",
        "torch._sparse_coo_tensor_unsafe",
    ),
    ('_9 = ops.aten.segment_reduce(input, "sum", unsafe=True)', "ops.aten.segment_reduce"),
    (
        "_9 = torch.adaptive_max_pool2d_backward(input, input, input)",
        "torch.adaptive_max_pool2d_backward",
    ),
    ("_9 = input.to_sparse()", ".to_sparse"),
    ("_9 = (input).resize_([9])", ".resize_"),
    ("_9 = (input.  # a\n    to_sparse)()", "."),
    ("f = input.set_\n    f(input)", ".set_"),
    ('_9 = getattr(input, "to_sparse")()', "getattr"),
    ('_9 = getattr(input, "to_\\163parse")()', "getattr"),
    ('_9 = getattr(getattr(self, "0"), "to_sparse")()', "getattr"),
    ('_9 = getattr((input).relu(), "0" if False else "to_sparse")()', "getattr"),
    ("__torch__ = input\n    _9 = __torch__.to_sparse()", "__torch__"),
    ("_9 = unchecked_cast(__torch__.Net, self)", "unchecked_cast"),
    ("_9 = unchecked_cast(List[__torch__.Net], [self])", "unchecked_cast"),
    ("f = unchecked_cast\n    _9 = f(__torch__.Net, self)", "unchecked_cast"),
    ("_9 = ops.prim.rpc_sync(input)", "ops.prim.rpc_sync"),
    ("_9 = ops.torchvision.roi_align(input)", "ops.torchvision.roi_align"),
    ("_9 = ops.quantized.embedding_bag_byte(input)", "ops.quantized.embedding_bag_byte"),
    ("_9 = __torch__.torch.classes.c10d.Store()", "__torch__.torch.classes.c10d.Store"),
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
    witness = tmp_path / "witness"
    harmful = written(tmp_path / "harmful.pt", f'torch.save(input, "{witness}")').read_bytes()
    path = written(tmp_path / "net.pt")
    check = torchscript._check_touches_nothing

    def then_replaced(*given: Any) -> None:
        check(*given)
        path.write_bytes(harmful)

    monkeypatch.setattr(torchscript, "_check_touches_nothing", then_replaced)
    torchscript.load(path)(torch.zeros(1, 4))
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
    torchscript.load(path, trust_code=True)(torch.zeros(1, 4))
    assert (tmp_path / "witness").exists()


class Named(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Attributes that have refused words' letters in them."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = torch.nn.ModuleDict({"a-b": torch.nn.Linear(4, 4)})
        self.sparse_head = torch.nn.Linear(4, 4)
        self.resize, self.save = torch.nn.ReLU(), torch.nn.ReLU()
        self.parts = torch.nn.Sequential(torch.nn.Sequential(torch.nn.ReLU()))
        self.num_classes = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        for part in self.ops.values():
            x = part(x)
        x = self.parts(self.sparse_head(self.save(self.resize(x))))
        assert x.shape[0] > 0, 'torch and ops in a text # "'  # and in a comment
        return x + self.num_classes


def test_plain_modules_are_taken(tmp_path: Path) -> None:
    assert refusal(written(tmp_path / "net.pt")) == ""
    torch.jit.script(Named().eval()).save(str(tmp_path / "named.pt"))
    assert refusal(tmp_path / "named.pt") == ""


def test_a_part_of_another_class_than_the_code_says_is_refused(tmp_path: Path) -> None:
    """torch had read a field of the class behind the end of the object."""
    path = written(tmp_path / "net.pt")
    fields = "".join(f"  a{number} : Tensor\n" for number in range(5_001))
    other = (
        f"class Large(Module):\n  __parameters__ = []\n  __buffers__ = []\n{fields}"
        "  def forward(self: __torch__.large.Large,\n    input: Tensor) -> Tensor:\n    return self.a5000\n"
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/code/__torch__/large.py", other)
    usual = "= __torch__.torch.nn.modules.linear.Linear"
    rewrite(path, lambda name, old: old.replace(usual, "= __torch__.large.Large"))
    assert refusal(path) == (
        f"{path} has objects in '__torch__.torch.nn.modules.container.Sequential' whose class isn't sure: save a module "
        "whose fields are modules, tensors and plain values"
    )


class Counting(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.counts = {"a": 1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return x * self.counts["a"]


def test_a_list_that_is_said_to_hold_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.script(Counting()).save(str(path))
    assert torchscript.load(path)(torch.ones(1)) == 1
    changed(path, "/data.pkl", lambda old: old.replace(b"Dict[str, int]", b"L[__torch__.A]"))
    assert refusal(path).startswith(
        f"{path} is damaged: 'data.pkl' can't be read: ValueError: it says that a list or dict is L[__torch__.A]"
    )


class Order(Enum):
    FIRST = "first"
    LAST = "last"


class Ordered(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.order = torch.nn.Linear(4, 4), Order.FIRST

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return self.layer(x) if self.order == Order.FIRST else x


def test_a_module_with_a_member_of_an_enumeration_is_taken(tmp_path: Path) -> None:
    """timm's transformers have one."""
    torch.jit.script(Ordered().eval()).save(str(tmp_path / "net.pt"))
    assert torchscript.load(tmp_path / "net.pt")(torch.ones(1, 4)).shape == (1, 4)


def test_a_file_that_would_unpack_to_far_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_unasked(monkeypatch)
    path = written(tmp_path / "net.pt")
    said = padded(path, "net/code/zeros.py")
    assert refusal(path) == f"{path} can't be unpacked safely: {said}"


def changed(path: Path, ending: str, change: Callable[[bytes], bytes]) -> Path:
    """Change the records of a file whose names end so."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, change(content) if name.endswith(ending) else content)
    return path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\x8a\x01", "not enough data"),
        (b"X\xff\xff\xff\x7f", "expected 2147483647 bytes"),
        (b"]r\xff\xff\xff\x1f", "puts a value at 536,870,911"),
    ],
)
def test_a_pickle_that_claims_more_than_it_has_is_refused_before_torch_makes_room(
    tmp_path: Path, line: bytes, said: str
) -> None:
    path = changed(written(tmp_path / "net.pt"), "/data.pkl", lambda old: old[:2] + line)
    told = refusal(path)
    assert told.startswith(f"{path} is damaged: 'data.pkl' ")
    assert said in told or "can't be read: " in told


@pytest.mark.parametrize(
    "line",
    [
        "y = " + "(" * 40_000 + "1" + ")" * 40_000,
        "y = 1" + "+1" * 40_000,
        "y = (1\n" + "+1\n" * 40_000 + ")",
        "y = input" + ".T" * 900_000,
        "y = " + "not " * 40_000 + "True",
        "y = 1" + "\n" * 90_000,
        "y = 1\n" + "    #\n" * 40_000,
        "if True:\n      y = 1\n" + "    elif True:\n      y = 1\n" * 40_000,
    ],
)
def test_code_that_would_overflow_the_stack_of_torchs_parser_is_refused(
    tmp_path: Path, line: str
) -> None:
    path = written(tmp_path / "net.pt", line)
    assert refusal(path) == (
        f"{path} is damaged, or wasn't written by torch.jit.save: "
        "'code/__torch__/torch/nn/modules/container.py' has a statement of more than 1,000 parts"
    )


def test_a_module_of_many_short_statements_is_taken(tmp_path: Path) -> None:
    lines = "\n    ".join(["y = torch.add(input, input)"] * 2_000)
    assert refusal(written(tmp_path / "net.pt", lines)) == ""


def test_a_module_without_forward_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt")
    forward, other = b"def forward", b"def backward"
    changed(path, ".py", lambda old: old.replace(forward, other) if b"class Net(" in old else old)
    assert refusal(path) == f"{path} has no method forward: save a module that has one"


def test_an_archive_with_a_broken_name_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt")
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 8 : at + 10], content[at + 46] = b"\x00\x08", 0xFF  # says UTF-8, and isn't
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value).startswith(f"{path} contains weights without their network: ")


class Bytes(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return torch.relu(x.to(torch.uint8))


def test_a_module_whose_onnx_file_no_runtime_opens_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Bytes()).save(str(tmp_path / "net.pt"))
    assert refusal(tmp_path / "net.pt").startswith("the exported model can't be opened: ")


def test_numbers_that_lie_beyond_a_file_are_refused_before_torch_reads_them(tmp_path: Path) -> None:
    """It had read what lay behind them in memory, or crashed."""
    path = written(tmp_path / "short.pt")
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    for size in (0, 8):
        with zipfile.ZipFile(path, "w") as new:
            for name, content in records.items():
                new.writestr(name, content[:size] if name.endswith("data/1") else content)
        assert refusal(path).startswith(
            f"{path} is damaged: 'data.pkl' can't be read: ValueError: 3 numbers of FloatStorage are said to be in "
            f"{size} bytes"
        )


def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path: Path) -> None:
    module = torch.jit.script(Net().eval())
    path = tmp_path / "far.pt"
    module.save(str(path))
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    (name,) = [one for one in records if one.endswith("/data.pkl")]
    shape = b"K\x03K\x04t"  # of the weight
    assert shape in records[name]
    records[name] = records[name].replace(shape, b"K\x7fK\x04t")
    with zipfile.ZipFile(path, "w") as new:
        for each, content in records.items():
            new.writestr(each, content)
    said = refusal(path)
    assert "a tensor of shape [127, 4] reaches beyond its 12 numbers" in said


def test_a_tensor_that_torch_makes_in_another_way_is_refused(tmp_path: Path) -> None:
    """torch takes the indices of a sparse tensor unchecked, and writes there when it becomes a dense one."""
    path = written(tmp_path / "net.pt")
    usual, other = b"torch._utils\n_rebuild_tensor_v2\n", b"torch._utils\n_rebuild_sparse_tensor\n"
    changed(path, "/data.pkl", lambda old: old.replace(usual, other))
    assert refusal(path).startswith(
        f"{path} is damaged: 'data.pkl' can't be read: ValueError: it makes a tensor by _rebuild_sparse_tensor"
    )


def test_an_object_of_a_class_of_torchs_own_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt")
    usual, other = b"__torch__.torch.nn.modules.linear\n", b"__torch__.torch.classes.c10d\n"
    changed(path, "/data.pkl", lambda old: old.replace(usual, other))
    assert refusal(path).startswith(
        f"{path} is damaged: 'data.pkl' can't be read: ValueError: it makes an object of "
    )
