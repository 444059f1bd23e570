"""Folders of sentence-transformers: what `modules.json` puts after the encoder becomes part of the model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import InputError, told, visible
from hasten.inputs.models import onnx
from hasten.inputs.pipeline.text import Tokenize
from hasten.inputs.pipeline.written import read_json

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

MODULES = "modules.json"
OUTPUT = "sentence_embedding"
"""Name of the model's output, as sentence-transformers calls it."""
_SETTINGS, _LIMITS = "config.json", "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_STATES = ("last_hidden_state", "token_embeddings")
_MASK = "attention_mask"
_MODES = ("cls", "max", "mean", "mean_sqrt_len")
"""Known poolings, in the order in which sentence-transformers joins several."""
_WRITTEN = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"} | {
    "mean_sqrt_len": "mean_sqrt_len_tokens"
}
_OF_DENSE = ("linear.weight", "linear.bias")
_ACTIVATIONS = {"Identity": "Identity", "ReLU": "Relu", "Sigmoid": "Sigmoid", "Tanh": "Tanh"}
_LEAST_COUNT, _LEAST_LENGTH, _LOWEST = 1e-9, 1e-12, -1e9
"""Constants of sentence-transformers and of torch's normalize."""


class _Step(Protocol):
    def __call__(self, graph: _Graph, value: str) -> str: ...


@dataclass(frozen=True)
class Pooling:
    """One vector of the vectors of all tokens.

    Attributes:
        modes: Ways of pooling, whose vectors are joined.
    """

    modes: tuple[str, ...]

    def __call__(self, graph: _Graph, value: str) -> str:
        """Add the nodes, and return the name of what they make."""
        found = [getattr(self, f"_{mode}")(graph, value) for mode in self.modes]
        graph.width *= len(found)
        return found[0] if len(found) == 1 else graph.node("Concat", *found, axis=1)

    def _cls(self, graph: _Graph, value: str) -> str:
        return graph.node("Gather", value, graph.constant(np.array(0)), axis=1)

    def _max(self, graph: _Graph, value: str) -> str:
        lowest = graph.constant(np.array(_LOWEST, np.float32))
        real = graph.node("Cast", graph.mask(), to=9)
        return graph.reduced("ReduceMax", graph.node("Where", real, value, lowest))

    def _mean(self, graph: _Graph, value: str) -> str:
        return graph.node("Div", self._sum(graph, value), self._count(graph))

    def _mean_sqrt_len(self, graph: _Graph, value: str) -> str:
        root = graph.node("Sqrt", self._count(graph))
        return graph.node("Div", self._sum(graph, value), root)

    def _sum(self, graph: _Graph, value: str) -> str:
        return graph.reduced("ReduceSum", graph.node("Mul", value, graph.mask()))

    def _count(self, graph: _Graph) -> str:
        least = graph.constant(np.array(_LEAST_COUNT, np.float32))
        return graph.node("Max", graph.reduced("ReduceSum", graph.mask()), least)


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with an activation.

    Attributes:
        folder: Folder with its weights.
        activation: ONNX operator of the activation.
    """

    folder: Path
    activation: str

    def __call__(self, graph: _Graph, value: str) -> str:
        """Add the nodes, and return the name of what they make.

        Raises:
            InputError: the weights are missing or have other names.
        """
        weights = self._weights()
        if "linear.weight" not in weights:
            raise InputError(f"{self.folder} has no weights linear.weight")
        shape = weights["linear.weight"].shape
        if len(shape) != 2 or shape[1] != (graph.width or shape[1]):
            raise InputError(
                f"{self.folder} has weights of shape {list(shape)} for vectors of {graph.width} numbers"
            )
        graph.width = len(weights["linear.weight"])
        given = [weights[name] for name in _OF_DENSE if name in weights]
        names = [graph.constant(one.astype(np.float32)) for one in given]
        product = graph.node("Gemm", value, *names, transB=1)
        return graph.node(self.activation, product)

    def _weights(self) -> dict[str, Array]:
        safe, pickled = self.folder / "model.safetensors", self.folder / "pytorch_model.bin"
        if safe.is_file():
            try:
                from safetensors.numpy import load_file

                return dict(load_file(safe))
            except ImportError as error:
                raise missing_extra(f"{safe}, a file of weights,", "torch") from error
            except Exception as error:  # safetensors' own, of a damaged file
                raise InputError(f"{safe} can't be read: {told(error)}") from error
        from hasten.inputs.models.named import read_weights

        found = read_weights(pickled)
        return {name: found[name].float().numpy() for name in _OF_DENSE if name in found}


@dataclass(frozen=True)
class Normalize:
    """Scaling to the length 1."""

    def __call__(self, graph: _Graph, value: str) -> str:
        """Add the nodes, and return the name of what they make."""
        least = graph.constant(np.array(_LEAST_LENGTH, np.float32))
        length = graph.reduced("ReduceL2", value, keepdims=1)
        return graph.node("Div", value, graph.node("Max", length, least))


@dataclass(frozen=True)
class SentenceModel:
    """Content of `modules.json`.

    Attributes:
        folder: Folder with `modules.json`.
        encoder: Folder of the encoder, often the same one.
        steps: Steps after the encoder.
        folders: Folder of each module.
    """

    folder: Path
    encoder: Path
    steps: tuple[_Step, ...]
    folders: tuple[Path, ...]

    def limited(self, tokenizer: Tokenize) -> Tokenize:
        """Return a tokenizer that cuts texts where sentence-transformers does."""
        longest = self._limits.get("max_seq_length")
        if type(longest) is not int or longest < 1:
            return tokenizer
        return replace(tokenizer, length=min(longest, tokenizer.length or longest))

    @property
    def note(self) -> str:
        """Note on the folder for people; empty for nothing."""
        return "; ".join(filter(None, (self._said_of_prompts(), self._said_of_letters())))

    def _said_of_prompts(self) -> str:
        path = self.folder / _PROMPTS
        name = None
        with contextlib.suppress(InputError):  # what can't be read names no prompt
            name = _object(path).get("default_prompt_name") if path.is_file() else None
        if name is None:
            return ""
        return (
            f"{path} puts the prompt {name!r:.100} before each text, which the bundle doesn't do: give texts "
            "with their prompt"
        )

    def _said_of_letters(self) -> str:
        text = self.encoder / "tokenizer.json"
        if not self._limits.get("do_lower_case") or not text.is_file():
            return ""
        with contextlib.suppress(InputError):  # what can't be read is said where it is used
            if _lowers(_object(text).get("normalizer")):
                return ""
        return (
            f"{self.encoder / _LIMITS} turns texts to lower case, which the bundle's tokenizer "
            "doesn't do: give texts in lower case"
        )

    @property
    def _limits(self) -> Mapping[str, Any]:
        path = self.encoder / _LIMITS
        return _object(path) if path.is_file() else {}

    def completed(self, model: Model, workdir: Path) -> Model:
        """Put the steps after an encoder, so that its only output is the vector of a sentence.

        A file that has this output already stays as it is.

        Args:
            model: The encoder's ONNX file.
            workdir: Folder to write the new file to.

        Raises:
            InputError: the file lacks what the steps read.
        """
        if any(spec.name == OUTPUT for spec in model.outputs):
            return model
        proto = onnx.read(model.path)
        states = next((o for o in proto.graph.output if o.name in _STATES), None)
        if states is None:
            shown = ", ".join(spec.name for spec in model.outputs)
            raise InputError(
                f"{self.folder / MODULES} pools the output {_STATES[0]}, but the encoder gives {shown}"
            )
        own = (one for one in proto.opset_import if one.domain in ("", "ai.onnx"))
        if (opset := next(own, None)) is None:
            raise InputError(
                f"{model.path} doesn't say in which version it has ONNX's own operators, which the steps of "
                f"{self.folder / MODULES} need: export it again"
            )
        dims = states.type.tensor_type.shape.dim
        width = dims[-1].dim_value if dims else 0
        graph = _Graph(proto, opset.version, width, f"{self.folder / MODULES} pools by {_MASK}")
        value = graph.node("Cast", states.name, to=1)
        for step in self.steps:
            value = step(graph, value)
        graph.finish(value, states)
        return onnx.write_changed(proto, model, workdir / "sentence.onnx")


class _Graph:
    """Graph of an encoder, to which nodes are added.

    Attributes:
        width: Numbers of a vector; 0 where the file doesn't say it.
    """

    def __init__(self, proto: ModelProto, opset: int, width: int, reads_mask: str) -> None:
        import onnx

        self._onnx, self._graph, self._opset, self._reads_mask = (
            onnx,
            proto.graph,
            opset,
            reads_mask,
        )
        self._mask, self._number, self.width = "", 0, width

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, and return its output."""
        name = self._name(operator)
        made = self._onnx.helper.make_node(operator, inputs, [name], name, **attributes)
        self._graph.node.append(made)
        return name

    def constant(self, value: Array) -> str:
        """Add a constant, and return its name."""
        name = self._name("constant")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def reduced(self, operator: str, value: str, *, keepdims: int = 0) -> str:
        """Reduce axis 1, in the form of the file's operator set."""
        if self._opset >= (13 if operator == "ReduceSum" else 18):
            return self.node(operator, value, self.constant(np.array([1])), keepdims=keepdims)
        return self.node(operator, value, axes=[1], keepdims=keepdims)

    def mask(self) -> str:
        """Return the mask as floats, 1 for a token and 0 for padding, with an axis for the vectors' numbers.

        Raises:
            InputError: the encoder takes no mask.
        """
        if not any(value.name == _MASK for value in self._graph.input):
            raise InputError(
                f"{self._reads_mask}, which the encoder doesn't take: give it in the data"
            )
        if not self._mask:
            number = self.node("Cast", _MASK, to=1)
            if self._opset >= 13:
                self._mask = self.node("Unsqueeze", number, self.constant(np.array([2])))
            else:
                self._mask = self.node("Unsqueeze", number, axes=[2])
        return self._mask

    def finish(self, value: str, states: Any) -> None:
        """Make a value the only output, and leave out what it doesn't need."""
        self._graph.node.append(
            self._onnx.helper.make_node("Identity", [value], [OUTPUT], self._name("Identity"))
        )
        dims = states.type.tensor_type.shape.dim
        batch = (dims[0].dim_value or dims[0].dim_param or "batch") if dims else "batch"
        made = self._onnx.helper.make_tensor_value_info(OUTPUT, 1, [batch, self.width or None])
        del self._graph.output[:]
        self._graph.output.append(made)
        needed, kept = {OUTPUT}, []
        for node in reversed(self._graph.node):
            if needed.intersection(node.output):
                needed.update(_read_by(node))
                kept.append(node)
        del self._graph.node[:]
        self._graph.node.extend(reversed(kept))
        weights = [tensor for tensor in self._graph.initializer if tensor.name in needed]
        del self._graph.initializer[:]
        self._graph.initializer.extend(weights)

    def _name(self, what: str) -> str:
        self._number += 1
        return f"hasten/pooling/{what}_{self._number}"


def _read_by(node: Any) -> Iterator[str]:
    """Yield what a node reads, in its inner graphs too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _read_inside(inner)


def _read_inside(graph: GraphProto) -> Iterator[str]:
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from _read_by(node)


def read(folder: Path) -> SentenceModel | None:
    """Read the modules of a folder; None for a folder without any.

    Raises:
        InputError: a module isn't known here; the message names it.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    stated = read_json(path)
    if not isinstance(stated, list) or not stated or not all(isinstance(m, dict) for m in stated):
        raise InputError(f"{path} isn't a list of modules")
    kinds = [str(module.get("type", "")) for module in stated]
    if not re.fullmatch(r"sentence_transformers[.](.*[.])?Transformer", kinds[0]):
        raise _unknown(path, kinds[0])
    steps = [_step(path, module) for module in stated[1:]]
    if not steps or not isinstance(steps[0], Pooling):
        raise InputError(f"{path} has no Pooling after the encoder, which makes one vector")
    folders = tuple(_inside(path, module) for module in stated)
    return SentenceModel(folder, folders[0], tuple(steps), folders)


def _step(path: Path, module: Mapping[str, Any]) -> _Step:
    """Return what a module does."""
    whole = str(module.get("type", ""))
    kind, folder = whole.rpartition(".")[2], _inside(path, module)
    if whole.startswith("sentence_transformers.") and kind == "Normalize":
        return Normalize()
    if whole.startswith("sentence_transformers.") and kind == "Pooling":
        return Pooling(_modes(folder / _SETTINGS))
    if whole.startswith("sentence_transformers.") and kind == "Dense":
        stated = _object(folder / _SETTINGS)
        name = str(stated.get("activation_function", "Tanh")).rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise InputError(
                f"{folder / _SETTINGS} has the activation {visible(name)}; the supported ones are "
                f"{', '.join(_ACTIVATIONS)}"
            )
        return Dense(folder, _ACTIVATIONS[name])
    raise _unknown(path, whole)


def _unknown(path: Path, kind: str) -> InputError:
    return InputError(
        f"{path} has the module {visible(kind) or 'without a type'}; the supported ones are Transformer, "
        "Pooling, Dense and Normalize: build the whole model in a my.py and give my.py:model"
    )


def _modes(path: Path) -> tuple[str, ...]:
    """Return the ways of pooling that a module's settings name."""
    stated = _object(path)
    if (named := stated.get("pooling_mode")) is not None:
        asked = {named} if isinstance(named, str) else {*map(str, named)}
    else:
        begin = "pooling_mode_"
        asked = {
            key.removeprefix(begin) for key, on in stated.items() if key.startswith(begin) and on
        }
        short = {written: mode for mode, written in _WRITTEN.items()}
        asked = {short.get(mode, mode) for mode in asked}
    if unknown := sorted(asked.difference(_MODES)):
        raise InputError(
            f"{path} pools by {visible(', '.join(unknown))}; the supported ways are {', '.join(_MODES)}: "
            "build the whole model in a my.py and give my.py:model"
        )
    if not asked:
        raise InputError(f"{path} names no way of pooling")
    return tuple(mode for mode in _MODES if mode in asked)


def _inside(path: Path, module: Mapping[str, Any]) -> Path:
    """Return the folder of a module, which must lie in the model's folder."""
    relative = PurePosixPath(str(module.get("path", "")))
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{path} names the folder {str(relative)!r}, which isn't in {path.parent}")
    folder = path.parent / relative
    try:
        folder.is_dir()
    except OSError as error:
        raise InputError(
            f"{path} names the folder {str(relative)!r:.100}, which can't be read: {error.strerror}"
        ) from error
    return folder


def _lowers(normalizer: Any) -> bool:
    """Whether a tokenizer's normalizer turns texts to lower case."""
    left = [normalizer]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            if one.get("type") == "Lowercase" or one.get("lowercase") is True:
                return True
            left.append(one.get("normalizers"))
    return False


def _object(path: Path) -> Mapping[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} contains no JSON object")
    return found
