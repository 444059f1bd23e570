"""Loading of a model that a user names, as a `Model`."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.model import Model
from hasten.core.objects import load_object
from hasten.core.presence import is_there
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import HastenError, InputError, told
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.ragged import extremes
from hasten.inputs.data.source import open_data, resolved
from hasten.inputs.data.text_files import holds_texts, reads_texts
from hasten.inputs.models import hugging_face, named, onnx, tensorflow
from hasten.inputs.models.foreign import check_no_device
from hasten.inputs.models.tabular.base import Tabular, described, library_of, read_file
from hasten.inputs.models.torch_file import TorchFile
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import from_module
from hasten.inputs.pipeline.stored import stated_in
from hasten.inputs.pipeline.text import Tokenize

FurtherSampler = Callable[[Sequence[str]], Sequence[Mapping[str, Array]]]
"""Function from the input names that a sample was given by to samples of other shapes."""
Sampler = Callable[[Sequence[str]], Mapping[str, Array]]
"""Function from the model's input names, as far as the model states them, to one sample."""

KINDS = (
    "an .onnx file, a Hugging Face folder, a .pt2 exported program, a .pt file of torch.jit.save, timm:NAME@FILE, "
    "torchvision:NAME@FILE, a .keras file, a SavedModel folder, a .tflite file, a model of rows (XGBoost's .json or .ubj, "
    "LightGBM's .txt, CatBoost's .cbm or .json, scikit-learn's .skops), my.py:name, or a live model of torch, "
    "Keras or one of these libraries"
)
_WEIGHTS_ALONE = (
    "contains weights without their network: build the network in a my.py, load the weights there and give "
    "my.py:model; or name the network, as in timm:resnet18@weights.safetensors"
)
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w*")
"""Pattern of a file's suffix; a version in a model's name on a hub begins with a digit."""
_PICKLES = (".joblib", ".pkl", ".pickle")


def load_model(
    source: Any,
    sample: Mapping[str, Array] | Sampler | None,
    workdir: Path,
    custom_ops: Sequence[Path] = (),
    *,
    keep_program: bool = False,
    further: FurtherSampler = lambda names: (),
    texts: Tokenize | None = None,
) -> Model:
    """Load a model of any kind; facts that the model itself states are never asked for.

    Args:
        source: Path of an ONNX file (.onnx or any other name), of a Hugging Face folder, of a .pt2 exported program, of a
            .keras file or of a model of rows (.json, .ubj, .txt, .cbm, .skops); "file.py:name" or "package.module:name" of a module, of a Keras model, or
            of a function without arguments that returns one of these or a path; or a live model.
        sample: One sample by input name, without an axis for samples; or a function that takes the
            model's input names and returns a sample. If the function fails and the model has
            optional inputs, it is called again without names. None for an ONNX file.
        workdir: Folder to write an exported file to.
        custom_ops: Libraries with the user's own operators.
        keep_program: Whether to keep torch's exported program too, where there is one.
        further: Function from the same names to samples of other shapes; dimensions in which these
            differ stay open.
        texts: Step that turns the data's texts into as many inputs as a live model takes; None where
            the data states its inputs.

    Raises:
        InputError: there is no such model, it can't be exported, or an extra is missing.
    """
    source = find_model(source)
    if isinstance(source, Path):
        return onnx.load(source, custom_ops, workdir)
    if isinstance(source, hugging_face.Folder):
        if source.file is not None:
            return hugging_face.load_file(source, workdir, custom_ops)
        return hugging_face.load(
            source,
            partial(_for_folder, source, sample, texts),
            workdir,
            keep_program=keep_program,
            further=further,
        )
    if isinstance(source, tensorflow.TensorFlowModel):
        known = partial(_sampled, sample, kind=source.kind) if sample is not None else None
        return source.load(known, workdir)
    if isinstance(source, Tabular):
        if custom_ops:
            raise InputError(
                f"custom-op libraries belong to ONNX files; a {source.library} model has none to load "
                "them for"
            )
        return source.export(workdir)
    if isinstance(source, TorchFile):
        _check_no_custom_ops(custom_ops, "torch")
        given = partial(_sampled, sample, kind="torch")
        return source.load(given, workdir, further, keep_program=keep_program)
    return _export(source, sample, workdir, custom_ops, keep_program, further, texts)


def stated_pipeline(found: Any) -> Pipeline | None:
    """Return the pipeline that a model states; None for one that states none.

    Args:
        found: Model that `find_model` returned.

    Raises:
        InputError: what it states can't be used.
    """
    if isinstance(found, (Tabular, hugging_face.Folder)):
        return found.pipeline
    if isinstance(found, Path):
        return stated_in(found)
    if isinstance(found, (tensorflow.TensorFlowModel, TorchFile)):
        return None
    own = getattr(found, "hasten_pipeline", None)
    return own if isinstance(own, Pipeline) else from_module(found)


def pipeline_around(found: Any, given: Pipeline | None) -> Pipeline | None:
    """Return the steps around a model: the caller's, or by default the model's own.

    A caller's pipeline with only steps after the model keeps the model's own steps before it.

    Args:
        found: Model that `find_model` returned.
        given: Pipeline that the caller gave; None for none.

    Raises:
        InputError: what the model states can't be used, and is needed.
    """
    if given is not None and (given.steps or not given.after):
        return given
    own = stated_pipeline(found)
    return own if given is None else given.behind(own)


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
    data = resolved(data, pipeline)
    step = reads_texts(pipeline)
    texts = step if step is not None and holds_texts(data) else None
    for name in ("source", "unpacked", "unpacked-training"):  # a resumed run reads both again
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "source").mkdir()

    def sample(names: Sequence[str]) -> dict[str, Array]:
        specs = [TensorSpec(name, "float32", ()) for name in names]  # only the names are known yet
        opened.append(open_data(data, specs, pipeline, folder / "unpacked"))
        return {name: array[0] for name, array in opened[0].inputs([0]).items()}

    def further(names: Sequence[str]) -> list[dict[str, Array]]:
        whole = opened[-1]
        if isinstance(whole, ClassFiles):  # it knows the shapes of those that were read
            for index in range(len(whole)):
                whole.content_hash(index)
        places = extremes(whole) if whole.ragged else []
        return [{name: array[0] for name, array in whole.inputs([n]).items()} for n in places]

    model = load_model(
        source,
        sample,
        folder / "source",
        custom_ops,
        keep_program=keep_program,
        further=further,
        texts=texts,
    )
    if not opened:
        try:
            opened.append(open_data(data, model.inputs, pipeline, folder / "unpacked"))
        except InputError:
            from hasten.inputs.models.optional_inputs import optional_inputs, taking

            optional = optional_inputs(source) if isinstance(source, Path) else ()
            if not optional:
                raise
            shutil.rmtree(folder / "unpacked", ignore_errors=True)
            given = open_data(data, (), pipeline, folder / "unpacked")
            extra = {*given.names} & {*optional}
            if not extra or {*given.names} != extra | {spec.name for spec in model.inputs}:
                raise
            return taking(source, extra, folder / "source", custom_ops), given
    return model, opened[0]


def check_has_program(source: Any) -> None:
    """Check that a model comes from torch, for targets that compile from its exported program.

    Args:
        source: Model that `find_model` returned.

    Raises:
        InputError: it is an ONNX file or a Keras model.
    """
    if isinstance(source, hugging_face.Folder):
        if source.file is None and source.sentence is not None:
            raise InputError(
                "this target starts from the torch program, which lacks the pooling of "
                f"{source.sentence.folder}: build the whole model in a my.py and give my.py:model"
            )
        source = source.file or source
    other = isinstance(source, (Path, Tabular, tensorflow.TensorFlowModel))
    if other or _kind(source) == "keras":
        came = f"the ONNX file {source}" if isinstance(source, Path) else "a Keras model"
        came = f"a {source.library} model" if isinstance(source, Tabular) else came
        came = f"a {source.kind} model" if isinstance(source, tensorflow.TensorFlowModel) else came
        raise InputError(
            f"this target starts from the torch program, not from ONNX: got {came}; "
            "give the torch module or its .pt2 file"
        )


def find_model(source: Any, *, trust_code: bool = False) -> Any:
    """Return the model that a user named: an ONNX file's path, a live model, a `Tabular` or a `Folder`.

    Args:
        source: The model, in any form that `load_model` takes.
        trust_code: Whether code that a model's folder or file brings may run.

    Raises:
        InputError: there is no such model.
    """
    if not isinstance(source, (str, Path)):
        return described(source) if library_of(source) is not None else source
    found = _from_path(Path(source), trust_code=trust_code)
    if found is None and isinstance(source, str) and named.is_named(source):
        found = named.load(source)
    if found is None and isinstance(source, str) and ":" in source:
        found = _from_code(source, trust_code=trust_code)
    if found is None and _FILE_SUFFIX.fullmatch(Path(source).suffix) is None:
        raise InputError(
            f"no such file or folder: {source}; if it is a name on a hub, download the model and give its folder"
        )
    if found is None:
        raise InputError(f"no such file: {source}")
    return found


def _from_path(path: Path, *, trust_code: bool = False) -> Any:
    """Return the live model in a file, or the path of an ONNX file; None if there is no file."""
    if not is_there(path):
        return None
    check_no_device(path)
    if path.is_dir():
        own = hugging_face.read(path, trust_code=trust_code)
        return own or tensorflow.read(path, trust_code=trust_code) or path
    if path.suffix == ".pt2":
        if trust_code:  # it may call what the user's own code registered in this process
            from hasten.inputs.models import torch

            return torch.load_program(path, trust_code=True)
        return TorchFile(path, "program")
    if path.suffix == ".keras":
        from hasten.inputs.models import keras

        return keras.load_file(path, trust_code=trust_code)
    if (rows := read_file(path)) is not None:
        return rows
    if path.suffix in (".pt", ".pth", ".ts", ".torchscript"):
        from hasten.inputs.models import torchscript

        if torchscript.is_torchscript(path):
            return (
                torchscript.load(path, trust_code=True)
                if trust_code
                else TorchFile(path, "TorchScript")
            )
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors"):
        raise InputError(f"{path} {_WEIGHTS_ALONE}")
    if (of_tensorflow := tensorflow.read(path)) is not None:
        return of_tensorflow
    if path.suffix in _PICKLES:
        raise InputError(
            f"{path} is a pickle, and reading one runs whatever code is in it. If you trust it, load it in a "
            "my.py and give my.py:model; or convert it to an ONNX file with two lines of your "
            f"own: model = joblib.load({path.name!r}); onnx.save(skl2onnx.to_onnx(model, x[:1]), 'model.onnx')"
        )
    if path.suffix == ".py":
        raise InputError(f"{path}: name the model in it, as in {path}:model")
    return path


def _from_code(source: str, *, trust_code: bool) -> Any:
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
        inner = _from_path(Path(found), trust_code=trust_code)
        if inner is None:
            raise InputError(f"{source} names the file {found}, which doesn't exist")
        return inner
    if library_of(found) is not None:
        return described(found)
    if _is_weights(found):
        raise InputError(f"{source} {_WEIGHTS_ALONE}")
    if _kind(found) is None:
        raise InputError(f"{source} has the type {type(found).__name__}; a model is {KINDS}")
    return found


def _is_weights(source: Any) -> bool:
    """Whether an object is weights by name, as torch's `state_dict` returns them."""
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and isinstance(source, Mapping)
        and bool(source)
        and all(isinstance(one, torch.Tensor) for one in source.values())
    )


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
    further: FurtherSampler,
    texts: Tokenize | None,
) -> Model:
    """Export a live model to ONNX."""
    kind = _kind(source)
    if _is_weights(source):
        raise InputError(f"this {type(source).__name__} {_WEIGHTS_ALONE}")
    if kind is None:
        raise InputError(f"got a {type(source).__name__}; a model is {KINDS}")
    _check_no_custom_ops(custom_ops, kind)
    if kind == "torch":
        from hasten.inputs.models import torch, torch_inputs

        if why := getattr(source, "hasten_unexportable", ""):
            raise InputError(why)

        if is_script(source):
            from hasten.inputs.models import torchscript

            names = torchscript.input_names(source)
            given = _sampled(sample, names, kind)
            return torchscript.export(source, given, workdir, further(tuple(given)))
        if sample is None and (shape := getattr(source, "hasten_sample", None)) is not None:
            sample = {"x": np.ones(shape, np.float32)}
        names = torch_inputs.input_names(source)
        if texts is not None:
            names = torch_inputs.token_names(source, texts.gives_inputs)
        more = torch_inputs.has_optional_inputs(source)
        given = _sampled(sample, names, kind, more=more)
        model = torch.export(source, given, workdir, further=further(tuple(given)))
        if keep_program:
            kept = torch.keep_program(source, given, workdir / "program.pt2")
            model = dataclasses.replace(model, program=kept)
        return model
    from hasten.inputs.models import keras

    return keras.export(source, _sampled(sample, keras.input_names(source), kind), workdir)


def _check_no_custom_ops(custom_ops: Sequence[Path], kind: str) -> None:
    if custom_ops:
        raise InputError(
            f"custom-op libraries belong to ONNX files; a {kind} model has none to load them for"
        )


def is_script(source: Any) -> bool:
    """Whether a torch module is one of TorchScript."""
    import torch

    return isinstance(source, torch.jit.ScriptModule)


def _for_folder(
    folder: hugging_face.Folder,
    sample: Mapping[str, Array] | Sampler | None,
    texts: Tokenize | None,
    module: Any,
) -> Mapping[str, Array]:
    """Return a sample for a folder's module: of the data, or made up where there are none."""
    if sample is None:
        return folder.made_up(module)
    if texts is not None:
        return _sampled(sample, hugging_face.text_inputs(module), "torch")
    return _sampled(sample, (str(module.main_input_name),), "torch", more=True)


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
        return _checked(sample)
    try:
        return _checked(sample(names))
    except InputError:
        if not more or not names:
            raise
        try:
            return _checked(sample(()))
        except InputError:
            pass  # The first error is closer to what the model states.
        raise


def _checked(sample: Mapping[str, Array]) -> Mapping[str, Array]:
    if not isinstance(sample, Mapping):
        raise InputError(
            f"a sample has the type {type(sample).__name__}; give the inputs by name, as in {{'x': array}}"
        )
    return sample
