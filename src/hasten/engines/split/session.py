"""Session of a model of which two runtimes have a part each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.split.parts import Index, any_batch
from hasten.errors import CandidateError, visible


class SplitSession(Session):
    """Open sessions of both parts, one of which reads what the other gives.

    Args:
        artifact: Artifact that was opened.
        index: Facts that it states about the parts.
        compiled: Session of the compiled part.
        rest: Session of the rest.
    """

    def __init__(self, artifact: Artifact, index: Index, compiled: Session, rest: Session) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        first = artifact.request[0].shape if artifact.request else ()
        one = (int(first[0]) if first else 1,)
        self.batch_sizes = None if any_batch(artifact.inputs) else one
        self.compiling_s = compiled.compiling_s + rest.compiling_s
        self._index, self._compiled, self._rest = index, compiled, rest
        pair = (compiled, rest) if index.compiled_first else (rest, compiled)
        self._first, self._second = pair
        self._names = tuple(spec.name for spec in artifact.outputs)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: a part failed, or gave what the other doesn't take.
            InputError: a constant input has other numbers.
        """
        found = self._first.run(_of(self._first, inputs))
        self._check(found)
        found |= self._second.run(_of(self._second, {**inputs, **found}))
        try:
            return {name: found[name] for name in self._names}
        except KeyError as error:
            raise CandidateError(f"the output {error} is missing") from error

    def bind(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        """Return a call that answers from and to the same arrays each time; see `Session.bind`.

        Raises:
            CandidateError: a part takes or gives arrays of another size.
        """
        if not self._index.compiled_first:
            return super().bind(inputs, outputs)
        rows = next((len(array) for array in inputs.values() if array.ndim), 1)
        try:
            between = {
                spec.name: np.empty(
                    [rows if isinstance(n, str) else n for n in spec.shape], spec.dtype
                )
                for spec in self._first.outputs
                if spec.name not in outputs
            }
        except (ValueError, TypeError, MemoryError) as error:
            raise CandidateError(f"the parts of the model don't fit: {error}") from error
        found = {**outputs, **between}
        first = self._first.bind(_of(self._first, inputs), _made(self._first, found))
        given = _of(self._second, {**inputs, **found})
        second = self._second.bind(given, _made(self._second, found))

        def again() -> None:
            first()
            second()

        return again

    def _check(self, found: Tensors) -> None:
        """Check what ONNX Runtime hands over, whose sizes may depend on a request's values."""
        if self._index.compiled_first:
            return
        for spec in self._second.inputs:
            if spec.name in found and not spec.fits(found[spec.name]):
                array = found[spec.name]
                raise CandidateError(
                    f"compiled C reads {spec}, and ONNX Runtime gave {array.dtype} {list(array.shape)}"
                )

    def properties(self) -> Mapping[str, str]:
        """Properties of both sessions, and which operators have which part."""
        order = ["compiled C", "ONNX Runtime"]
        both = {"compiled C": self._compiled.properties(), "ONNX Runtime": self._rest.properties()}
        said = {f"{name}: {key}": one for name, own in both.items() for key, one in own.items()}
        if not self._index.compiled_first:
            order.reverse()
        return {
            "parts": f"{order[0]}, then {order[1]}",
            "operators in compiled C": visible(self._index.share),
            "why not all": visible(self._index.why),
            **said,
        }


def _of(session: Session, arrays: Tensors) -> dict[str, Array]:
    """Return the arrays that a session reads, as far as they are there."""
    return {spec.name: arrays[spec.name] for spec in session.inputs if spec.name in arrays}


def _made(session: Session, arrays: Tensors) -> dict[str, Array]:
    """Return the arrays that a session writes."""
    return {spec.name: arrays[spec.name] for spec in session.outputs}
