"""A torch module or exported program, through torch's current exporter (extra `torch`)."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models import onnx
from hasten.inputs.models.torch_inputs import (
    Sample,
    batch_of,
    check_dtypes,
    named_inputs,
    numbered_names,
    ordered,
    takes_any_inputs,
)

_BRANCH = re.compile(
    r'data-dependent.*call raised this error:\s+File "([^"]+)", line (\d+), in \S+\n([^\n]*)',
    re.DOTALL,
)
"""In what torch.export says of a branch."""

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

OPSET = 20
IR_VERSION = 10
EXPORT_BATCH = 2  # torch.export takes a size of 1 for a constant.
CHECKED_BATCHES = (1, 3)
RELATIVE_TOLERANCE = 1e-3
"""Of each output's largest magnitude: what the order of float32 sums may change, and no more."""
BATCH_NOTE = "hasten.batch"
"""Key in the file's metadata: "open", or "1: " and why it couldn't be kept open."""


@dataclass(frozen=True)
class _Module:
    """A live module and one sample of its inputs, in the order of forward's parameters.

    Attributes:
        positional: forward takes `*args`, so the inputs are passed by position.
    """

    module: torch.nn.Module
    sample: dict[str, Array]
    positional: bool

    def arguments(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what forward is called with: a batch made of the sample."""
        import torch

        place = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        tensors = {
            name: torch.from_numpy(batch_of(array, batch)).to(place)
            for name, array in self.sample.items()
        }
        return (tuple(tensors.values()), {}) if self.positional else ((), tensors)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.module(*args, **kwargs)

    def to_onnx(self, outputs: Sequence[str], batch: int, *, open_batch: bool) -> Any:
        """Export with a batch of this size, open or fixed."""
        import torch

        args, kwargs = self.arguments(batch)
        shapes: Any = None
        if open_batch:
            axis = {0: torch.export.Dim("batch")}
            each = [axis for _ in self.sample]
            shapes = (tuple(each),) if self.positional else dict(zip(kwargs, each, strict=True))
        return _to_onnx(self.module, args, kwargs, list(self.sample), outputs, shapes)


@dataclass(frozen=True)
class _Program:
    """An exported program; its shapes are settled already."""

    program: ExportedProgram
    sample: dict[str, Array]

    def arguments(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the program is called with: a batch made of the sample."""
        import torch
        from torch.utils import _pytree as pytree

        tensors = [torch.from_numpy(batch_of(array, batch)) for array in self.sample.values()]
        return pytree.tree_unflatten(tensors, self.program.call_spec.in_spec)  # type: ignore[no-any-return]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.program.module()(*args, **kwargs)

    def to_onnx(self, outputs: Sequence[str], batch: int, *, open_batch: bool) -> Any:
        """Export with the shapes that the program has."""
        return _to_onnx(self.program, (), {}, list(self.sample), outputs, None)


def export(module: Any, sample: Sample, workdir: Path, names: Sequence[str] | None = None) -> Model:
    """Export to ONNX, opset 20, IR version 10, and check the answers.

    The batch dimension is kept open where the exporter and the module allow it and the answers
    at batch sizes other than the traced one are right; else it is fixed at 1, and the file's
    metadata says why under `hasten.batch`. An exported program keeps the batch it has. Other
    dimensions are settled by the sample.

    Args:
        module: A `torch.nn.Module`, exported in eval mode and put back as it was; or a
            `torch.export.ExportedProgram`.
        sample: One sample, without an axis for samples: by the names of forward's parameters,
            or in their order. Where there is one of each, the name needn't match.
        workdir: Where the file is written.
        names: The inputs' names, for a module whose forward takes `*args`.

    Returns:
        Inputs are named as forward's parameters; outputs "output", or "output_0", ... , or by
        the keys of what forward gives.

    Raises:
        InputError: torch isn't installed, the sample doesn't fit, the module can't run it or be
            exported, or the exported file answers otherwise than the module.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so late
        import torch
    except ImportError as error:
        raise missing_extra("a torch model", "torch") from error
    if isinstance(module, torch.export.ExportedProgram):
        return _export_program(module, sample, workdir)
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"a {type(module).__name__} is no torch module and no exported program")
    if names is None and takes_any_inputs(module):
        names = list(sample) if isinstance(sample, Mapping) else numbered_names(len(sample))
    given = named_inputs(sample, module, names)
    check_dtypes(given, module)
    source = _Module(module, given, names is not None)
    with evaluating(module), _quiet(), torch.no_grad():
        outputs = _output_names(source, 1)
        try:
            program = source.to_onnx(outputs, EXPORT_BATCH, open_batch=True)
            _check(program, source, outputs, CHECKED_BATCHES)
            note = "open"
        except Exception as error:  # Whatever it is, a fixed batch may do; the reason is kept.
            note = f"1: {_reason(error)}"
            program = _fixed(source, outputs, 1)
    return _save(program, workdir, note)


def _export_program(program: ExportedProgram, sample: Sample, workdir: Path) -> Model:
    """Export what torch.export has captured already."""
    import torch

    names = [str(name) for name in program.graph_signature.user_inputs]
    given = ordered(sample, names, names)
    nodes = {node.name: node for node in program.graph.nodes}
    shape: Sequence[Any] = nodes[names[0]].meta["val"].shape if names else ()
    size: Any = shape[0] if shape else 1
    batch = size if isinstance(size, int) else 2
    source = _Program(program, given)
    with _quiet(), torch.no_grad():
        outputs = _output_names(source, batch)
        exported = _fixed(source, outputs, batch)
        note = "open"
        if isinstance(size, int):
            note = f"{size}: the exported program has a batch of {size}"
    return _save(exported, workdir, note)


def keep_program(module: Any, sample: Sample, path: Path) -> Path:
    """Write what a model computes as torch's exported program, for a batch of 1.

    For what starts from torch and not from ONNX: a TPU. Its inputs are in the order of those of what
    `export` gives, and so are its outputs.

    Args:
        module: As `export` takes it; in eval mode meanwhile.
        sample: As `export` takes it.
        path: Where to write; ends in .pt2.

    Raises:
        InputError: torch isn't installed, the sample doesn't fit, the module can't be exported, or
            the file can't be written.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("a torch model", "torch") from error
    try:
        with _quiet(), torch.no_grad():
            torch.export.save(_captured(module, sample, None), path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    except Exception as error:  # torch.export raises what its parts raise
        raise InputError(f"torch can't export the model: {_reason(error)}") from error
    return path


def _captured(module: Any, sample: Sample, names: Sequence[str] | None) -> ExportedProgram:
    """Capture what a module, or a program of any batch, does with a batch of 1."""
    import torch

    if isinstance(module, torch.export.ExportedProgram):
        inputs = [str(name) for name in module.graph_signature.user_inputs]
        args, kwargs = _Program(module, ordered(sample, inputs, inputs)).arguments(1)
        return torch.export.export(module.module(), args, kwargs)
    if names is None and takes_any_inputs(module):
        names = list(sample) if isinstance(sample, Mapping) else numbered_names(len(sample))
    given = named_inputs(sample, module, names)
    args, kwargs = _Module(module, given, names is not None).arguments(1)
    with evaluating(module):
        return torch.export.export(module, args, kwargs)


def load_program(path: Path) -> Any:
    """Load an exported program, as `torch.export.save` writes it.

    Raises:
        InputError: torch isn't installed, there is no such file, or it is another kind of file.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("a torch model", "torch") from error
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:  # torch.export.load raises what its parts raise.
        raise InputError(f"{path} is no exported torch program: {_reason(error)}") from error


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module and its parts in eval mode, and each back in the mode that it had."""
    before = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which warns and logs of its own workings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def flat_outputs(outputs: Any) -> dict[str, Any]:
    """Return output tensors by name: by key, by position, or "output" where there is one."""
    import torch
    from torch.utils import _pytree as pytree

    leaves, _ = pytree.tree_flatten_with_path(outputs)
    named = {}
    for path, leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            keys = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
            name = "_".join(keys) or "output"
            named[f"output_{name}" if name[0].isdigit() else name] = leaf
    return named


def _output_names(source: _Module | _Program, batch: int) -> list[str]:
    """Run the source once, and name what it gives."""
    args, kwargs = source.arguments(batch)
    try:
        outputs = flat_outputs(source(args, kwargs))
    except Exception as error:  # The user's own code runs here.
        shown = ", ".join(
            f"{name} {array.dtype}{[batch, *array.shape]}" for name, array in source.sample.items()
        )
        raise InputError(f"the model can't run {shown}: {_reason(error)}") from error
    if not outputs:
        raise InputError("the model gives no tensor: there is nothing to compare")
    taken = set(source.sample)
    return [f"{name}_out" if name in taken else name for name in outputs]


def _to_onnx(
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: Any,
) -> Any:
    """Call torch's exporter."""
    import torch

    return torch.onnx.export(
        module,
        args,
        kwargs=kwargs or None,
        input_names=inputs,
        output_names=outputs,
        opset_version=OPSET,
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )


def _fixed(source: _Module | _Program, outputs: list[str], batch: int) -> Any:
    """Export with the batch that is there, and check the answers."""
    try:
        program = source.to_onnx(outputs, batch, open_batch=False)
    except Exception as error:  # torch's exporter raises what its parts raise.
        raise InputError(f"torch can't export the model to ONNX: {_reason(error)}") from error
    _check(program, source, outputs, (batch,))
    return program


def _check(
    program: Any, source: _Module | _Program, outputs: Sequence[str], batches: Sequence[int]
) -> None:
    """Check that the exported program's answers are the module's, through torch's own runner."""
    try:
        for batch in batches:
            _check_batch(program, source, outputs, batch)
    finally:
        program.release()


def _check_batch(
    program: Any, source: _Module | _Program, outputs: Sequence[str], batch: int
) -> None:
    args, kwargs = source.arguments(batch)
    wanted = [tensor.detach().cpu() for tensor in flat_outputs(source(args, kwargs)).values()]
    try:
        answers = [tensor.detach().cpu() for tensor in program(*args, **kwargs)]
    except Exception as error:  # The runtime raises what it likes.
        raise InputError(f"the exported model can't be run: {_reason(error)}") from error
    if len(answers) != len(wanted):
        raise InputError(
            f"the exported model gives {len(answers)} outputs, the module {len(wanted)}"
        )
    for name, answer, want in zip(outputs, answers, wanted, strict=True):
        if answer.shape != want.shape or answer.dtype != want.dtype:
            raise InputError(
                f"the exported model's output {name!r} is {answer.dtype}{list(answer.shape)}, "
                f"the module's {want.dtype}{list(want.shape)}"
            )
        one, other = (np.atleast_1d(t.double().numpy()) for t in (answer, want))
        bound = RELATIVE_TOLERANCE * np.abs(other).max(initial=0) if want.is_floating_point() else 0
        off = np.abs(one - other).max(initial=0)
        if not off <= bound:
            raise InputError(
                f"the exported model's output {name!r} is off by {off:.3g} from the module's "
                f"(largest magnitude {np.abs(other).max(initial=0):.3g})"
            )


def _save(program: Any, workdir: Path, note: str) -> Model:
    """Write the file, and read it as any other."""
    path = workdir / "model.onnx"
    program.model.ir_version = IR_VERSION
    program.model.metadata_props[BATCH_NOTE] = note
    try:
        with _quiet():
            program.save(path)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    return onnx.load(path)


def _reason(error: BaseException) -> str:
    """Return the first line of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    branch = _BRANCH.search(str(error))
    if branch:
        file, line, code = branch.groups()
        return (
            f"{Path(file).name}:{line} goes one way or another by a number that is computed "
            f"({code.strip()}); torch.where gives one of both without that"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
