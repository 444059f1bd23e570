"""Loading of a model that a user names, as a `Model`."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.core.model import Model
from hasten.core.objects import load_object
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import HastenError, InputError, told
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.source import open_data
from hasten.inputs.models import onnx
from hasten.inputs.models.tabular.base import Tabular, described, library_of, read_file
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import from_module
from hasten.inputs.pipeline.stored import stated_in

Sampler = Callable[[Sequence[str]], Mapping[str, Array]]
"""Function from the model's input names, as far as the model states them, to one sample."""

KINDS = (
    "an .onnx file, a .pt2 exported program, a .keras file, a model of rows (XGBoost's .json or .ubj, "
    "LightGBM's .txt, CatBoost's .cbm, scikit-learn's .skops), my.py:name, or a live model of torch, "
    "Keras or one of these libraries"
)
_PICKLES = (".joblib", ".pkl", ".pickle")


def load_model(
    source: Any,
    sample: Mapping[str, Array] | Sampler | None,
    workdir: Path,
    custom_ops: Sequence[Path] = (),
    *,
    keep_program: bool = False,
) -> Model:
    """Load a model of any kind; facts that the model itself states are never asked for.

    Args:
        source: Path of an ONNX file (.onnx or any other name), of a .pt2 exported program, of a
            .keras file or of a model of rows (.json, .ubj, .txt, .cbm, .skops); "file.py:name" or "package.module:name" of a module, of a Keras model, or
            of a function without arguments that returns one of these or a path; or a live model.
        sample: One sample by input name, without an axis for samples; or a function that takes the
            model's input names and returns a sample. If the function fails and the model has
            optional inputs, it is called again without names. None for an ONNX file.
        workdir: Folder to write an exported file to.
        custom_ops: Libraries with the user's own operators.
        keep_program: Whether to keep torch's exported program too, where there is one.

    Raises:
        InputError: there is no such model, it can't be exported, or an extra is missing.
    """
    source = find_model(source)
    if isinstance(source, Path):
        return onnx.load(source, custom_ops)
    if isinstance(source, Tabular):
        if custom_ops:
            raise InputError(
                f"custom-op libraries belong to ONNX files; a {source.library} model has none to load "
                "them for"
            )
        return source.export(workdir)
    return _export(source, sample, workdir, custom_ops, keep_program)


def stated_pipeline(found: Any) -> Pipeline | None:
    """Return the pipeline that a model states; None for one that states none.

    Args:
        found: Model that `find_model` returned.

    Raises:
        InputError: what it states can't be used.
    """
    if isinstance(found, Tabular):
        return found.pipeline
    return stated_in(found) if isinstance(found, Path) else from_module(found)


def load_with_data(
    source: Any,
    data: Any,
    pipeline: Pipeline | None,
    custom_ops: Sequence[Path],
    folder: Path,
    *,
    keep_program: bool = False,
) -> tuple[Model, Dataset]:
    """Load a model and its data; a live model is exported with a sample of the data.

    Args:
        source: Model in any form that `load_model` takes.
        data: Data in any form that `open_data` takes.
        pipeline: Preprocessing from an image file to the model's input.
        custom_ops: Libraries with the user's own operators.
        folder: Folder to write both to; files of an earlier call are replaced.
        keep_program: Whether to keep torch's exported program too, where there is one.

    Raises:
        InputError: the model or the data can't be used.
    """
    opened: list[Dataset] = []
    for name in ("source", "unpacked", "unpacked-training"):  # a resumed run reads both anew
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "source").mkdir()

    def sample(names: Sequence[str]) -> dict[str, Array]:
        specs = [TensorSpec(name, "float32", ()) for name in names]  # only the names are known yet
        opened.append(open_data(data, specs, pipeline, folder / "unpacked"))
        return {name: array[0] for name, array in opened[0].inputs([0]).items()}

    model = load_model(source, sample, folder / "source", custom_ops, keep_program=keep_program)
    if not opened:
        opened.append(open_data(data, model.inputs, pipeline, folder / "unpacked"))
    return model, opened[0]


def check_has_program(source: Any) -> None:
    """Check that a model comes from torch, for targets that compile from its exported program.

    Args:
        source: Model that `find_model` returned.

    Raises:
        InputError: it is an ONNX file or a Keras model.
    """
    if isinstance(source, (Path, Tabular)) or _kind(source) == "keras":
        came = f"the ONNX file {source}" if isinstance(source, Path) else "a Keras model"
        came = f"a {source.library} model" if isinstance(source, Tabular) else came
        raise InputError(
            f"this target starts from the torch program, not from ONNX: got {came}; "
            "give the torch module or its .pt2 file"
        )


def find_model(source: Any) -> Any:
    """Return the model that a user named: the path of an ONNX file, a live model, or a `Tabular`.

    Raises:
        InputError: there is no such model.
    """
    if not isinstance(source, (str, Path)):
        return described(source) if library_of(source) is not None else source
    found = _from_path(Path(source))
    if found is None and isinstance(source, str) and ":" in source:
        found = _from_code(source)
    if found is None:
        raise InputError(f"no such file: {source}")
    return found


def _from_path(path: Path) -> Any:
    """Return the live model in a file, or the path of an ONNX file; None without a file."""
    if not path.exists():
        return None
    if path.suffix == ".pt2":
        from hasten.inputs.models import torch

        return torch.load_program(path)
    if path.suffix == ".keras":
        from hasten.inputs.models import keras

        return keras.load_file(path)
    if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors", ".h5", ".tflite", ".pb"):
        raise InputError(f"{path} is a {path.suffix} file; a model is {KINDS}")
    if path.suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, and reading one runs whatever code is in it: if you trust it, load it "
            "in a my.py (model = joblib.load(...)) and give my.py:model; better, save the model with "
            "skops or in its library's own format"
        )
    rows = read_file(path)
    if rows is not None:
        return rows
    if path.suffix == ".py":
        raise InputError(f"{path}: say which model in it, as in {path}:model")
    return path


def _from_code(source: str) -> Any:
    """Return the model, or the path of one, at "file.py:name" or from the function there."""
    found = load_object(source)
    is_model = _kind(found) is not None or library_of(found) is not None
    if callable(found) and not is_model:
        try:
            found = found()
        except HastenError:
            raise
        except Exception as error:  # the call runs the user's own code
            raise InputError(f"{source} failed: {told(error)}") from error
    if isinstance(found, (str, Path)):
        inner = _from_path(Path(found))
        if inner is None:
            raise InputError(f"{source} names the file {found}, which doesn't exist")
        return inner
    if library_of(found) is not None:
        return described(found)
    if _kind(found) is None:
        raise InputError(f"{source} gives a {type(found).__name__}; a model is {KINDS}")
    return found


def _kind(source: Any) -> str | None:
    """Return "keras" or "torch"; None for anything else, without importing either library."""
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    # On keras's torch backend, a Keras model is a torch module too, so keras is checked first.
    if keras is not None and isinstance(source, keras.Model):
        return "keras"
    if torch is not None and isinstance(
        source, (torch.nn.Module, getattr(torch.export, "ExportedProgram", ()))
    ):
        return "torch"
    return None


def _export(
    source: Any,
    sample: Mapping[str, Array] | Sampler | None,
    workdir: Path,
    custom_ops: Sequence[Path],
    keep_program: bool,
) -> Model:
    """Export a live model to ONNX."""
    kind = _kind(source)
    if kind is None:
        raise InputError(f"got a {type(source).__name__}; a model is {KINDS}")
    if custom_ops:
        raise InputError(
            f"custom-op libraries belong to ONNX files; a {kind} model has none to load them for"
        )
    if kind == "torch":
        from hasten.inputs.models import torch, torch_inputs

        names = torch_inputs.input_names(source)
        more = torch_inputs.has_optional_inputs(source)
        given = _sampled(sample, names, kind, more=more)
        model = torch.export(source, given, workdir)
        if keep_program:
            kept = torch.keep_program(source, given, workdir / "program.pt2")
            model = dataclasses.replace(model, program=kept)
        return model
    from hasten.inputs.models import keras

    return keras.export(source, _sampled(sample, keras.input_names(source), kind), workdir)


def _sampled(
    sample: Mapping[str, Array] | Sampler | None,
    names: Sequence[str],
    kind: str,
    *,
    more: bool = False,
) -> Mapping[str, Array]:
    """Return a sample; if that fails, and optional inputs exist, use the data's own names."""
    if sample is None:
        raise InputError(f"a {kind} model is exported with a sample of its data: give data")
    if not callable(sample):
        return sample
    try:
        return sample(names)
    except InputError:
        if not more or not names:
            raise
        try:
            return sample(())
        except InputError:
            pass  # The first error is closer to what the model states.
        raise
