"""Export of a Keras 3 model to ONNX (extra `keras`).

Checked with keras 3.15: on the tensorflow backend (tensorflow 2.21, tf2onnx 1.17) through
`model.export(format="onnx")`, and on the torch backend (torch 2.13) through torch's current
exporter, since keras uses torch's deprecated one. On both backends: Functional and Sequential
models, convolutions, batch normalization, embedding and multi-head attention, several inputs and
outputs. The jax backend is untested, and refused.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.free_space import free_bytes
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import InputError, first_words, told
from hasten.inputs.models import keras_archive, onnx

OPSET = 18  # the highest that tf2onnx supports
IR_VERSION = 10
BACKENDS = ("tensorflow", "torch")
_MOST_STATES = 256 << 20
"""Bytes of the states that the recurrent layers of a file may keep, at most."""
_WAITING = "uninitialized_variables"
"""Where keras keeps the variables that take memory once no stateless scope is open."""
_OTHER_BYTES = 1 << 20
"""Bytes of a model's variables that aren't in its file, such as seeds, at most."""
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
TOLERANCE = 1e-3
"""Tolerance relative to an output's largest magnitude, for float32 sums in another order."""


def load_file(path: Path, *, trust_code: bool = False) -> Any:
    """Load a `.keras` file.

    Args:
        path: Path of the file.
        trust_code: Whether code that the file brings may run, as that of lambda layers.

    Raises:
        InputError: keras isn't installed, there is no such file, it is another kind of file, or
            loading it could run code or touch other files.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if trust_code:
        return _loaded(_keras(), path, path, trust_code=True)
    with tempfile.TemporaryDirectory() as folder:
        private = Path(folder) / "model.keras"  # what is checked is what is loaded
        free = free_bytes(folder)
        if (size := path.stat().st_size) > free:  # as of a file that is mostly holes
            raise InputError(
                f"{path} has {size:,} bytes, and for a copy of it only {free:,} are free in {folder}: free some space, "
                "or set TMPDIR to another folder"
            )
        try:
            shutil.copyfile(path, private)
        except OSError as error:
            raise InputError(f"{path} can't be copied: {error.strerror or error}") from error
        with private.open("rb") as file:
            keras_archive.check(file, path)
        return _loaded(_keras(), private, path, trust_code=False)


def _loaded(keras: Any, file: Path, path: Path, *, trust_code: bool) -> Any:
    """Load a file, which is a copy of another one or that itself.

    Args:
        keras: The library.
        file: The file to load.
        path: Path of the user's file, for messages.
        trust_code: Whether code that the file brings may run.
    """
    try:
        with quiet():
            if not trust_code:
                with file.open("rb") as opened:
                    keras_archive.check_weights(opened, path)
                    _check_sizes(keras, opened, path)
            return keras.models.load_model(file, compile=False, safe_mode=not trust_code)
    except InputError:
        raise
    except Exception as error:  # keras passes on any exception of its dependencies
        said = _first_line(error).replace(str(file), str(path))
        raise InputError(f"{path} can't be loaded as a Keras model: {said}") from error


def _check_sizes(keras: Any, file: IO[bytes], path: Path) -> None:
    """Check that a file has the weights that its layers claim, before keras allocates memory for them.

    Raises:
        InputError: the layers claim more weights than the file has, or states of more than 256 MiB.
    """
    from keras.src.backend.common import global_state

    config, stored, stateful = keras_archive.sizes(file)
    waiting = global_state.get_global_attribute(_WAITING, [])
    global_state.set_global_attribute(_WAITING, [])
    try:
        with keras.StatelessScope(
            initialize_variables=False
        ):  # variables have shapes, and no memory
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
            claimed, adapters = _claimed(model)
            states = _states(model) if stateful else 0
    except Exception:
        if keras.saving.get_custom_objects():
            return  # the caller's own layers may make variables from arrays, which can't wait
        raise
    finally:
        global_state.set_global_attribute(_WAITING, waiting)
    if claimed > stored + _OTHER_BYTES or adapters > 2 * claimed + _OTHER_BYTES:
        raise InputError(
            f"{path} can't be loaded as a Keras model: its layers claim {claimed + adapters:,} bytes of weights, but "
            f"it has {stored:,}: if you trust it, add trust_code=True"
        )
    if states > _MOST_STATES:
        raise InputError(
            f"{path} can't be loaded as a Keras model: its layers keep states of {states:,} bytes, which is more than "
            f"{_MOST_STATES:,}: if you trust it, add trust_code=True"
        )


def _claimed(model: Any) -> tuple[int, int]:
    """Return the bytes of a model's weights, and of low-rank adapters, which a file has as parts of the weights.

    Variables of the caller's own layers don't count, since such a layer decides itself what it stores.
    """
    own = {
        id(one)
        for layer in model._flatten_layers()
        if type(layer).__module__.partition(".")[0] != "keras"
        for one in layer.variables
    }
    claimed = adapters = 0
    for one in model.variables:
        size = math.prod(one.shape) * _size(one.dtype)
        if "lora_" in one.name:
            adapters += size
        elif id(one) not in own:
            claimed += size
    return claimed, adapters


def _states(model: Any) -> int:
    """Return the bytes of the states that a model's recurrent layers would keep, at most."""
    states = 0
    for layer in model._flatten_layers():
        if not hasattr(layer, "stateful"):
            continue
        for node in layer._inbound_nodes[:1]:
            shape = [size or 1 for size in node.output_tensors[0].shape]
            if layer.return_sequences:
                del shape[1]  # the states of one step are kept
            states += 2 * 4 * math.prod(shape)
    return states


def _size(dtype: str) -> int:
    """Return the bytes of a value of one of keras's types, such as "float8_e4m3fn"."""
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return max(1, int(bits[1]) // 8) if bits else 1


def input_names(model: Any) -> tuple[str, ...]:
    """Return the input names of a built model, in order."""
    return tuple(str(tensor.name) for tensor in getattr(model, "inputs", None) or ())


def export(model: Any, sample: Mapping[str, Array] | Sequence[Array], workdir: Path) -> Model:
    """Export a model to ONNX with an open batch, and check that its answers stay the same.

    Args:
        model: Built `keras.Model`: Functional, Sequential, or subclassed and already called.
        sample: One sample by input name, or in the order of the inputs, without an axis for
            samples; the name of a single input needn't match.
        workdir: Folder to write the ONNX file to.

    Returns:
        ONNX model whose inputs and outputs have the Keras model's names.

    Raises:
        InputError: keras isn't installed, its backend isn't supported, the sample doesn't fit, the
            model can't be exported, or the exported file gives other answers.
    """
    keras = _keras()
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        raise InputError(
            f"keras runs on {backend} here, but a model can only be exported on "
            f"{', '.join(BACKENDS)}: "
            "set KERAS_BACKEND"
        )
    names = input_names(model)
    if not names:
        raise InputError("the Keras model has no stated inputs: call it once, or give it an Input")
    _check_stateless(model)
    given = _ordered(sample, names)
    if backend == "torch":
        return _through_torch(model, given, workdir)
    path = workdir / "model.onnx"
    with quiet():
        try:
            wanted = _flat(model(_structured(model, given), training=False))
            model.export(path, format="onnx", verbose=False, opset_version=OPSET)
        except Exception as error:  # keras and tf2onnx pass on any exception
            raise InputError(
                f"keras can't export the model to ONNX: {_first_line(error)}"
            ) from error
    rename(path, names, output_names(model, len(wanted)))
    exported = onnx.load(path)
    _check(exported, given, wanted)
    return exported


def _keras() -> Any:
    try:
        with quiet():
            import keras
    except ImportError as error:
        raise missing_extra("a Keras model", "keras") from error
    return keras


@contextmanager
def quiet() -> Iterator[None]:
    """Silence tensorflow and tf2onnx, whose warnings and prints concern only their internals."""
    log = logging.getLogger()
    before = log.level, log.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before[0])
        logging.disable(before[1])


def _ordered(
    sample: Mapping[str, Array] | Sequence[Array], names: Sequence[str]
) -> dict[str, Array]:
    """Return a sample's inputs by name, in the model's order."""
    if isinstance(sample, Mapping):
        if len(sample) == len(names) == 1:
            return dict(zip(names, sample.values(), strict=True))
        if set(sample) == set(names):
            return {name: sample[name] for name in names}
    elif len(sample) == len(names):
        return dict(zip(names, sample, strict=True))
    came = ", ".join(sample) if isinstance(sample, Mapping) else str(len(sample))
    raise InputError(
        f"the model takes the inputs {', '.join(names)}; the data has {came or 'none'}"
    )


def _structured(model: Any, given: Mapping[str, Array]) -> Any:
    """Return a batch of one in the nested structure that the model takes."""
    import keras

    flat = [array[np.newaxis] for array in given.values()]
    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return keras.tree.pack_sequence_as(structure, flat)
    return flat[0] if len(flat) == 1 else flat


def _flat(outputs: Any) -> list[Array]:
    """Return a model's outputs as a flat list of arrays, in keras's order."""
    import keras

    return [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(outputs)]


def output_names(model: Any, count: int) -> list[str]:
    """Return the names that keras gives the outputs, else numbered names."""
    import keras

    names = [str(name) for name in getattr(model, "output_names", None) or ()]
    if not names and isinstance(model, keras.Sequential):
        names = [str(model.layers[-1].name)]
    if len(names) == count and len(set(names)) == count:
        return names
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def rename(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the file's inputs and outputs the model's own names; tf2onnx makes up others."""
    proto = onnx.read(path)
    renamed: dict[str, str] = {}
    for values, names in ((proto.graph.input, inputs), (proto.graph.output, outputs)):
        if len(values) != len(names):
            raise InputError(
                f"keras exported {len(values)} inputs or outputs, but the model has {len(names)}"
            )
        renamed |= {value.name: name for value, name in zip(values, names, strict=True)}
    inner = {name for node in proto.graph.node for name in node.output}
    inner |= {tensor.name for tensor in proto.graph.initializer}
    for name in (set(renamed.values()) & inner) - renamed.keys():
        renamed[name] = f"{name}_inner"
    _apply(proto.graph, renamed)
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = renamed.get(value.name, value.name)
        shape = value.type.tensor_type.shape
        if shape.dim and not shape.dim[0].HasField("dim_value"):
            shape.dim[0].dim_param = "batch"
    for tensor in (*proto.graph.initializer, *proto.graph.value_info):
        tensor.name = renamed.get(tensor.name, tensor.name)
    proto.ir_version = IR_VERSION
    path.write_bytes(proto.SerializeToString())


def _apply(graph: Any, renamed: Mapping[str, str]) -> None:
    """Rename values wherever nodes read or write them, subgraphs included."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                _apply(inner, renamed)


def _check_stateless(model: Any) -> None:
    """Refuse layers that remember the last call, which an ONNX file can't.

    Raises:
        InputError: there is such a layer.
    """
    kept = [layer.name for layer in model._flatten_layers() if getattr(layer, "stateful", False)]
    if kept:
        raise InputError(
            f"the layer {kept[0]!r} of the Keras model keeps its state between calls (stateful=True), which an ONNX "
            "file can't: build the model with stateful=False, or with the states as inputs and outputs"
        )


def _check(exported: Model, given: Mapping[str, Array], wanted: Sequence[Array]) -> None:
    """Check the file's answers by ONNX Runtime.

    Raises:
        InputError: they differ from the Keras model's, or the file can't be run.
    """
    import onnxruntime

    inputs = {
        spec.name: array[np.newaxis].astype(spec.dtype, copy=False)
        for spec, array in zip(exported.inputs, given.values(), strict=True)
    }
    try:
        cpu = ["CPUExecutionProvider"]  # a GPU may round float32 to TF32
        answers = onnxruntime.InferenceSession(str(exported.path), providers=cpu).run(None, inputs)
    except Exception as error:  # the runtime raises exceptions of its own
        raise InputError(f"the exported model can't be run: {told(error)}") from error
    for spec, answer, want in zip(exported.outputs, answers, wanted, strict=True):
        if answer.shape != want.shape:
            raise InputError(
                f"the exported model's output {spec.name!r} has the shape {list(answer.shape)}; the Keras model's "
                f"has {list(want.shape)}"
            )
        largest = np.abs(want.astype(np.float64)).max(initial=0)
        off = np.abs(answer.astype(np.float64) - want.astype(np.float64)).max(initial=0)
        if not off <= TOLERANCE * largest:
            raise InputError(
                f"the exported model's output {spec.name!r} is off by {off:.3g} from the Keras "
                f"model's (largest magnitude {largest:.3g})"
            )


def _through_torch(model: Any, given: dict[str, Array], workdir: Path) -> Model:
    """Export a model on the torch backend, where it is also a torch module with nested inputs."""
    import torch

    from hasten.inputs.models import torch as torch_frontend

    names = list(given)
    ends = output_names(model, len(model.outputs)) if getattr(model, "outputs", None) else None

    class Flat(torch.nn.Module):
        """Module that takes the inputs one by one and returns the outputs by name."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> Any:
            import keras

            structure = getattr(self.model, "_inputs_struct", None)
            nested = inputs[0] if len(inputs) == 1 else list(inputs)
            if structure is not None:
                nested = keras.tree.pack_sequence_as(structure, list(inputs))
            outputs = self.model(nested, training=False)
            flat = keras.tree.flatten(outputs)
            return dict(zip(ends, flat, strict=True)) if ends else tuple(flat)

    return torch_frontend.export(Flat(), given, workdir, names)


def _first_line(error: BaseException) -> str:
    plain = _STYLE.sub("", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling "):
        del lines[0]  # keras names the layer first, and then the reason
    return first_words("\n".join(lines)) or type(error).__name__
