"""What torch's compiler warns of while a program is compiled: its own warnings, without compiling."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.cuda import torch as torch_cuda
from hasten.engines.cuda.runtime import Host
from hasten.engines.cuda.torch import TorchCuda

torch = pytest.importorskip("torch", reason="needs the extra gpu: pip install 'hasten[gpu]'")

HOST = Target.host().with_threads(1)
X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def advice(module: Any) -> Callable[[], None]:
    """Return a module's function that advises TF32, as it is with a GPU of compute capability 8.0."""
    given = module._warn_tf32_disabled.__wrapped__

    def advise() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            patched.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
            given()

    return advise


def compiling(folder: Path, warn: Callable[[], None]) -> Any:
    """Return a program whose compilation warns."""
    network = torch.nn.Linear(4, 4).eval()
    torch.export.save(torch.export.export(network, (torch.from_numpy(X),)), folder / "network.pt2")
    x, y = (TensorSpec(name, "float32", (2, 4)) for name in "xy")
    model = Model(folder / "none", "onnx", (x,), (y,), (x,), program=folder / "network.pt2")
    (folder / "built").mkdir()
    artifact = TorchCuda().build(model, HOST, folder / "built")
    program: Any = torch_cuda._DeviceProgram(artifact, Host(), "eager", "f32")
    plain = program.answer

    def answer(*given: Any) -> Any:
        warn()
        return plain(*given)

    program.answer = answer
    return program


def said(folder: Path, warn: Callable[[], None]) -> str:
    """Answer a request by a program whose compilation warns; return the warning, "" for none."""
    try:
        compiling(folder, warn).first_answer([torch.from_numpy(X)])
    except UserWarning as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own imports
def test_advice_to_take_tf32_is_no_warning_where_float32_was_asked_for(
    tmp_path: Path,
) -> None:
    from torch._inductor import compile_fx
    from torch._inductor.fx_passes import fuse_attention

    both = [advice(module) for module in (compile_fx, fuse_attention)]
    for advise in both:
        with pytest.warns(UserWarning, match="^TensorFloat32 tensor cores "):
            advise()

    def warn() -> None:
        for advise in both:
            advise()

    assert said(tmp_path, warn) == ""


@pytest.mark.filterwarnings("error::UserWarning")
def test_another_warning_of_the_compiler_is_still_one(tmp_path: Path) -> None:
    def warn() -> None:
        warnings.warn("something else", stacklevel=1)

    assert said(tmp_path, warn) == "something else"


def test_two_programs_that_compile_at_once_leave_the_process_its_own_filters(
    tmp_path: Path,
) -> None:
    second_is_inside, first_has_left = threading.Event(), threading.Event()

    def first() -> None:
        other.start()
        second_is_inside.wait(0.2)  # in vain where one is let in at a time

    def second() -> None:
        second_is_inside.set()
        first_has_left.wait(60)

    programs = []
    for name, warn in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        programs.append(compiling(tmp_path / name, warn))
    request = [torch.from_numpy(X)]
    other = threading.Thread(target=programs[1].first_answer, args=(request,))
    before = [*warnings.filters]
    programs[0].first_answer(request)
    first_has_left.set()
    other.join()
    assert warnings.filters == before
