"""Engine for LiteRT on the CPU, with the kernels of XNNPACK."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.telemetry import import_quietly
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.versions import installed_version
from hasten.core.words import counted, listed
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import private
from hasten.engines.failures import failed
from hasten.engines.litert.tflite.quiet import quiet
from hasten.engines.missing_numbers import check_nan
from hasten.errors import CandidateError

_ALONE = 1e-3
"""Largest deviation between a request alone and in a batch, as a share of the largest answer."""


@dataclass(frozen=True)
class LiteRt(Engine):
    """LiteRT's interpreter with its default delegate, XNNPACK, in float32 or int8.

    It takes float ONNX models through hasten's own converter: see `hasten.engines.litert.tflite`.

    Attributes:
        threads: Number of threads that share an operator; None for all that the target has.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx", "tflite"})
    families: ClassVar[frozenset[str]] = frozenset({"host"})
    distributions: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)
    extra: ClassVar[str] = "litert"
    settles: ClassVar[bool] = True
    float_only: ClassVar[bool] = True
    copied_into: ClassVar[tuple[str, ...] | None] = ("LiteRT's input buffers",)
    kernels: ClassVar[str] = "AUTO"
    """Name in LiteRT of the set of kernels."""

    threads: int | None = None

    @property
    def exact(self) -> bool:
        """True: half precision isn't asked for."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant: every setting computes the same."""
        yield cls()

    def on_threads(self, threads: int, *, alone: bool = True) -> Self:
        """Return the engine set to a number of threads."""
        return replace(self, threads=threads)

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield a single thread, which is faster for small models."""
        if target.threads > 1 and self.threads is None:
            yield replace(self, threads=1)

    @classmethod
    def version(cls) -> str:
        """Return LiteRT's version.

        Raises:
            InputError: it isn't installed.
        """
        try:
            import_quietly("ai_edge_litert.interpreter")
        except ImportError as error:
            raise cls.missing("LiteRT", error) from error
        return installed_version("ai-edge-litert") or "unknown"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Convert the model to .tflite for the shapes of its request, and check that it runs.

        An open batch dimension stays open if requests in a batch get the answers that they get
        alone; the artifact's inputs tell.

        Raises:
            CandidateError: the model can't be converted or run; the message names the operator and
                node.
        """
        if model.format == "tflite":
            artifact = place(model, workdir)
        else:
            from hasten.engines.litert.tflite.conversion import convert

            path = workdir / f"{model.path.stem}.tflite"
            convert(model, path)
            artifact = Artifact(path, model.inputs, model.outputs, model.request)
        return self._settled(artifact, target)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Load the file for the request's shapes; leaving the context frees it.

        Raises:
            CandidateError: the file can't be loaded.
        """
        with private(artifact) as copy:
            session = LiteRtSession(copy, self.threads or target.threads, self.kernels)
            try:
                yield session
            finally:
                session.close()

    def _settled(self, artifact: Artifact, target: Target) -> Artifact:
        """Return the artifact with the input shapes that the file takes."""
        with self.open(artifact, target) as session:
            assert isinstance(session, LiteRtSession)
            sizes = session.sizes
            session.run(_drawn(artifact.inputs, sizes, 0))
        inputs = tuple(replace(s, shape=sizes[s.name]) for s in artifact.inputs)
        opened = tuple(
            replace(s, shape=(s.shape[0], *sizes[s.name][1:]) if s.shape else ())
            for s in artifact.inputs
        )
        if any(not spec.shape or isinstance(spec.shape[0], int) for spec in opened):
            return replace(artifact, inputs=inputs)
        try:
            with self.open(replace(artifact, inputs=opened), target) as session:
                alone = _alone(session, opened, sizes)
        except CandidateError:
            alone = False
        return replace(artifact, inputs=opened if alone else inputs)

    def words(self) -> str:
        return listed("LiteRT", counted(self.threads or 0, "thread"))


def _drawn(
    specs: Sequence[TensorSpec], sizes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, Array]:
    """Return a random request: normally distributed floats, and zeros for other types."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal(sizes[spec.name]).astype(spec.dtype)
        if spec.dtype.startswith("float")
        else np.zeros(sizes[spec.name], spec.dtype)
        for spec in specs
    }


def _alone(
    session: Session, specs: Sequence[TensorSpec], sizes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether two requests in a batch get the answers that each gets alone."""
    requests = [_drawn(specs, sizes, seed) for seed in range(2)]
    singly = [session.run(request) for request in requests]
    both = session.run({s.name: np.concatenate([r[s.name] for r in requests]) for s in specs})
    for name, value in both.items():
        parts = [answers[name] for answers in singly]
        if any(not part.ndim for part in parts):
            return False
        expected = np.concatenate(parts)
        if value.shape != expected.shape:
            return False
        largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        if not np.allclose(value, expected, rtol=0, atol=_ALONE * largest, equal_nan=True):
            return False
    return True


class LiteRtSession(Session):
    """Session of an interpreter, which is resized for batches of another size.

    Tensors that are floats in the artifact but integers in the file are scaled on the way.

    Attributes:
        sizes: Shapes that the file is made for, by input name.
    """

    def __init__(self, artifact: Artifact, threads: int, kernels: str = "AUTO") -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._threads = threads
        try:
            with quiet():
                runtime = import_quietly("ai_edge_litert.interpreter")
                interpreter = runtime.Interpreter(
                    str(artifact.path),
                    num_threads=threads,
                    experimental_op_resolver_type=getattr(runtime.OpResolverType, kernels),
                )
                interpreter.allocate_tensors()
            inputs, outputs = _tensors(interpreter)
        except Exception as error:
            raise failed("LiteRT can't load the model", error) from error
        if missing := [s.name for s in artifact.inputs if s.name not in inputs]:
            raise CandidateError(f"the artifact has no input {missing[0]!r}")
        if missing := [s.name for s in artifact.outputs if s.name not in outputs]:
            raise CandidateError(f"the artifact has no output {missing[0]!r}")
        self.sizes = {s.name: tuple(map(int, inputs[s.name]["shape"])) for s in artifact.inputs}
        self._now = self.sizes
        self._from = [(spec.name, inputs[spec.name]["index"]) for spec in artifact.inputs]
        self._to = [(spec.name, outputs[spec.name]["index"]) for spec in artifact.outputs]
        self._scales_in = _scales(artifact.inputs, inputs)
        self._scales_out = _scales(artifact.outputs, outputs)
        self._no_nan = [
            spec.name
            for spec in artifact.inputs
            if spec.dtype == "float32" and _rounds(interpreter)
        ]
        self._interpreter: Any = interpreter

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request; inputs and outputs are copied once.

        Raises:
            BeyondRange: an input has NaN, and the model rounds.
            CandidateError: the runtime failed, or an input is missing or doesn't fit.
        """
        interpreter = self._interpreter
        if interpreter is None:
            raise CandidateError("the session is closed: open the artifact again")
        try:
            for name, sizes in self._now.items():
                if inputs[name].shape != sizes:
                    self._resize({name: inputs[name].shape for name in self.sizes})
                    break
            for name in self._no_nan:
                check_nan("In int8, LiteRT", name, inputs[name])
            for name, index in self._from:
                given = inputs[name]
                if (scale := self._scales_in.get(name)) is not None:
                    given = scale.to_integers(given)
                interpreter.set_tensor(index, given)
            interpreter.invoke()
            answers = {name: interpreter.get_tensor(index) for name, index in self._to}
            for name, scale in self._scales_out.items():
                answers[name] = scale.to_floats(answers[name])
            return answers
        except CandidateError:
            raise
        except Exception as error:
            if missing := [spec.name for spec in self.inputs if spec.name not in inputs]:
                raise CandidateError(f"LiteRT didn't get the input {missing[0]!r}") from error
            raise failed("LiteRT failed", error) from error

    def properties(self) -> Mapping[str, str]:
        """Number of threads, and of the operators that XNNPACK runs, if the runtime tells."""
        found = {"threads": str(self._threads)}
        with contextlib.suppress(AttributeError, KeyError):  # not public, so it may go
            found["xnnpack"] = _delegated(self._interpreter)
        return found

    def close(self) -> None:
        """Free the interpreter with its buffers and threads."""
        self._interpreter = None

    def _resize(self, sizes: dict[str, tuple[int, ...]]) -> None:
        """Plan for other shapes, which takes 0.2 ms, or more where memory has to grow."""
        for spec in self.inputs:
            if not _takes(spec, sizes[spec.name]):
                got = ", ".join(map(str, sizes[spec.name]))
                raise CandidateError(f"LiteRT takes {spec}; got [{got}]")
        self._now = dict.fromkeys(sizes, ())  # resizes again if this fails
        for name, index in self._from:
            self._interpreter.resize_tensor_input(index, sizes[name])
        self._interpreter.allocate_tensors()
        self._now = sizes


@dataclass(frozen=True)
class _Scale:
    """Scale of integers that stand for floats: r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.

    Attributes:
        dtype: Integer type, by numpy's name.
        scale: Scale S.
        zero_point: Zero point Z.
    """

    dtype: str
    scale: float
    zero_point: int

    def to_integers(self, floats: Array) -> Array:
        """Round to the nearest integer, halves away from zero, as LiteRT's own operator does."""
        scaled = floats / np.float32(self.scale)
        rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)) + self.zero_point
        limits = np.iinfo(self.dtype)
        integers: Array = np.clip(rounded, limits.min, limits.max).astype(self.dtype)
        return integers

    def to_floats(self, integers: Array) -> Array:
        """Return the floats that integers stand for, in float32."""
        return (integers.astype(np.float32) - self.zero_point) * np.float32(self.scale)


def _scales(specs: Sequence[TensorSpec], found: Mapping[str, Any]) -> dict[str, _Scale]:
    """Return the scales of tensors that are integers in the file and floats in the specs."""
    scales = {}
    for spec in specs:
        dtype = np.dtype(found[spec.name]["dtype"])
        scale, zero_point = found[spec.name]["quantization"]
        if spec.dtype == "float32" and dtype.kind in "iu" and scale:
            scales[spec.name] = _Scale(dtype.name, float(scale), int(zero_point))
    return scales


def _rounds(interpreter: Any) -> bool:
    """Whether something in the file is quantized."""
    return any(
        one["quantization_parameters"]["scales"].size for one in interpreter.get_tensor_details()
    )


def _takes(spec: TensorSpec, sizes: tuple[int, ...]) -> bool:
    return len(spec.shape) == len(sizes) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape, sizes, strict=True)
    )


def _tensors(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the details of inputs and outputs by name; the runner itself mustn't be kept."""
    runner = interpreter.get_signature_runner()
    return runner.get_input_details(), runner.get_output_details()


def _delegated(interpreter: Any) -> str:
    """Return how many of the file's operators the delegate runs."""
    steps = interpreter._get_ops_details()
    own = [step for step in steps if step["op_name"] != "DELEGATE"]
    producers = {int(t): i for i, step in enumerate(own) for t in step["outputs"]}
    inside: set[int] = set()
    for part in (step for step in steps if step["op_name"] == "DELEGATE"):
        given, left = set(map(int, part["inputs"])), list(map(int, part["outputs"]))
        while left:
            tensor = left.pop()
            step = producers.get(tensor)
            if tensor not in given and step is not None and step not in inside:
                inside.add(step)
                left += map(int, own[step]["inputs"])
    return f"{len(inside)} of {len(own)} operators"
