"""TensorFlow's SavedModel folders and TFLite files, by tf2onnx and LiteRT in processes of their own (extra `keras`)."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array, TensorSpec
from hasten.core.workers import CrashedError, KilledError, Worker
from hasten.errors import CandidateError, InputError, told
from hasten.inputs.data.made_up import make_up, plans
from hasten.inputs.models import apart, onnx
from hasten.inputs.models.apart import Stated, stated_of
from hasten.inputs.models.keras import OPSET, TOLERANCE, quiet, rename

SAVED = ("saved_model.pb", "saved_model.pbtxt")
_PREFIXES = ("serving_default_", "serving_default:")
_FAULTS = ("Error", "not supported", "Unsupported", "unsupported")


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
        return self._stated.inputs

    def stated_outputs(self) -> tuple[TensorSpec, ...]:
        """Return the outputs that a TFLite file states; empty for a SavedModel, which would have to run.

        Raises:
            InputError: the file can't be read.
        """
        return self._stated.outputs

    @cached_property
    def _stated(self) -> Stated:
        """Inputs and outputs that a TFLite file states; none of a SavedModel, or where no interpreter is installed."""
        readers = ("ai_edge_litert", "tensorflow")
        if self.kind == "SavedModel" or not any(map(importlib.util.find_spec, readers)):
            return Stated((), ())
        with apart.started(self.path, "litert") as (worker, folder):
            found = self._answered(worker, given=[], wanted=[], arrays=folder)
        inputs, outputs = (
            tuple(replace(spec, name=name) for spec, name in zip(own, names, strict=True))
            for own in (found.inputs, found.outputs)
            for names in (_plain([spec.name for spec in own]),)
        )
        return replace(found, inputs=inputs, outputs=outputs)

    def _answered(self, worker: Worker, **request: Any) -> Stated:
        """Ask the process to open the TFLite file, and to answer a request if there is one.

        Raises:
            InputError: the file can't be opened or answer, or LiteRT crashes, or takes too much memory or time.
        """
        try:
            record = worker.ask(
                "answer_tflite", limit_s=apart.LIMIT_S, path=self.path.absolute(), **request
            )
        except InputError as why:
            raise InputError(f"{self.path} can't be read: {why}") from why
        except CrashedError as error:
            raise InputError(
                f"{self.path} is damaged: LiteRT crashed ({error.how}) while it read the file"
            ) from error
        except KilledError as error:
            raise InputError(
                f"{self.path} can't be read: LiteRT was killed, probably for lack of memory"
            ) from error
        except CandidateError as error:
            raise InputError(f"{self.path} can't be used: {error}") from error
        stated = stated_of(record)
        if stated is None:
            raise InputError(
                f"{self.path} can't be used: LiteRT states inputs or outputs that no model has"
            )
        return stated

    def _convert(self, path: Path) -> None:
        if importlib.util.find_spec("tf2onnx") is None:
            raise missing_extra(f"{self.path}, a {self.kind} model,", "keras")
        flag = "--saved-model" if self.kind == "SavedModel" else "--tflite"
        try:
            with apart.started(self.path, "tf2onnx") as (worker, _):
                done = worker.ask(
                    "convert_tensorflow",
                    limit_s=apart.LIMIT_S,
                    flag=flag,
                    path=self.path.absolute(),
                    opset=OPSET,
                    out=path.absolute(),
                )
        except CandidateError as error:
            raise InputError(
                f"tf2onnx can't convert {self.path}: {error}; export the model to ONNX yourself"
            ) from error
        if done["code"] or not path.exists():
            raise InputError(
                f"tf2onnx can't convert {self.path}: {_reason(**done)}; save the model "
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
        with apart.started(self.path, "litert") as (worker, folder):
            arrays = folder / "arrays"
            with arrays.open("wb") as file:
                for array in feed.values():
                    np.save(file, array, allow_pickle=False)
            self._answered(worker, given=[*feed], wanted=[*outputs], arrays=arrays)
            with arrays.open("rb") as file:
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


def _reason(code: int, said: str) -> str:
    """Return the line of tf2onnx's output that says what failed, or the signal that ended it."""
    if code < 0:
        return f"it ended with {signal.Signals(-code).name}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = [line for line in lines if any(word in line for word in _FAULTS)]
    return (found or lines or ["it says nothing"])[-1][:300]
