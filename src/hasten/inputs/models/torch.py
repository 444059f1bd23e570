"""Export of a torch module or exported program by torch's current exporter (extra `torch`)."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core import torch_programs
from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import InputError, first_words, visible
from hasten.inputs.models import frozen, onnx
from hasten.inputs.models.torch_inputs import (
    Sample,
    batch_of,
    check_dtypes,
    named_inputs,
    numbered_names,
    open_axes,
    ordered,
    takes_any_inputs,
)
from hasten.inputs.models.torch_operators import operators_read_once
from hasten.inputs.models.torch_states import changed_since, states_of

_BRANCH = re.compile(
    r'data-dependent.*call raised this error:\s+File "([^"]+)", line (\d+), in \S+\n([^\n]*)',
    re.DOTALL,
)
"""Pattern of the file, line and code in torch.export's error about a data-dependent branch."""
_UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='(\w+)[.:]+(\w+)'")
"""Pattern of an operator's library and name in the exporter's error about one that it doesn't know."""
_ASIDE = re.compile(r"\.?\s*\((?:unhinted|Size-like symbols)\b.*")
"""Pattern of what torch.export adds for its own developers to the reason of an error."""

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

OPSET = 20
IR_VERSION = 10
EXPORT_BATCH = 2  # torch.export treats a size of 1 as a constant.
CHECKED_BATCHES = (1, 3)
RELATIVE_TOLERANCE = 1e-3
"""Tolerance relative to an output's largest magnitude, for float32 sums in another order."""


class NotRun(InputError):  # noqa: N818
    """A model can't run a sample that was given or made up."""


@dataclass(frozen=True)
class _Module:
    """Live module and a sample of its inputs, in the order of forward's parameters.

    Attributes:
        positional: Whether forward takes `*args`, so that inputs are passed by position.
        axes: Input name -> names of axes, besides the batch, to keep open by their positions.
        further: Samples of other shapes than the sample's: what differs is to stay open.
    """

    module: torch.nn.Module
    sample: dict[str, Array]
    positional: bool
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    further: tuple[dict[str, Array], ...] = ()

    def arguments(
        self, batch: int, sample: Mapping[str, Array] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of forward for a batch made from a sample, by default its own."""
        import torch

        place = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        tensors = {
            name: torch.from_numpy(batch_of(array, batch)).to(place)
            for name, array in (sample or self.sample).items()
        }
        return (tuple(tensors.values()), {}) if self.positional else ((), tensors)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.module(*args, **kwargs)

    def to_onnx(self, outputs: Sequence[str], batch: int, *, open_batch: bool) -> Any:
        """Export the module with a batch of this size, open or fixed."""
        import torch

        args, kwargs = self.arguments(batch)
        shapes: Any = None
        if open_batch or self.further:
            stated = self.axes if open_batch else {}
            each = [
                {
                    axis: torch.export.Dim(named)
                    for axis, named in (own | dict(stated.get(name, {}))).items()
                }
                for name, own in zip(
                    self.sample,
                    open_axes([self.sample, *self.further], batch=open_batch),
                    strict=True,
                )
            ]
            shapes = (tuple(each),) if self.positional else dict(zip(kwargs, each, strict=True))
        return _to_onnx(self.module, args, kwargs, list(self.sample), outputs, shapes)


@dataclass(frozen=True)
class _Program:
    """Exported program, whose shapes are already settled, and a sample of its inputs."""

    program: ExportedProgram
    sample: dict[str, Array]
    further: tuple[dict[str, Array], ...] = ()

    def arguments(
        self, batch: int, sample: Mapping[str, Array] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the program's arguments for a batch made from a sample, by default its own."""
        import torch
        from torch.utils import _pytree as pytree

        own = sample or self.sample
        tensors = [torch.from_numpy(batch_of(array, batch)) for array in own.values()]
        return pytree.tree_unflatten(tensors, self.program.call_spec.in_spec)  # type: ignore[no-any-return]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.program.module()(*args, **kwargs)

    def to_onnx(self, outputs: Sequence[str], batch: int, *, open_batch: bool) -> Any:
        """Export the program with the shapes that it has."""
        return _to_onnx(self.program, (), {}, list(self.sample), outputs, None)


def export(
    module: Any,
    sample: Sample,
    workdir: Path,
    names: Sequence[str] | None = None,
    *,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    further: Sequence[Sample] = (),
) -> Model:
    """Export to ONNX, opset 20 and IR version 10, and check that the answers stay the same.

    The batch dimension is open if the exporter and the module allow it and the answers are right at
    batch sizes other than the traced one. Otherwise it is fixed at 1, and the file's metadata says
    why under `hasten.batch`. An exported program keeps its batch. The sample settles all other
    dimensions, but for those in which further samples differ from it: these stay open.

    Args:
        module: A `torch.nn.Module`, exported in eval mode and then put back as it was; or a
            `torch.export.ExportedProgram`.
        sample: One sample by the names of forward's parameters, or in their order, without an axis
            for samples; the name of a single input needn't match.
        workdir: Folder to write the ONNX file to.
        names: Names of the inputs, for a module whose forward takes `*args`.
        axes: Input name -> names of axes, besides the batch, to keep open by their positions; one name
            is one size. Where they can't be open, the batch isn't either.
        further: Samples of other shapes, on which the answers are checked too. An exported program has
            the open dimensions that it was exported with.

    Returns:
        ONNX model whose inputs have the names of forward's parameters. Outputs are named "output",
        or "output_0", ..., or by the keys that forward returns.

    Raises:
        InputError: torch isn't installed, the sample doesn't fit, the module can't run it or be
            exported, or the exported file gives other answers than the module.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it and says so late
        import torch
    except ImportError as error:
        raise missing_extra("a torch model", "torch") from error
    if isinstance(module, torch.export.ExportedProgram):
        return _export_program(module, sample, workdir, further)
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"a {type(module).__name__} is neither a torch module nor an exported program"
        )
    if names is None and takes_any_inputs(module):
        names = list(sample) if isinstance(sample, Mapping) else numbered_names(len(sample))
    given = named_inputs(sample, module, names)
    check_dtypes(given, module)
    others = tuple(named_inputs(one, module, names) for one in further)
    if others:  # torch.export treats a size of 1 as a constant
        given, *rest = sorted((given, *others), key=lambda one: -sum(a.size for a in one.values()))
        others = tuple(rest)
    source = _Module(module, given, names is not None, axes or {}, others)
    with evaluating(module), _quiet(), torch.no_grad():
        outputs = _output_names(source, 1)
        before = states_of(module)  # what the first call fills in for good doesn't count
        with _tensors_alone(source):  # which calls it once more
            changed = changed_since(before, module)
            try:
                _answers(
                    source, *source.arguments(EXPORT_BATCH)
                )  # its error says more than an export's
                program = source.to_onnx(outputs, EXPORT_BATCH, open_batch=True)
                _check(program, source, outputs, CHECKED_BATCHES)
                note = "open"
            except Exception as error:  # a fixed batch may still work; the reason is kept
                note = f"1: {error if isinstance(error, InputError) else _reason(error)}"
                program = _fixed(source, outputs, 1)
    return _save(program, workdir, note, changed)


def _export_program(
    program: ExportedProgram, sample: Sample, workdir: Path, further: Sequence[Sample] = ()
) -> Model:
    """Export a program that torch.export has already captured."""
    import torch

    names = [str(name) for name in program.graph_signature.user_inputs]
    given = ordered(sample, names, names)
    nodes = {node.name: node for node in program.graph.nodes}
    shape: Sequence[Any] = nodes[names[0]].meta["val"].shape if names else ()
    size: Any = shape[0] if shape else 1
    batch = size if isinstance(size, int) else 2
    source = _Program(program, given, tuple(ordered(one, names, names) for one in further))
    with _quiet(), torch.no_grad():
        outputs = _output_names(source, batch)
        if others := _others(source, batch):
            raise InputError(
                f"the program also returns {others}, and only tensors can be compared: capture it again from a module "
                "whose forward returns only tensors"
            )
        exported = _fixed(source, outputs, batch)
        note = "open"
        if isinstance(size, int):
            note = f"{size}: the exported program has a batch of {size}"
    return _save(exported, workdir, note, [*program.graph_signature.buffers_to_mutate.values()])


def keep_program(module: Any, sample: Sample, path: Path) -> Path:
    """Write a model as torch's exported program with a batch of 1.

    TPUs and other targets compile from torch's program instead of ONNX. The program's inputs and
    outputs are in the order of those of the model that `export` returns.

    Args:
        module: Module or program in any form that `export` takes; it is in eval mode meanwhile.
        sample: Sample in any form that `export` takes.
        path: Path to write to, ending in .pt2.

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
    except Exception as error:  # torch.export passes on any exception
        raise _not_exported(error, module) from error
    return path


def _captured(module: Any, sample: Sample, names: Sequence[str] | None) -> ExportedProgram:
    """Capture what a module, or a program with any batch, computes with a batch of 1."""
    import torch

    if isinstance(module, torch.export.ExportedProgram):
        inputs = [str(name) for name in module.graph_signature.user_inputs]
        args, kwargs = _Program(module, ordered(sample, inputs, inputs)).arguments(1)
        return torch.export.export(module.module(), args, kwargs)
    if names is None and takes_any_inputs(module):
        names = list(sample) if isinstance(sample, Mapping) else numbered_names(len(sample))
    given = named_inputs(sample, module, names)
    source = _Module(module, given, names is not None)
    args, kwargs = source.arguments(1)
    with evaluating(module), _tensors_alone(source):
        return torch.export.export(module, args, kwargs)


def load_program(path: Path, *, trust_code: bool = False) -> Any:
    """Load an exported program that `torch.export.save` wrote.

    Args:
        path: Path of the file.
        trust_code: Whether code that the file brings may run, as torch.export.load runs it. Without
            it a program is loaded only if it calls nothing but known operators of torch; its guards
            on requests are left out.

    Raises:
        InputError: torch isn't installed, there is no such file, it is another kind of file, or it
            can't be loaded without running code.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("a torch model", "torch") from error
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with _quiet():
            return torch.export.load(path) if trust_code else _load_unrun(path)
    except InputError:
        raise
    except Exception as error:  # torch.export.load passes on any exception
        raise InputError(f"{path} isn't an exported torch program: {_reason(error)}") from error


def _load_unrun(path: Path) -> Any:
    """Load a program without running code that it brings.

    Raises:
        InputError: that can't be done.
        zipfile.BadZipFile: it is another kind of file.
        OSError: it can't be read or copied.
    """
    with tempfile.TemporaryDirectory(prefix="hasten-program-") as folder:
        plain = Path(folder, path.name)
        try:
            torch_programs.keep(path, plain)
            return torch_programs.load(plain)
        except (OSError, zipfile.BadZipFile):
            raise
        except Exception as error:  # torch passes on any exception, and json its own
            raise InputError(
                f"{path} can't be loaded without running code that it contains: "
                f"{_reason(error)}; if you trust it, add trust_code=True, or load it in a my.py "
                "and give my.py:model"
            ) from error


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module and its parts in eval mode for the block, then each back in its own mode."""
    before = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, whose warnings and logs concern only its internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def flat_outputs(outputs: Any) -> dict[str, Any]:
    """Return output tensors by name: by key, by position, or "output" for a single tensor."""
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


def _others(source: _Module | _Program, batch: int = 1) -> str:
    """Return what the source answers besides tensors and None, in words; empty if there is nothing."""
    import torch
    from torch.utils import _pytree as pytree

    leaves, _ = pytree.tree_flatten_with_path(source(*source.arguments(batch)))
    others = [
        f"{pytree.keystr(path)} of type {type(leaf).__name__}"
        for path, leaf in leaves
        if leaf is not None and not isinstance(leaf, torch.Tensor)
    ]
    return ", ".join(others)


@contextmanager
def _tensors_alone(source: _Module) -> Iterator[None]:
    """Have a module that also returns numbers or texts return its tensors alone, since torch exports no others."""
    if not _others(source):
        yield
        return
    module, own = source.module, source.module.forward
    before = vars(module).get("forward")

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return flat_outputs(own(*args, **kwargs))

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _output_names(source: _Module | _Program, batch: int) -> list[str]:
    """Run the source once, and return names for its outputs."""
    outputs = _answers(source, *source.arguments(batch))
    if not outputs:
        raise InputError("the model returns no tensor: there is nothing to compare")
    taken = set(source.sample)
    return [f"{name}_out" if name in taken else name for name in outputs]


def _answers(
    source: _Module | _Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Run the source, and return its output tensors by name."""
    try:
        return flat_outputs(source(args, kwargs))
    except Exception as error:  # forward is the user's own code
        from torch.utils import _pytree as pytree

        shown = ", ".join(
            f"{name} {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            for name, tensor in zip(source.sample, pytree.tree_leaves((args, kwargs)), strict=True)
        )
        raise NotRun(f"the model can't run {shown}: {_reason(error)}") from error


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

    with operators_read_once():
        program: Any = torch.onnx.export(
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
    _rename_clashing(program.model.graph)
    return program


def _rename_clashing(graph: Any) -> None:
    """Rename inner values of an exported graph that are called as one of its outputs.

    The exporter calls an inner value after its operator, such as "embedding", and doesn't look
    whether the module returns something of that name: then ONNX Runtime refuses the file.
    """
    outputs = {value.name: value for value in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if outputs.get(value.name, value) is not value:
                value.name = f"{value.name}_of_{node.name}"


def _fixed(source: _Module | _Program, outputs: list[str], batch: int) -> Any:
    """Export with the batch as it is, and check the answers."""
    try:
        program = source.to_onnx(outputs, batch, open_batch=False)
    except Exception as error:  # torch's exporter passes on any exception
        wanted = ""
        if source.further and isinstance(source, _Module):
            own = open_axes([source.sample, *source.further], batch=False)
            wanted = " with " + " and ".join(
                f"dimension {axis} of {name}"
                for name, axes in zip(source.sample, own, strict=True)
                for axis in axes
            )
            wanted += " open, in which samples differ"
        model = source.module if isinstance(source, _Module) else source.program
        raise _not_exported(error, model, wanted) from error
    _check(program, source, outputs, (batch,))
    return program


def _check(
    program: Any, source: _Module | _Program, outputs: Sequence[str], batches: Sequence[int]
) -> None:
    """Check that the exported program gives the module's answers, by torch's own runner."""
    try:
        for batch in batches:
            _check_batch(program, source, outputs, batch)
        for one in source.further:
            _answers(source, *source.arguments(batches[0], one))
            try:
                _check_batch(program, source, outputs, batches[0], one)
            except InputError as error:
                raise InputError(
                    f"{error}, for {_shapes(one)}: the export, traced on "
                    f"{_shapes(source.sample)}, turned a size into a constant"
                ) from error
    finally:
        program.release()


def _shapes(sample: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())


def _check_batch(
    program: Any,
    source: _Module | _Program,
    outputs: Sequence[str],
    batch: int,
    sample: Mapping[str, Array] | None = None,
) -> None:
    args, kwargs = source.arguments(batch, sample)
    wanted = [tensor.detach().cpu() for tensor in _answers(source, args, kwargs).values()]
    try:
        answers = [tensor.detach().cpu() for tensor in program(*args, **kwargs)]
    except Exception as error:  # the runtime may raise any exception
        raise InputError(f"the exported model can't be run: {_reason(error)}") from error
    if len(answers) != len(wanted):
        raise InputError(
            f"the exported model gives {len(answers)} outputs, but the module returns {len(wanted)}"
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


def _save(program: Any, workdir: Path, note: str, changed: Sequence[str]) -> Model:
    """Write the file, and load it like any other ONNX file.

    Args:
        program: Program of torch's exporter.
        workdir: Folder of the file.
        note: Size of the batch, and why it isn't open.
        changed: Names of what a call of the model changes in it.
    """
    path = workdir / "model.onnx"
    program.model.ir_version = IR_VERSION
    _leave_out_sources(program.model)
    program.model.metadata_props[frozen.BATCH] = note
    if changed:
        program.model.metadata_props[frozen.STATES] = ", ".join(changed)
    try:
        with _quiet():
            program.save(path)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    return onnx.load(path)


def _leave_out_sources(model: Any) -> None:
    """Remove what torch's exporter says of the user's code: places, lines and names of modules.

    With it, the same network would be another file after any change of the code around it.
    """
    graphs = [model.graph, *(each.graph for each in model.functions.values())]
    for graph in graphs:
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph.all_nodes():
            values += node.outputs
            _leave_out(node.metadata_props)
        for value in values:
            _leave_out(value.metadata_props)
        _leave_out(graph.metadata_props)


def _leave_out(properties: dict[str, str]) -> None:
    for name in [
        name for name in properties if name == "namespace" or name.startswith("pkg.torch")
    ]:
        del properties[name]


def _not_exported(error: BaseException, model: Any, wanted: str = "") -> InputError:
    """Return the error about a model that torch can't export, in one line with what to try.

    Args:
        error: Error that torch raised.
        model: Module or program.
        wanted: Words on what was to stay open; empty where nothing special was.
    """
    reason = _ASIDE.sub("", _reason(error))
    if _explained(_root(error)):
        return InputError(f"torch can't export the model to ONNX{wanted}: {reason}")
    return InputError(
        f"torch's exporter can't follow {type(model).__name__}{wanted}: {reason:.200}; leave out of forward what depends "
        "on computed numbers, such as a choice of boxes, or try the older exporter, "
        "torch.onnx.export(module, (x,), 'model.onnx', dynamo=False), and give that file"
    )


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _explained(error: BaseException) -> str:
    """Return what a known error of torch's exporter means, with what to do; "" for another one."""
    branch = _BRANCH.search(str(error))
    if branch:
        file, line, code = branch.groups()
        return (
            f"{Path(file).name}:{line} has a branch that depends on a computed number "
            f"({code.strip()}); torch.where chooses between two values without a branch"
        )
    unknown = _UNKNOWN.search(str(error))
    if unknown:
        return (
            f"torch's exporter has no ONNX form of {'.'.join(unknown.groups())} for these inputs: calculate it with other "
            "operators in forward, or in your own code before or after the model; or call torch.onnx.export with a "
            "custom_translation_table for it, and give the ONNX file"
        )
    return ""


def _reason(error: BaseException) -> str:
    """Return the first line of an error's root cause, and those that follow where it announces them."""
    error = _root(error)
    if said := _explained(error):
        return said
    return visible(first_words(str(error)) or type(error).__name__)
