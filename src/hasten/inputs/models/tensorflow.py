"""TensorFlow's SavedModel folders and TFLite files, by tf2onnx in a process of its own (extra `keras`)."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError, told, visible
from hasten.inputs.data.made_up import make_up, plans
from hasten.inputs.models import onnx
from hasten.inputs.models.keras import OPSET, TOLERANCE, quiet, rename
from hasten.inputs.models.tabular.base import check_survives

SAVED = ("saved_model.pb", "saved_model.pbtxt")
_PREFIXES = ("serving_default_", "serving_default:")
_FAULTS = ("Error", "not supported", "Unsupported", "unsupported")
_RUN = """
import json, sys
import numpy as np
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    import tensorflow
    Interpreter = tensorflow.lite.Interpreter
asked = json.load(sys.stdin)
try:
    interpreter = Interpreter(sys.argv[1])
    details = interpreter.get_input_details()
    if asked["answers"]:
        with open(asked["file"], "rb") as file:
            given = {name: np.load(file) for name in asked["inputs"]}
        for entry in details:
            interpreter.resize_tensor_input(entry["index"], given[entry["name"]].shape)
        interpreter.allocate_tensors()
        for entry in details:
            interpreter.set_tensor(entry["index"], given[entry["name"]])
        interpreter.invoke()
        index = {entry["name"]: entry["index"] for entry in interpreter.get_output_details()}
        with open(asked["file"], "wb") as file:
            for name in asked["answers"]:
                np.save(file, interpreter.get_tensor(index[name]), allow_pickle=False)
    rows = [(one["name"], np.dtype(one["dtype"]).name, one["shape_signature"].tolist()) for one in details]
    said = {"inputs": rows}
except Exception as error:
    said = {"refused": f"{type(error).__name__}: {error}"}
sys.stdout.write("\\0" + json.dumps(said))
"""
"""Program that opens a TFLite file in LiteRT, or in TensorFlow where that is missing, and answers a request.

Prints, after a zero, its inputs, or why it can't. LiteRT checks neither the settings of custom operators nor all that
its operators are given, so it may crash.
"""


@dataclass(frozen=True)
class TensorFlowModel:
    """A model of TensorFlow on disk.

    Attributes:
        path: Folder of a SavedModel, or a .tflite file.
        kind: Noun for it, for people.
        trust_code: Whether a SavedModel may run, which can read and write files.
    """

    path: Path
    kind: Literal["SavedModel", "TFLite"]
    trust_code: bool = False

    def load(
        self, sample: Callable[[Sequence[str]], Mapping[str, Array]] | None, workdir: Path
    ) -> Model:
        """Convert it to ONNX, opset 18, and check that the answers stay the same.

        Args:
            sample: Function from the model's input names to one sample, without an axis for samples;
                None for a made-up one.
            workdir: Folder to write the ONNX file to.

        Raises:
            InputError: the model is a SavedModel that isn't trusted, tf2onnx isn't installed or fails, the
                sample doesn't fit, or the converted file gives other answers.
        """
        if self.kind == "SavedModel" and not self.trust_code:
            raise InputError(
                f"{self.path} is a SavedModel, a program that runs while it is converted and can "
                "read and write files: if you trust it, add trust_code=True"
            )
        path = workdir / "model.onnx"
        self._convert(path)
        proto = onnx.read(path)
        own = [value.name for value in proto.graph.input], [v.name for v in proto.graph.output]
        rename(path, *(_plain(names) for names in own))
        model = onnx.load(path)
        if sample is not None:
            given = dict(sample([spec.name for spec in model.inputs]))
            if len(given) == len(model.inputs) == 1:  # the only input needs no name
                given = dict.fromkeys([model.inputs[0].name], *given.values())
        else:
            made = make_up(model.inputs, plans(model.inputs)[0], {}, 3, 0)
            given = {name: array[0] for name, array in made.items()}
        self._check(model, own, given)
        return model

    def stated_inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs that a TFLite file states; empty for a SavedModel, which would have to run.

        Raises:
            InputError: the file can't be read.
        """
        if self.kind == "SavedModel":
            return ()
        if not any(map(importlib.util.find_spec, ("ai_edge_litert", "tensorflow"))):
            return ()
        found = self._apart({"answers": []})
        names = _plain([name for name, *_ in found])
        return tuple(
            TensorSpec(
                name,
                dtype,
                tuple(
                    size if size >= 0 else "batch" if axis == 0 else f"axis_{axis}"
                    for axis, size in enumerate(sizes)
                ),
            )
            for name, (_, dtype, sizes) in zip(names, found, strict=True)
        )

    def _apart(self, asked: dict[str, Any]) -> list[Any]:
        """Run `_RUN`, and return the names, types and sizes of the file's inputs.

        Raises:
            InputError: the file can't be opened or answer, or the program crashes.
        """
        printed = check_survives(self.path, "LiteRT", _RUN, content=json.dumps(asked).encode())
        *_, last = printed.partition("\0")  # before it, there may be warnings
        said: dict[str, Any] = json.loads(last) if last else {"refused": "LiteRT can't be imported"}
        if "refused" in said:
            why = (said["refused"].splitlines() or [""])[0]
            raise InputError(f"{self.path} can't be read: {visible(why)[:300]}")
        found: list[Any] = said["inputs"]
        return found

    def _convert(self, path: Path) -> None:
        if importlib.util.find_spec("tf2onnx") is None:
            raise missing_extra(f"{self.path}, a {self.kind} model,", "keras")
        flag = "--saved-model" if self.kind == "SavedModel" else "--tflite"
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "tf2onnx.convert", flag, str(self.path)),
                *("--output", str(path), "--opset", str(OPSET)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not path.exists():
            raise InputError(
                f"tf2onnx can't convert {self.path}: {_reason(done)}; save the model "
                "without that operation, or export the model to ONNX yourself"
            )

    def _check(
        self, model: Model, own: tuple[Sequence[str], Sequence[str]], given: Mapping[str, Array]
    ) -> None:
        """Check the converted file's answers against TensorFlow's."""
        import onnxruntime

        settled = model.settled_by(given)
        feed = {
            spec.name: given[spec.name].reshape([int(size) for size in spec.shape])
            for spec in settled.request
        }
        try:
            with quiet():
                wanted = self._answers(dict(zip(own[0], feed.values(), strict=True)), own[1])
            got = onnxruntime.InferenceSession(str(model.path)).run(None, feed)
        except InputError:
            raise
        except Exception as error:  # either runtime raises exceptions of its own
            raise InputError(
                f"{self.path} can't be compared with its ONNX file: {told(error)}"
            ) from error
        for spec, mine, other in zip(model.outputs, wanted, got, strict=True):
            largest = np.abs(mine.astype(np.float64)).max(initial=0)
            same = mine.shape == other.shape
            off = np.abs(mine.astype(np.float64) - other).max(initial=0) if same else np.inf
            if not off <= TOLERANCE * largest:
                raise InputError(
                    f"the converted model's output {spec.name!r} is off by {off:.3g} from TensorFlow's "
                    f"(largest magnitude {largest:.3g})"
                )

    def _answers(self, feed: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Return what TensorFlow answers, in the order of the converted file's outputs."""
        if self.kind == "SavedModel":
            import tensorflow

            signature = tensorflow.saved_model.load(str(self.path)).signatures["serving_default"]
            keys = list(signature.structured_input_signature[1])
            plain = dict(zip(_plain(list(feed)), feed.values(), strict=True))
            tensors = {key: tensorflow.constant(plain[key]) for key in keys}
            answers: dict[str, Any] = signature(**tensors)
            return [answers[name].numpy() for name in _plain(outputs)]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "arrays"
            with place.open("wb") as file:
                for array in feed.values():
                    np.save(file, array, allow_pickle=False)
            self._apart({"inputs": [*feed], "answers": [*outputs], "file": str(place)})
            with place.open("rb") as file:
                return [np.load(file) for _ in outputs]


def read(path: Path, *, trust_code: bool = False) -> TensorFlowModel | None:
    """Return the model at a path, without loading it; None for anything else."""
    if path.is_dir():
        saved = any((path / name).is_file() for name in SAVED)
        return TensorFlowModel(path, "SavedModel", trust_code) if saved else None
    return TensorFlowModel(path, "TFLite") if path.suffix == ".tflite" else None


def _plain(names: Sequence[str]) -> list[str]:
    """Return names without what TensorFlow puts around them, where they stay apart."""
    plain = []
    for name in names:
        own = name.partition(":")[0] if name.endswith((":0", ":1", ":2")) else name
        for prefix in _PREFIXES:
            own = own.removeprefix(prefix)
        plain.append(own)
    return plain if len(set(plain)) == len(plain) else list(names)


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the line of tf2onnx's output that says what failed, or the signal that ended it."""
    if ended.returncode < 0:
        return f"it ended with {signal.Signals(-ended.returncode).name}"
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    found = [line for line in lines if any(word in line for word in _FAULTS)]
    return (found or lines or ["it says nothing"])[-1][:300]
