"""Reading, running and exporting of a file of torch, in the process that `TorchFile` starts for it (extra `torch`)."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.inputs.models import torch, torch_inputs, torchscript
from hasten.inputs.models.apart import Stated
from hasten.inputs.models.stated_inputs import stated_inputs, stated_outputs
from hasten.inputs.models.torch_file import PROGRAM, Kind


def read(path: Path, kind: Kind, *, torchvision: bool) -> Any:
    """Load a file.

    Args:
        path: The file.
        kind: Which kind of file it is.
        torchvision: Whether hasten's own process has imported torchvision, which adds operators to torch.

    Raises:
        InputError: torch isn't installed, or can't load the file.
    """
    if torchvision:
        with contextlib.suppress(ImportError):
            importlib.import_module("torchvision")
    if kind == "program":
        return torch.load_program(path)
    return torchscript.load(path)


def stated(model: Any) -> Stated:
    """Return the inputs that a program or a module of TorchScript states, and a program's outputs."""
    names = (
        torch_inputs.input_names(model) if _is_program(model) else torchscript.input_names(model)
    )
    return Stated(names, stated_inputs(model), stated_outputs(model) if _is_program(model) else ())


def export(
    model: Any,
    names: Sequence[Sequence[str]],
    samples: Path,
    workdir: Path,
    *,
    keep_program: bool,
) -> None:
    """Export a model to ONNX, and check that the answers stay the same.

    Args:
        model: Module or program, as `read` returns it.
        names: Names of the inputs in each sample; those after the first have other shapes.
        samples: File of all their arrays, one after another.
        workdir: Folder to write to.
        keep_program: Whether to write the program too.

    Raises:
        InputError: a sample doesn't fit, torch can't run or export the model, or the ONNX file gives other answers.
    """
    with samples.open("rb") as file:
        every: list[dict[str, Array]] = [{name: np.load(file) for name in one} for one in names]
    given, *further = every
    if not _is_program(model):
        torchscript.export(model, given, workdir, further)
        return
    torch.export(model, given, workdir, further=further)
    if keep_program:
        torch.keep_program(model, given, workdir / PROGRAM)


def _is_program(model: Any) -> bool:
    return hasattr(model, "graph_signature")
