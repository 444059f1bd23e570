import inspect
import json
import pickle
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core import torch_programs
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact
from hasten.engines.cuda import torch as torch_cuda
from hasten.engines.cuda.own_thread import OwnThread
from hasten.engines.cuda.runtime import CAPTURING, Host
from hasten.engines.cuda.tf32 import precise
from hasten.engines.cuda.torch import TorchCuda, opened
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.source import load_model

torch = pytest.importorskip("torch", reason="needs the extra gpu: pip install 'hasten[gpu]'")
HOST = Target.host().with_threads(1)
REQUEST = {
    "x": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32),
    "factor": np.full((1, 1), 2, np.float32),
}


class Network(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3)
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x: Any, factor: Any) -> Any:
        means = torch.relu(self.convolution(x)).mean((2, 3))
        return self.linear(means) * factor, factor + 1


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def model(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network as ONNX, with its program."""
    folder = tmp_path_factory.mktemp("network")
    sample = {name: array[0] for name, array in REQUEST.items()}
    exported = load_model(network, lambda _: sample, folder).settled_by(sample)
    example = {name: torch.from_numpy(array) for name, array in REQUEST.items()}
    torch.export.save(torch.export.export(network, (), example), folder / "network.pt2")
    return replace(exported, program=folder / "network.pt2")


@pytest.fixture(scope="module")
def expected(network: Any) -> list[Array]:
    with torch.no_grad():
        return [t.numpy() for t in network(*map(torch.from_numpy, REQUEST.values()))]


def assert_close(answers: Tensors, expected: list[Array], tolerance: float = 1e-5) -> None:
    for got, right in zip(answers.values(), expected, strict=True):
        np.testing.assert_allclose(got, right, atol=tolerance, rtol=tolerance)


def test_without_the_gpu_the_program_answers_on_this_host(
    model: Model, expected: Any, sm80: Target, tmp_path: Path
) -> None:
    artifact = TorchCuda().build(model, sm80, tmp_path)
    assert artifact.path.suffix == ".pt2"
    with TorchCuda().open(artifact, sm80) as session:
        assert session.batch_sizes == (1,)
        assert_close(session.run(REQUEST), expected)
        said = session.properties()
    assert (said["mode"], said["copies_to_device"], said["copies_to_host"]) == ("eager", "2", "2")


def test_a_program_with_inputs_by_position_is_called_so(
    network: Any, model: Model, expected: Any, tmp_path: Path
) -> None:
    example = tuple(map(torch.from_numpy, REQUEST.values()))
    torch.export.save(torch.export.export(network, example), tmp_path / "by_position.pt2")
    (tmp_path / "built").mkdir()
    changed = replace(model, program=tmp_path / "by_position.pt2")
    artifact = TorchCuda().build(changed, HOST, tmp_path / "built")
    with TorchCuda().open(artifact, HOST) as session:
        assert_close(session.run(REQUEST), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own imports
def test_a_compiled_program_answers_the_same(model: Model, expected: Any, tmp_path: Path) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    with opened(artifact, Host(), "reduce-overhead", "f32") as session:
        assert_close(session.run(REQUEST), expected)
        assert session.properties()["mode"] == "reduce-overhead"


def test_half_precision_rounds_products(model: Model, expected: Any, tmp_path: Path) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    with opened(artifact, Host(), "eager", "bf16") as session:
        answers = session.run(REQUEST)
    assert_close(answers, expected, 2e-2)
    with pytest.raises(AssertionError):
        assert_close(answers, expected, 1e-6)
    assert answers[model.outputs[0].name].dtype == np.float32


def test_one_thread_opens_runs_and_closes_whoever_asks(
    model: Model, one_thread: Any, tmp_path: Path
) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    kinds = (torch_cuda._DeviceProgram, torch_cuda._ProgramExecution)
    one_thread(TorchCuda().open(artifact, HOST), kinds, REQUEST)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own imports
def test_torchs_compiled_captures_belong_to_a_thread() -> None:
    """Why a session has a thread: in each thread torch's store of captured graphs is another one."""
    trees = pytest.importorskip("torch._inductor.cudagraph_trees")
    first, second = OwnThread("first"), OwnThread("second")
    stores = [
        each.call(trees.get_obj, trees.local, "tree_manager_containers")
        for each in (first, second, first)
    ]
    assert stores[0] is stores[2]
    assert stores[0] is not stores[1]
    for each in (first, second):
        each.end(lambda: None)


def flags() -> tuple[Any, ...]:
    """Return all that torch has set for products of float32 on CUDA."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    old = (torch.get_float32_matmul_precision(), matmul.allow_tf32, cudnn.allow_tf32)
    kinds = (matmul, cudnn.conv, cudnn.rnn) if hasattr(cudnn, "conv") else ()
    return old, tuple(one.fp32_precision for one in kinds)


def test_each_run_has_its_own_tf32_beside_others(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    before = flags()
    seen: dict[bool, set[Any]] = {False: set(), True: set()}
    real = torch_cuda._ProgramExecution._once

    def once(self: Any) -> None:
        seen[self._program.tf32].add(flags())
        real(self)
        seen[self._program.tf32].add(flags())

    monkeypatch.setattr(torch_cuda._ProgramExecution, "_once", once)
    with (
        opened(artifact, Host(), "eager", "f32") as exact,
        opened(artifact, Host(), "eager", "tf32") as rounded,
        opened(artifact, Host(), "eager", "f32") as second,
        ThreadPoolExecutor(3) as pool,
    ):
        assert flags() == before  # an open session changes nothing
        barrier = threading.Barrier(3)

        def ask(session: Any) -> None:
            barrier.wait(60)
            for _ in range(40):
                session.run(REQUEST)

        list(pool.map(ask, (exact, rounded, second)))
        assert flags() == before
    precisions = {False: ("ieee",) * 3, True: ("tf32",) * 3}
    for tf32, words in ((False, "highest"), (True, "high")):
        kinds = precisions[tf32] if before[1] else ()
        assert seen[tf32] == {((words, tf32, tf32), kinds)}


def test_a_capture_of_torchs_graph_is_of_its_thread_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings with which torch's own capture is asked for; a capture itself needs a GPU."""
    artifact = TorchCuda().build(model, HOST, tmp_path)
    signature = inspect.signature(torch.cuda.graph.__init__)
    asked = []

    class Graph:
        def replay(self) -> None: ...

    @contextmanager
    def graph(*arguments: Any, **settings: Any) -> Any:
        asked.append(signature.bind(None, *arguments, **settings).arguments["capture_error_mode"])
        assert CAPTURING.locked()
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    with opened(artifact, Host(), "graph", "f32") as session:
        session.run(REQUEST)
    assert asked == ["thread_local"]
    assert not CAPTURING.locked()


def test_a_replay_waits_for_no_other_sessions_precision(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    asked, replays = list[bool](), list[int]()

    @contextmanager
    def watched(torch: Any, *, tf32: bool) -> Any:
        asked.append(tf32)
        with precise(torch, tf32=tf32):
            yield

    monkeypatch.setattr(torch_cuda, "precise", watched)
    monkeypatch.setattr(
        torch_cuda._ProgramExecution, "_captured", lambda self: lambda: replays.append(1)
    )
    with opened(artifact, Host(), "graph", "f32") as session:
        session.run(REQUEST)
        assert (len(replays), bool(asked)) == (2, True)
        asked.clear()
        session.run(REQUEST)
    assert (len(replays), asked) == (3, [])


def test_each_program_is_compiled_however_many_were_before(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    compiled = list[Any]()

    def compile_(function: Any, *, mode: str) -> Any:
        compiled.append(function.__code__)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    for _ in range(2):
        with opened(artifact, Host(), "reduce-overhead", "f32") as session:
            session.run(REQUEST)
    first, second = compiled
    assert first is not second  # torch counts compilations by the code object


def test_a_model_without_a_program_is_said(model: Model, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        TorchCuda().build(replace(model, program=None), HOST, tmp_path)
    assert str(caught.value) == (
        f"torch runs the exported program of a PyTorch model, but {model.path.name} has none: "
        "give the module itself"
    )


def test_a_model_that_a_pass_changed_isnt_the_program(model: Model, tmp_path: Path) -> None:
    with pytest.raises(
        CandidateError,
        match=r"^torch runs the original's program, but a pass changed the ONNX file$",
    ):
        TorchCuda().build(replace(model, origin=model), HOST, tmp_path)


def test_a_program_of_other_outputs_is_said(model: Model, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match=r"^the program gives 2 outputs, but the model has 1$"):
        TorchCuda().build(replace(model, outputs=model.outputs[:1]), HOST, tmp_path)


def test_a_file_that_is_no_program_is_one_line(model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.pt2").write_bytes(b"not a program")
    (tmp_path / "built").mkdir()
    with pytest.raises(CandidateError, match=r"^torch can't load the program: [^\n]+$"):
        TorchCuda().build(replace(model, program=tmp_path / "broken.pt2"), HOST, tmp_path / "built")


class Harm:
    """What a pickle calls when it is read."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


def rewritten(path: Path, changed: Callable[[str, bytes], bytes], more: dict[str, bytes]) -> None:
    """Change the records of a program, and add some."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    root = next(iter(records)).split("/")[0]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, changed(name.removeprefix(f"{root}/"), content))
        for name, content in more.items():
            new.writestr(f"{root}/{name}", content)


def refusal(artifact: Artifact) -> str:
    """Open an artifact, answer with it, and return why it doesn't."""
    try:
        with TorchCuda().open(artifact, HOST) as session:
            session.run(REQUEST)
    except CandidateError as error:
        return str(error)
    return "it answered"


def test_nothing_in_a_program_is_unpickled(model: Model, tmp_path: Path) -> None:
    artifact, witness = TorchCuda().build(model, HOST, tmp_path), tmp_path / "witness"
    harm = pickle.dumps(Harm(witness))
    rewritten(artifact.path, lambda name, old: harm if "sample_inputs" in name else old, {})
    assert refusal(artifact).startswith("torch can't load the program: ")
    assert not witness.exists()


def by_the_expression_of_a_size(program: Any, code: str, witness: Path) -> None:
    graph = program["graph_module"]["graph"]
    sizes = next(iter(graph["tensor_values"].values()))["sizes"]
    sizes[0] = {"as_expr": {"expr_str": f"{code} or 1", "hint": {"as_int": 1}}}


def by_a_guard(program: Any, code: str, witness: Path) -> None:
    program["guards_code"] = [code]


def by_an_operator(program: Any, code: str, witness: Path) -> None:
    arguments = [{"name": "", "arg": {"as_string": f"touch {witness}"}, "kind": 1}]
    program["verifiers"] = []
    harm = {"target": "torch.os.system", "inputs": arguments, "outputs": [{"as_none": True}]}
    program["graph_module"]["graph"]["nodes"].insert(0, harm | {"metadata": {}, "name": "harm"})


def by_an_operator_that_opens_files(program: Any, code: str, witness: Path) -> None:
    given = {"filename": {"as_string": str(witness)}, "shared": {"as_bool": True}}
    given["size"] = {"as_int": 1}
    arguments = [{"name": name, "arg": arg, "kind": 1} for name, arg in given.items()]
    graph = program["graph_module"]["graph"]
    graph["tensor_values"]["harm"] = next(iter(graph["tensor_values"].values()))
    harm = {"target": "torch.ops.aten.from_file.default", "inputs": arguments, "metadata": {}}
    graph["nodes"].insert(0, harm | {"outputs": [{"as_tensor": {"name": "harm"}}]})


def by_a_name_in_generated_code(program: Any, code: str, witness: Path) -> None:
    text = json.dumps(program["graph_module"]).replace('"relu"', json.dumps(f"relu = {code}; relu"))
    program["graph_module"] = json.loads(text)


def importable(witness: Path, name: str) -> None:
    """Write a module that leaves the witness where it is imported."""
    code = f"import pathlib; pathlib.Path({str(witness)!r}).touch()"
    (witness.parent / f"{name}.py").write_text(code)


def by_a_tree_that_imports(program: Any, code: str, witness: Path) -> None:
    importable(witness, "harm_of_a_tree")
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    context = {
        "default_factory_module": "harm_of_a_tree",
        "default_factory_name": "x",
        "dict_context": [],
    }
    tree = {"type": "collections.defaultdict", "context": context}
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = json.dumps([1, tree | {"children_spec": [leaf, leaf]}])


def by_an_enumeration_that_imports(program: Any, code: str, witness: Path) -> None:
    importable(witness, "harm_of_an_enumeration")
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    context = [{"__enum__": True, "fqn": "harm_of_an_enumeration:x", "name": "x"}, "b"]
    tree = {"type": "builtins.dict", "context": json.dumps(context)}
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = json.dumps([1, tree | {"children_spec": [leaf, leaf]}])


HARMS = [
    (by_the_expression_of_a_size, "expr_str"),
    (by_a_guard, "guards_code"),
    (by_an_operator, "target 'torch.os.system'"),
    (by_an_operator_that_opens_files, "target 'torch.ops.aten.from_file.default'"),
    (by_a_name_in_generated_code, "name"),
    (by_a_tree_that_imports, "out_spec"),
    (by_an_enumeration_that_imports, "out_spec"),
]


@pytest.mark.parametrize(
    ("harm", "where"), [pytest.param(*one, id=one[0].__name__) for one in HARMS]
)
def test_nothing_in_a_program_runs(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Any, str, Path], None],
    where: str,
) -> None:
    artifact, witness = TorchCuda().build(model, HOST, tmp_path), tmp_path / "witness"
    monkeypatch.syspath_prepend(tmp_path)
    code = f"__import__('os').system('touch {witness}')"

    def changed(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        program = json.loads(content)
        harm(program, code, witness)
        return json.dumps(program).encode()

    rewritten(artifact.path, changed, {})
    said = refusal(artifact)
    assert not witness.exists()
    assert said.startswith(
        f"a program may only call known operators of torch, but {artifact.path.name} has the {where}"
    )
    assert said.endswith(
        ", which could run other code or reach other memory: build it again from the model"
    )
    assert "\n" not in said


def test_no_object_and_no_library_is_loaded(model: Model, tmp_path: Path) -> None:
    artifact, witness = TorchCuda().build(model, HOST, tmp_path), tmp_path / "witness"
    whole = artifact.path.read_bytes()
    described = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    objects = {"x": described | {"tensor_meta": None}}

    def changed(name: str, content: bytes) -> bytes:
        is_config = name == "data/constants/model_constants_config.json"
        return json.dumps({"config": objects}).encode() if is_config else content

    rewritten(artifact.path, changed, {"data/constants/opaque_obj_0": pickle.dumps(Harm(witness))})
    assert "has the record 'data/constants/opaque_obj_0', " in refusal(artifact)
    artifact.path.write_bytes(whole)
    rewritten(artifact.path, changed, {})
    assert "has the path_name 'opaque_obj_0', " in refusal(artifact)
    artifact.path.write_bytes(whole)
    rewritten(artifact.path, lambda name, old: old, {"data/aotinductor/model/model.so": b""})
    assert "has the record 'data/aotinductor/model/model.so', " in refusal(artifact)
    assert not witness.exists()


def test_a_program_in_the_older_form_is_refused(model: Model, tmp_path: Path) -> None:
    artifact = TorchCuda().build(model, HOST, tmp_path)
    with zipfile.ZipFile(artifact.path, "a") as archive:
        archive.writestr("version", "8.20")
    assert refusal(artifact) == (
        f"{artifact.path.name} isn't an exported program of torch 2.8 or newer: export the model "
        "again"
    )


class Choosing(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Sizes that depend on the data, words among the arguments, and no gradient for a part."""

    def forward(self, x: Any, factor: Any) -> Any:
        with torch.no_grad():
            kept = torch.nonzero(x[0, 0] > 0)
        hidden = torch.nn.functional.gelu(x, approximate="tanh").masked_fill(x < 0, -torch.inf)
        count = kept.reshape(2 * kept.shape[0]).sum()
        return {"most": torch.einsum("bcij,bk->bk", hidden.clamp(-9, 9), factor), "count": [count]}


def test_sizes_that_depend_on_the_data_are_no_harm(tmp_path: Path) -> None:
    network = Choosing()
    x, factor = map(torch.from_numpy, REQUEST.values())
    given = (torch.cat([x, -x]), factor)
    dynamic = ({0: torch.export.Dim("rows", min=1, max=9)}, None)
    for name, shapes in (("settled", None), ("open", dynamic)):
        program = torch.export.export(network, given, dynamic_shapes=shapes, strict=False)
        torch.export.save(program, tmp_path / "given.pt2")
        torch_programs.keep(tmp_path / "given.pt2", tmp_path / f"{name}.pt2")
        torch_programs.check(tmp_path / f"{name}.pt2")
        loaded = torch.export.load(str(tmp_path / f"{name}.pt2")).module()
        torch.testing.assert_close(loaded(*given), network(*given))
    with pytest.raises(CandidateError, match=r" has the metadata \{"):
        torch_programs.check(tmp_path / "given.pt2")


@pytest.mark.parametrize(
    "expression",
    ["Symbol('u0', integer=True)", "Mul(Integer(2), Symbol('s77', positive=True))", "7", "-7"],
)
def test_arithmetic_of_sizes_is_taken(expression: str) -> None:
    assert torch_programs._is_size(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "open('x')",
        "Symbol('x')",
        "Symbol('u0').name",
        "Integer(2).__class__",
        "(lambda: 3)()",
        "Symbol('u0')(3)",
        "Integer(3",
        "__import__('os')",
        "Integer(3)\n",
        "2.5",
    ],
)
def test_more_than_arithmetic_is_not(expression: str) -> None:
    assert not torch_programs._is_size(expression)


def test_only_float32_is_exact_and_nothing_is_tried_without_the_gpu(sm80: Target) -> None:
    attached = replace(sm80, kind="attached")
    assert list(TorchCuda.variants(sm80)) == []
    assert list(TorchCuda.variants(HOST)) == []
    assert [(one.precision, one.exact) for one in TorchCuda.variants(attached)] == [
        ("f32", True),
        ("tf32", False),
        ("f16", False),
        ("bf16", False),
    ]
    assert [one.mode for one in TorchCuda().tunings(attached)] == ["graph", "max-autotune"]


def test_torch_that_isnt_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=r"^torch isn't installed \(.+\): pip install 'hasten\[gpu\]'$"
    ):
        TorchCuda.version()
