"""Engine for Apple's Core ML: a package for its devices, converted on any host."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.silence import silenced
from hasten.core.target import Target
from hasten.core.telemetry import import_quietly
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import listed
from hasten.engines.artifacts import batch_sizes, place, settle, settled_request
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import CheckedArtifact, content
from hasten.engines.estimates import Estimate
from hasten.engines.failures import failed
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError, InputError, NotCovered

_CLOSE = 1e-3
"""Largest deviation of the float32 program from the ONNX file, as a share of the largest answer."""
_NARROWED = {"int64": "int32", "uint64": "int32", "float64": "float32", "bool": "float32"}
"""Types that Core ML can't take or return, and the types that the converter replaces them by."""


@dataclass(frozen=True)
class CoreMl(Engine):
    """ML program (.mlpackage) for iOS 17, macOS 14 and later, on all of a chip's units.

    Core ML runs it on macOS. On other hosts, torch computes the package's own operators and weights
    one by one (see `program.py`). So the conversion is checked on any host, against ONNX Runtime,
    in float32.

    Attributes:
        precision: Precision of the computation; the Neural Engine takes float16 only.
        weights: Storage of the weights: "int8", with one scale per output channel, takes half the
            space of float16 and is multiplied out before use.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    families: ClassVar[frozenset[str]] = frozenset({"coreml"})
    distributions: ClassVar[tuple[str, ...]] = ("coremltools", "onnx2coreml", "torch")
    extra: ClassVar[str] = "edge"
    settles: ClassVar[bool] = True
    float_only: ClassVar[bool] = True
    faithful: ClassVar[bool] = False

    precision: Literal["f32", "f16"] = "f32"
    weights: Literal["float", "int8"] = "float"

    @property
    def exact(self) -> bool:
        """Whether the program computes in float32 with the model's own weights."""
        return self.precision == "f32" and self.weights == "float"

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield float32; float16, for the Neural Engine; and float16 with weights in int8."""
        yield cls()
        yield cls("f16")
        yield cls("f16", "int8")

    @classmethod
    def version(cls) -> str:
        """Return the version of Core ML Tools.

        Raises:
            InputError: it or another library that hasten needs with it isn't installed.
        """
        try:
            with silenced():
                import_quietly("torch")
                import_quietly("onnx2coreml")
                return str(import_quietly("coremltools").__version__)
        except ImportError as error:
            raise InputError(
                f"Core ML Tools aren't installed ({error}): pip install 'hasten[edge]'"
            ) from error

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Convert the model for the shapes of its request, and check the package against the model.

        Raises:
            CandidateError: the model can't be converted (the message names the operator and node),
                a shape is open, or the package answers otherwise than the model.
        """
        settled = settled_request(model, "Core ML's converter")
        package = workdir / f"{model.path.stem}.mlpackage"
        with tempfile.TemporaryDirectory(prefix="hasten-coreml-") as folder:
            source = place(model, Path(folder))
            settle(source.path, settled, "Core ML's converter can't read the model")
            plain = replace(source, inputs=settled, request=settled)
            exact = Path(folder) / "exact.mlpackage"
            with silenced():
                _save(_converted(source.path, "f32"), exact)
                sizes = _check(exact, plain, target)
                if self.exact:
                    shutil.move(exact, package)
                else:
                    converted = _converted(source.path, self.precision)
                    _save(_in_int8(converted) if self.weights == "int8" else converted, package)
        manifest = package / "Manifest.json"
        files = sorted(f for f in package.rglob("*") if f.is_file() and f != manifest)
        outputs = tuple(replace(spec, shape=sizes[spec.name]) for spec in model.outputs)
        return Artifact(manifest, settled, outputs, model.request, tuple(files))

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the package: on macOS by Core ML, elsewhere to compute its operators one by one.

        Raises:
            CandidateError: the package can't be loaded, or Core ML is asked for on another system.
        """
        at_home = platform.system() == "Darwin"
        if target.kind == "attached" and not at_home:
            raise CandidateError(f"Core ML runs only on macOS; this is {target.system}")
        with _package(artifact) as package:
            try:
                with silenced():
                    run = _predictor(package) if at_home else _interpreter(package)
            except CandidateError:
                raise
            except Exception as error:
                raise failed("Core ML Tools can't load the model", error) from error
            session = CoreMlSession(artifact, run, "Core ML" if at_home else "torch")
            try:
                yield session
            finally:
                session.close()

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Return only the package's size, since Core ML compiles it on the device."""
        return Estimate("none", figures={"package_size_bytes": float(artifact.size_bytes)})

    def words(self) -> str:
        return listed(
            "" if self.precision == "f32" else self.precision,
            "int8 weights" if self.weights == "int8" else "",
            "Core ML",
        )


def _converted(path: Path, precision: Literal["f32", "f16"]) -> Any:
    """Convert an ONNX file with settled shapes.

    Raises:
        CandidateError: it can't be converted; the message names the operator and node.
    """
    import onnx2coreml
    from onnx2coreml.errors import ConversionError, UnsupportedOpError

    try:
        return onnx2coreml.convert(
            path,
            minimum_deployment_target="iOS17",
            compute_precision="fp32" if precision == "f32" else "fp16",
        )
    except UnsupportedOpError as error:
        operator, nodes = next(iter(error.missing.items()))
        raise NotCovered(
            f"Core ML's converter can't take the operator {operator} (node {nodes[0]!r})"
        ) from error
    except ConversionError as error:
        what = (
            f"Core ML's converter can't take the operator {error.op_key} (node {error.node_name!r})"
        )
        raise failed(what, Exception(str(error.cause))) from error
    except Exception as error:
        raise failed("Core ML's converter can't take the model", error, path) from error


def _in_int8(model: Any) -> Any:
    """Store a model's weights in int8.

    Raises:
        CandidateError: every weight is too small to be stored in int8, or Core ML Tools failed.
    """
    from coremltools.optimize import coreml as optimize

    config = optimize.OptimizationConfig(
        global_config=optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
    )
    try:
        smaller = optimize.linear_quantize_weights(model, config)
    except Exception as error:
        raise failed("Core ML Tools can't store the weights in int8", error) from error
    blocks = smaller.get_spec().mlProgram.functions["main"].block_specializations
    if not any(op.type.startswith("constexpr") for b in blocks.values() for op in b.operations):
        raise CandidateError("nothing to store in int8: no weight has more than 2,048 elements")
    return smaller


def _save(model: Any, package: Path) -> None:
    try:
        model.save(str(package))
    except OSError as error:
        raise InputError(f"can't write {package}: {error.strerror or error}") from error


def _check(package: Path, artifact: Artifact, target: Target) -> dict[str, tuple[int, ...]]:
    """Compare a float32 package with its ONNX file over a request; return the outputs' shapes.

    Raises:
        CandidateError: their answers differ, or one of them can't answer.
    """
    rng = np.random.default_rng(0)
    request = {
        spec.name: rng.standard_normal(spec.sizes).astype(spec.dtype)
        if spec.dtype.startswith("float")
        else np.zeros(spec.sizes, spec.dtype)
        for spec in artifact.inputs
    }
    with OnnxRuntime().open(artifact, target) as session:
        expected = session.run(request)
    try:
        got = CoreMlSession(artifact, _interpreter(package), "torch").run(request)
    except CandidateError:
        raise
    except Exception as error:
        raise failed("the Core ML program can't be computed here", error) from error
    for name, right in expected.items():
        largest = float(np.abs(right[np.isfinite(right)]).max(initial=0))
        close = got[name].shape == right.shape and np.allclose(
            got[name], right, rtol=0, atol=_CLOSE * largest, equal_nan=True
        )
        if not close:
            raise CandidateError(
                f"Core ML's converter changed the model: {name!r} differs from ONNX Runtime's "
                "answer"
            )
    return {name: array.shape for name, array in expected.items()}


Run = Any
"""Program whose `run` maps inputs to outputs by name; it lists both names in order."""


def _interpreter(package: Path) -> Run:
    from hasten.engines.coreml.program import CoreMlProgram

    return CoreMlProgram(package)


class _Predictor:
    """Core ML itself, on macOS."""

    def __init__(self, package: Path) -> None:
        import coremltools as ct

        self._model: Any = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.ALL)
        description = self._model.get_spec().description
        self.inputs = [feature.name for feature in description.input]
        self.outputs = [feature.name for feature in description.output]

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request."""
        return {name: np.asarray(value) for name, value in self._model.predict(inputs).items()}


def _predictor(package: Path) -> Run:
    return _Predictor(package)


@contextmanager
def _package(artifact: Artifact) -> Iterator[Path]:
    """Yield the package under a name that Core ML accepts.

    It is copied if its folder has another name, or if a bundle brought it, whose bytes are checked.
    """
    folder = artifact.path.parent
    places = _items(artifact)
    checked = isinstance(artifact, CheckedArtifact) and artifact.digests
    if folder.suffix == ".mlpackage" and not checked:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="hasten-coreml-") as beside:
        package = Path(beside) / "model.mlpackage"
        try:
            for file in (artifact.path, *artifact.files):
                goal = package / file.relative_to(folder)
                goal.parent.mkdir(parents=True, exist_ok=True)
                goal.write_bytes(content(artifact, file))
            for place in places:  # of a model without weights, a folder is empty
                if not (package / place).exists():
                    (package / place).mkdir(parents=True)
        except OSError as error:
            raise CandidateError(f"can't copy {folder}: {error.strerror or error}") from error
        yield package


def _items(artifact: Artifact) -> list[Path]:
    """Return the parts that a package's manifest names, all of them within the package.

    Core ML Tools join such a path to the package's folder without a look at it, so another model's
    weights could be read.

    Raises:
        CandidateError: it names another file, or it is damaged.
    """
    name = artifact.path.name
    found = []
    try:
        items = json.loads(content(artifact, artifact.path))["itemInfoEntries"].values()
        paths = [str(item["path"]) for item in items]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CandidateError(f"{name} of the Core ML package is damaged: {error!r:.200}") from error
    for path in paths:
        place = Path("Data") / path
        if place.is_absolute() or ".." in place.parts or "\0" in path:
            raise CandidateError(
                f"{name} of the Core ML package names {path!r:.200}, which isn't within it"
            )
        found.append(place)
    return found


class CoreMlSession(Session):
    """Session of a package, answered by Core ML or, on other systems, by torch."""

    def __init__(self, artifact: Artifact, run: Run, by: str) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._run, self._by = run, by

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: the runtime failed, or an input is missing or has another shape.
        """
        if self._run is None:
            raise CandidateError("the session is closed: open the artifact again")
        if missing := [spec.name for spec in self.inputs if spec.name not in inputs]:
            raise CandidateError(f"Core ML didn't get the input {missing[0]!r}")
        try:
            given = {
                name: _narrowed(inputs[spec.name], spec)
                for name, spec in zip(self._run.inputs, self.inputs, strict=True)
            }
            answers = self._run.run(given)
            return {
                spec.name: np.array(answers[name], spec.dtype).reshape(spec.sizes)
                if spec.static
                else np.array(answers[name], spec.dtype)
                for name, spec in zip(self._run.outputs, self.outputs, strict=True)
            }
        except CandidateError:
            raise
        except Exception as error:
            raise failed("Core ML failed", error) from error

    def properties(self) -> Mapping[str, str]:
        """Name of the library that computes the answers."""
        return {"answered_by": self._by}

    def close(self) -> None:
        """Free the program."""
        self._run = None


def _narrowed(array: Array, spec: TensorSpec) -> Array:
    """Return an input in the element type that Core ML takes."""
    if tuple(array.shape) != spec.sizes:
        got = ", ".join(map(str, array.shape))
        raise CandidateError(f"Core ML takes {spec}; got [{got}]")
    return array.astype(_NARROWED.get(spec.dtype, spec.dtype))
