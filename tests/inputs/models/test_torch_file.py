"""Files of torch run in a process of their own, which crashes in place of hasten's."""

import contextlib
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tests.support.at_hand import EXPORT, at_hand, forking_servers
from tests.support.waiting import until

import hasten
from hasten.cli import main
from hasten.core import forked
from hasten.core.processes import descendants
from hasten.errors import InputError
from hasten.inputs.models import apart, torchscript
from hasten.inputs.models import torch as frontend
from hasten.inputs.models.source import find_model, load_model, load_with_data
from hasten.inputs.models.stated_inputs import stated_inputs

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'hasten[torch]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; its files aren't gone

X = np.ones(4, np.float32)
CRASHED = (
    "can't be used: torch crashed (SIGSEGV) while it ran and exported the model, so the file is damaged, or calls an "
    "operator in a way that torch doesn't check: save the model again, or give it as an ONNX file"
)


class SmallWeights(torch.nn.Module):  # type: ignore[misc,name-defined]
    """An LSTM of 2,048 states whose weights are those of one."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(4, 4))
        self.bias = torch.nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        state = torch.zeros(1, x.size(0), 2048)
        weights = [self.weights, self.weights, self.bias, self.bias]
        x = x.reshape(x.size(0), 1, 4)
        return torch.lstm(x, [state, state], weights, True, 1, 0.0, False, False, True)[0]


class FarOffset(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A bag that begins far before its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.ones(10, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        offsets = torch.tensor([0, -1000000000, 4], dtype=torch.int32)
        numbers = torch.zeros(4, dtype=torch.int32)
        return x + torch.embedding_bag(self.rows, numbers, offsets)[0].sum()


class Endless(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        while bool(x.sum() == x.sum()):
            x = x + 0
        return x


def scripted(module: Any, path: Path) -> Path:
    torch.jit.script(module.eval()).save(str(path))
    return path


def captured(module: Any, path: Path) -> Path:
    torch.export.save(torch.export.export(module.eval(), (torch.ones(1, 4),)), path)
    return path


def net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())


@pytest.fixture(autouse=True)
def torch_at_hand(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers find torch in memory, but those of another folder, or with other code in its place."""
    with contextlib.ExitStack() as stack:
        if {"plain_workers", "take_over"}.isdisjoint(request.fixturenames):
            stack.enter_context(at_hand(*EXPORT))
        yield


@pytest.fixture
def plain_workers() -> None:
    """Workers import torch by themselves: in each folder another server forks them."""


def with_torch() -> list[int]:
    """Return the processes that this one started, or those started, and that have torch in memory.

    Servers that fork them aren't among them.
    """
    found = []
    for pid in set(descendants(os.getpid())) - forking_servers():
        try:
            mapped = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue
        if "libtorch" in mapped:
            found.append(pid)
    return found


@pytest.mark.parametrize(
    ("module", "saved", "name"),
    [
        (SmallWeights, scripted, "net.pt"),
        (FarOffset, scripted, "net.pt"),
        (FarOffset, captured, "net.pt2"),
    ],
)
def test_a_file_that_crashes_torch_is_refused_in_one_line(
    tmp_path: Path, module: Any, saved: Any, name: str
) -> None:
    path = saved(module(), tmp_path / name)
    with pytest.raises(InputError) as error:
        load_model(str(path), {"x": X}, tmp_path)
    assert str(error.value) == f"{path} {CRASHED}"
    assert with_torch() == []


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    path = scripted(FarOffset(), tmp_path / "net.pt")
    np.savez(tmp_path / "data.npz", x=np.ones((50, 4), np.float32))
    given = ["--data", str(tmp_path / "data.npz"), "--metric", "regression:0.1"]
    asked = ["optimize", str(path), *given, "--out", str(tmp_path / "b.hasten")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert f"{path} {CRASHED}" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "b.hasten").exists()


def test_a_program_becomes_the_same_onnx_file_as_in_one_process(tmp_path: Path) -> None:
    path = captured(net(), tmp_path / "net.pt2")
    own = frontend.export(frontend.load_program(path), {"input": X}, tmp_path)
    before = own.path.read_bytes()
    found = find_model(path)
    for _ in range(2):  # the second time in another process
        model = load_model(found, {"input": X}, tmp_path, keep_program=True)
        assert model.path.read_bytes() == before
        assert model.inputs == own.inputs
        assert model.program == tmp_path / "program.pt2"
        kept = frontend.load_program(model.program).module()(torch.from_numpy(X[None]))
        np.testing.assert_allclose(
            kept.detach().numpy(), net()(torch.from_numpy(X[None])).detach().numpy()
        )
        assert with_torch() == []


def test_torchscript_becomes_the_same_onnx_file_as_in_one_process(tmp_path: Path) -> None:
    path = scripted(net(), tmp_path / "net.pt")
    own = torchscript.export(torchscript.load(path), {"input": X}, tmp_path)
    before = own.path.read_bytes()
    model = load_model(path, lambda names: {names[0]: X}, tmp_path, keep_program=True)
    assert model.path.read_bytes() == before
    assert model.program is None
    session = onnxruntime.InferenceSession(str(model.path))
    (answer,) = session.run(None, {"input": X[None]})
    np.testing.assert_allclose(answer, net()(torch.from_numpy(X[None])).detach().numpy(), rtol=1e-6)


def test_samples_that_differ_in_shape_are_handed_over(tmp_path: Path) -> None:
    path = scripted(torch.nn.ReLU(), tmp_path / "net.pt")
    rows = [np.ones(4, np.float32), np.ones(7, np.float32)]
    model, _ = load_with_data(find_model(path), {"x": rows}, None, (), tmp_path)
    assert [str(spec) for spec in model.inputs] == ["input: float32[batch, length]"]


ALONE = """
import sys
from collections.abc import Callable
from pathlib import Path
import numpy as np
from hasten.inputs.models.source import find_model, load_model
from hasten.inputs.models.stated_inputs import stated_inputs
if __name__ == "__main__":
    for name in sys.argv[2:]:
        found = find_model(name)
        print(*stated_inputs(found))
        given = {each: np.ones(4, np.float32) for each in found.stated.names}
        load_model(found, given, Path(sys.argv[1]))
    print("torch" in sys.modules)
"""


def said_alone(tmp_path: Path, *files: Path) -> list[str]:
    """Load files in a new process; return their inputs, and whether it has imported torch."""
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-P", "-c", ALONE, str(tmp_path / "work"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def test_hastens_own_process_imports_no_torch(
    tmp_path: Path, take_over: Callable[..., Path]
) -> None:
    alone = onnx_file(tmp_path / "alone.onnx")
    program = take_over(exporting=f"import shutil; shutil.copy({str(alone)!r}, left)")
    script = scripted(net(), tmp_path / "b.pt")
    assert said_alone(tmp_path, program, script) == [*["x: float32[b, 4]"] * 2, "False"]


@pytest.mark.seconds
def test_hastens_own_process_never_imports_torch_for_a_file(tmp_path: Path) -> None:
    files = captured(net(), tmp_path / "a.pt2"), scripted(net(), tmp_path / "b.pt")
    assert said_alone(tmp_path, *files) == ["input: float32[1, 4]", "input: float32[...]", "False"]


class Thrice(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return torch.ops.hasten_test_own.thrice(x) + 1


def test_operators_of_a_users_own_code_are_known_where_the_file_is_trusted(tmp_path: Path) -> None:
    own = torch.library.Library("hasten_test_own", "FRAGMENT")
    own.define("thrice(Tensor x) -> Tensor")
    own.impl("thrice", lambda x: x * 3, "CompositeImplicitAutograd")
    path = captured(Thrice(), tmp_path / "net.pt2")
    (tmp_path / "naming.py").write_text(f"def path(): return {str(path)!r}\n")
    for source in (path, f"{tmp_path / 'naming.py'}:path"):
        with pytest.raises(InputError, match="hasten_test_own"):
            find_model(source)
        model = load_model(find_model(source, trust_code=True), {"x": X}, tmp_path)
        feed = {model.inputs[0].name: np.ones((1, 4), np.float32)}
        (answer,) = onnxruntime.InferenceSession(str(model.path)).run(None, feed)
        np.testing.assert_array_equal(answer, np.full((1, 4), 4, np.float32))
    script = find_model(scripted(Thrice(), tmp_path / "net.pt"), trust_code=True)
    np.testing.assert_array_equal(script(torch.from_numpy(X)).numpy(), np.full(4, 4, np.float32))


class Overlapping(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        boxes = x.reshape(-1, 4)
        return x + torch.ops.torchvision.nms(boxes, boxes[:, 0], 0.5).sum()


def test_torchvisions_operators_are_known_where_hastens_own_process_knows_them(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torchvision", reason="needs the extra torch: pip install 'hasten[torch]'")
    path = scripted(Overlapping(), tmp_path / "net.pt")
    assert load_model(path, {"x": np.ones((3, 4), np.float32)}, tmp_path).inputs[0].name == "x"


def test_a_path_that_a_users_own_code_names_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = scripted(FarOffset(), tmp_path / "net.pt")
    (tmp_path / "naming.py").write_text(f"def path(): return {str(path)!r}\n")
    with pytest.raises(InputError, match=r"can't be used: torch crashed \(SIGSEGV\)"):
        load_model(f"{tmp_path / 'naming.py'}:path", {"x": X}, tmp_path)


def test_a_users_own_module_stays_in_the_users_process(tmp_path: Path) -> None:
    class Counting(torch.nn.Module):  # type: ignore[misc,name-defined]
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
            Counting.calls += 1
            return x * 2

    load_model(Counting(), {"x": X}, tmp_path)
    assert Counting.calls > 0


def test_the_process_ends_where_the_user_stops_hasten(tmp_path: Path) -> None:
    found = find_model(scripted(Endless(), tmp_path / "net.pt"))
    assert len(with_torch()) == 1

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            load_model(found, {"x": X}, tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert with_torch() == []


def test_the_process_ends_with_the_model_that_nobody_exports(tmp_path: Path) -> None:
    found = find_model(scripted(net(), tmp_path / "net.pt"))
    assert [str(spec) for spec in stated_inputs(found)] == ["input: float32[...]"]
    assert len(with_torch()) == 1
    del found
    assert with_torch() == []


def test_code_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scripted(Endless(), tmp_path / "net.pt")
    found = find_model(path)
    monkeypatch.setattr(apart, "LIMIT_S", 1.0)
    with pytest.raises(InputError) as error:
        load_model(found, {"x": X}, tmp_path)
    assert str(error.value) == f"{path} can't be used: hung: no answer within 1 s, killed"
    assert with_torch() == []


def test_a_process_that_ended_between_both_steps_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take_over: Callable[..., Path]
) -> None:
    """As the process that a thread started ends with that thread, where the system has no pidfds."""
    alone = onnx_file(tmp_path / "alone.onnx")
    path = take_over(exporting=f"os.link({str(alone)!r}, left)")
    with monkeypatch.context() as older, ThreadPoolExecutor(1) as one:
        older.setattr(forked, "_can_watch", lambda: False)
        found = one.submit(find_model, path).result()
    until(lambda: not found._worker.alive)
    assert load_model(found, {"x": X}, tmp_path).inputs[0].name == "x"


def test_two_threads_may_load_one_file(tmp_path: Path) -> None:
    found = find_model(scripted(net(), tmp_path / "net.pt"))
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as two:
        models = list(two.map(lambda folder: load_model(found, {"input": X}, folder), folders))
    assert [model.path for model in models] == [folder / "model.onnx" for folder in folders]
    assert models[0].path.read_bytes() == models[1].path.read_bytes()
    assert with_torch() == []


class Saving(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: torch.Tensor, path: str = "PLACE") -> torch.Tensor:  # type: ignore[name-defined]
        torch.save(x, path)
        return x


@pytest.mark.usefixtures("plain_workers")
def test_code_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # code of the file finds the user's folder
    path = scripted(Saving(), tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"has 'torch\.save' in its code"):
        load_model(path, {"x": X}, tmp_path)
    assert not (tmp_path / "PLACE").exists()
    with pytest.raises(InputError, match="can't export"):  # it has no ONNX form
        load_model(find_model(path, trust_code=True), {"x": X}, tmp_path)
    assert (tmp_path / "PLACE").exists()


def test_a_second_load_finds_the_file_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take_over: Callable[..., Path]
) -> None:
    alone = onnx_file(tmp_path / "alone.onnx")
    name = take_over("Path(path).open().close()", f"os.link({str(alone)!r}, left)").name
    monkeypatch.chdir(tmp_path)
    found = find_model(name)
    for each in ("a", "b"):
        folder = tmp_path / each
        folder.mkdir()
        load_model(found, {"x": X}, folder)
        monkeypatch.chdir(folder)


@pytest.mark.usefixtures("plain_workers")
def test_a_file_that_takes_all_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scripted(net(), tmp_path / "net.pt")
    monkeypatch.setattr(apart, "MEMORY_SHARE", 1e-4)
    with pytest.raises(InputError, match=r"can't be used: ran out of memory: it held \d+ MiB"):
        find_model(path)
    assert with_torch() == []


def test_a_process_that_the_system_kills_is_said_to_be(
    tmp_path: Path, take_over: Callable[..., Path]
) -> None:
    path = take_over(exporting="os.kill(os.getpid(), 9)")
    with pytest.raises(InputError) as error:
        load_model(path, {"x": X}, tmp_path)
    assert str(error.value) == (
        f"{path} can't be used: torch was killed while it ran and exported the model, probably for lack of memory: "
        "free memory, or give the model as an ONNX file"
    )


def test_a_process_that_ends_by_itself_is_no_crash(take_over: Callable[..., Path]) -> None:
    path = take_over("os._exit(0)")
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value) == (
        f"{path} can't be used: torch's process ended (exit code 0) while it loaded the file, so the file is damaged, or "
        "calls an operator in a way that torch doesn't check: save the model again, or give it as an ONNX file"
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_a_process_of_its_own(
    tmp_path: Path, take_over: Callable[..., Path], copied: Callable[[Any], Any]
) -> None:
    alone = onnx_file(tmp_path / "alone.onnx")
    found = find_model(take_over(exporting=f"os.link({str(alone)!r}, left)"))
    other = copied(found)
    assert (other.path, other.stated) == (found.path, found.stated)
    for one in (other, found):
        folder = tmp_path / str(id(one))
        folder.mkdir()
        assert load_model(one, {"x": X}, folder).inputs[0].name == "x"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (
            {"x": np.array([1.0, None], object)},
            "input 'x' isn't an array of numbers: give one, as of np.asarray(values, np.float32)",
        ),
        ((X,), "a sample has the type tuple; give the inputs by name, as in {'x': array}"),
        (
            lambda names: [X],
            "a sample has the type list; give the inputs by name, as in {'x': array}",
        ),
    ],
)
def test_samples_that_are_none_are_refused_in_one_line(
    tmp_path: Path, take_over: Callable[..., Path], sample: Any, said: str
) -> None:
    with pytest.raises(InputError) as error:
        load_model(take_over(), sample, tmp_path)
    assert str(error.value) == said


FULL = """
import os
import resource
import sys
from pathlib import Path
import numpy as np
from hasten.errors import InputError
from hasten.inputs.models.source import find_model, load_model
if __name__ == "__main__":
    found = find_model(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        load_model(found, {"x": np.ones(4096, np.float32)}, Path(sys.argv[2]))
    except InputError as error:
        print(error)
    del found
    print(os.listdir(sys.argv[3]))
"""


def test_a_folder_for_samples_that_is_full_is_named(
    tmp_path: Path, take_over: Callable[..., Path]
) -> None:
    (tmp_path / "temporary").mkdir()
    path = take_over()
    command = [
        sys.executable,
        "-P",
        "-c",
        FULL,
        str(path),
        str(tmp_path),
        str(tmp_path / "temporary"),
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stderr == ""
    said, left = done.stdout.splitlines()
    assert said.startswith(
        f"can't write samples for {path} to {tmp_path / 'temporary'}/hasten-torch-"
    )
    assert said.endswith("; free space there, or let TMPDIR name another folder")
    assert left == "[]"


def test_a_folder_that_takes_no_files_is_named(
    tmp_path: Path, take_over: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = take_over()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value) == (
        f"no process can be started for {path}, with its files in {tmp_path / 'gone'}: No such file or directory; free "
        "memory and space, or let TMPDIR name another folder"
    )


def test_a_fork_has_a_process_of_its_own(tmp_path: Path, take_over: Callable[..., Path]) -> None:
    alone = onnx_file(tmp_path / "alone.onnx")
    found = find_model(take_over(exporting=f"os.link({str(alone)!r}, left)"))
    for name in "ab":
        (tmp_path / name).mkdir()
    child = os.fork()
    if child == 0:
        try:
            load_model(found, {"x": X}, tmp_path / "a")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    load_model(found, {"x": X}, tmp_path / "b")
    assert (tmp_path / "a" / "model.onnx").exists()


TAKEN_OVER = """
import os, sys, types
from pathlib import Path

def say(data):
    import socket
    socket.socket(fileno=os.dup(3)).sendall(data)

def read(path, kind, **settings):
    {reading}

def stated(model):
    from hasten.core.tensors import TensorSpec
    from hasten.inputs.models.apart import Stated
    return Stated(("x",), (TensorSpec("x", "float32", ("b", 4)),))

def export(model, names, samples, workdir, *, keep_program):
    left = workdir / "model.onnx"
    {exporting}

own = types.ModuleType("torch_apart")
own.read, own.stated, own.export = read, stated, export
sys.modules["hasten.inputs.models.torch_apart"] = own
"""


@pytest.fixture
def take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that lets code run in place of torch, as if a file had taken its process over.

    It takes the code for the first and second command, and returns a file.
    """

    def started(reading: str = "pass", exporting: str = "pass") -> Path:
        folder = tmp_path / "own"
        folder.mkdir()
        code = TAKEN_OVER.format(reading=reading, exporting=exporting)
        (folder / "sitecustomize.py").write_text(code)
        before = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), before))))
        (tmp_path / "net.pt2").touch()
        return tmp_path / "net.pt2"

    return started


def onnx_file(path: Path, data: str = "") -> Path:
    """Write a model of one product, with its weights in a file of this name beside it, if one is given."""
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(
        model,
        path,
        save_as_external_data=bool(data),
        location=data or None,
        size_threshold=0,
    )
    return path


@pytest.mark.parametrize(
    ("exporting", "name"),
    [
        ("os.mkfifo(left)", "model.onnx"),
        ("left.symlink_to('/dev/zero')", "model.onnx"),
        ("left.symlink_to(left)", "model.onnx"),
        ("left.symlink_to(r'ELSEWHERE')", "model.onnx"),
        ("left.mkdir()", "model.onnx"),
        ("pass", "model.onnx"),
        ("os.rmdir(workdir)", "model.onnx"),
        (
            "os.link(r'ELSEWHERE', left); (workdir / 'w').symlink_to('v'); os.link(r'DATA', workdir / 'v')",
            "w",
        ),
        ("os.link(r'ALONE', left)", "program.pt2"),
        ("os.link(r'ALONE', left); os.mkfifo(workdir / 'program.pt2')", "program.pt2"),
        (
            "os.link(r'ALONE', left); (workdir / 'program.pt2').symlink_to('/dev/zero')",
            "program.pt2",
        ),
    ],
)
def test_what_the_process_left_is_no_link_pipe_or_device(
    tmp_path: Path, take_over: Callable[..., Path], exporting: str, name: str
) -> None:
    for folder in ("outside", "alone", "work"):
        (tmp_path / folder).mkdir()
    elsewhere = onnx_file(tmp_path / "outside" / "model.onnx", "w")
    alone = onnx_file(tmp_path / "alone" / "model.onnx")
    for word, file in (
        ("ELSEWHERE", elsewhere),
        ("DATA", elsewhere.parent / "w"),
        ("ALONE", alone),
    ):
        exporting = exporting.replace(word, str(file))
    path = take_over(exporting=exporting)
    with pytest.raises(InputError) as error:
        load_model(path, {"x": X}, tmp_path / "work", keep_program=True)
    assert str(error.value) == (
        f"{path} can't be used: the process that exported it left no regular file {name}: save the model again, or "
        "give it as an ONNX file"
    )


def record(*names: str, many: int = 1, dtype: str = "float32", shape: Any = ("b", 4)) -> Any:
    spec = {"name": names[0], "dtype": dtype, "shape": shape}
    return {"names": names, "inputs": many * [spec]}


@pytest.mark.parametrize(
    "said",
    [
        None,
        {"names": 5, "inputs": []},
        record(*(1001 * ["x"])),
        record(1001 * "x"),
        record("x", many=1001),
        record("x", shape=["b" * 1001]),
        record("x", shape=["b", -4]),
        record("x", shape=["b", 1 << 63]),
        record("x", shape=65 * [1]),
        record("x", dtype="object"),
        record("x", dtype="float32), **a, #"),
    ],
)
def test_inputs_that_no_model_has_are_refused(take_over: Callable[..., Path], said: Any) -> None:
    reply = json.dumps({"ok": said})
    path = take_over(f"say({reply!r}.encode() + bytes([10])); import time; time.sleep(99)")
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value) == (
        f"{path} can't be used: the process that loaded it states inputs that no model has: save the model again, or "
        "give it as an ONNX file"
    )


@pytest.mark.parametrize(
    "saying",
    [
        r"say(b'{\"input_error\": \"' + bytes(2 << 20).replace(bytes(1), b'a') + b'\"}\n')",
        "say(bytes(2 << 20))",
    ],
)
def test_a_reply_of_more_than_a_mebibyte_ends_the_process(
    take_over: Callable[..., Path], saying: str
) -> None:
    path = take_over(f"{saying}; import time; time.sleep(99)")
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value) == (
        f"{path} can't be used: its process answered what can't be read during 'read_torch', killed"
    )


def test_what_the_process_says_is_cut_and_in_one_line(take_over: Callable[..., Path]) -> None:
    reply = json.dumps({"input_error": ["a\x1b[31m\n" * 1000]})
    path = take_over(f"say({reply!r}.encode() + bytes([10])); import time; time.sleep(99)")
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2100


def test_a_process_that_reads_nothing_is_ended(
    take_over: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = take_over(exporting="import time; time.sleep(99)")
    found = find_model(path)
    worker = found._worker
    many = {f"x{n}".ljust(800, "x"): X for n in range(10)}  # more than a socket holds
    os.kill(worker.pid, signal.SIGSTOP)
    monkeypatch.setattr(apart, "LIMIT_S", 1.0)
    with pytest.raises(InputError) as error:
        load_model(found, lambda _: many, tmp_path, further=lambda _: 100 * [many])
    assert str(error.value) == f"{path} can't be used: hung: no answer within 1 s, killed"


MANY_FILES = """
import resource
import sys
from hasten.inputs.models.source import find_model
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    files = [open("/dev/null") for _ in range(1100)]
    print(find_model(sys.argv[1]).stated.names)
"""


def test_many_open_files_are_no_hindrance(take_over: Callable[..., Path]) -> None:
    command = [sys.executable, "-P", "-c", MANY_FILES, str(take_over())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("('x',)\n", "")


def test_lighten_wants_a_live_network_and_says_so(
    tmp_path: Path, take_over: Callable[..., Path]
) -> None:
    path = take_over()
    data = {"x": np.ones((50, 4), np.float32)}
    with pytest.raises(InputError) as error:
        hasten.lighten(path, data, data, budget_s=0.001, max_drop=0.1, out=tmp_path / "out.hasten")
    assert str(error.value) == (
        f"lighten trains a live torch network, such as file.py:name; {path} isn't one (optimize can use it as it is)"
    )
