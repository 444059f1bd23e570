"""Sessions of ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hasten.core.tensors import Array, Tensors
from hasten.engines.artifacts import batch_sizes
from hasten.engines.base import Artifact, Session
from hasten.engines.checked import private
from hasten.engines.failures import failed_request
from hasten.engines.missing_numbers import ROUNDED, check_nan
from hasten.errors import BeyondRange, CandidateError, HastenError

SPINNING = "session.intra_op.allow_spinning"
STOPS_SPINNING = "session.force_spinning_stop"
_FATAL = ("DynamicQuantizeLSTM", "Einsum", "GRU", "LSTM")
"""Operators that end the process, in ONNX Runtime 1.32, for some empty inputs: as a batch, or without steps."""
_OF_TYPE = 0x22
"""Byte before the length and the type of a node's operator in an ONNX file: field 4 of NodeProto, a string."""


class OnnxRuntimeSession(Session):
    """Session of one `InferenceSession`; inputs are read in place, and outputs are new arrays.

    Args:
        artifact: Artifact that was opened.
        session: The runtime's session.
        optimization: Level by which the runtime optimized the graph, now or when it was kept.
    """

    def __init__(self, artifact: Artifact, session: Any, optimization: str) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._names = [spec.name for spec in artifact.outputs]
        self._session = session
        self._optimization = optimization
        self._artifact = artifact
        self._fatal: bool | None = None
        rounded = ROUNDED in session.get_modelmeta().custom_metadata_map
        self._no_nan = tuple(s.name for s in self.inputs if rounded and s.dtype.startswith("float"))

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            BeyondRange: an input is empty, and the model may have an operator that would end the process then; or it
                has NaN, and the model rounds.
            CandidateError: the runtime failed.
        """
        for name, array in inputs.items():
            if not array.size:
                self._check_empty(name, array)
        for name in self._no_nan:
            if name in inputs:
                check_nan("In int8, ONNX Runtime", name, inputs[name])
        try:
            return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        except Exception as error:
            if self._session is None:
                raise CandidateError("the session is closed: open the artifact again") from error
            raise failed_request("ONNX Runtime failed", error, inputs) from error

    def properties(self) -> Mapping[str, str]:
        """Settings that the runtime's session reports."""
        options = self._session.get_session_options()
        return {
            "providers": ", ".join(self._session.get_providers()),
            "threads": str(options.intra_op_num_threads),
            "spinning": str(options.get_session_config_entry(SPINNING) == "1"),
            "lingering": str(options.get_session_config_entry(STOPS_SPINNING) == "0"),
            "graph_optimization": self._optimization,
        }

    def _check_empty(self, name: str, array: Array) -> None:
        """Refuse an empty input if the model has an operator that may end the process, or can't be read any more."""
        if self._fatal is None:
            self._fatal = True
            with contextlib.suppress(HastenError, OSError), private(self._artifact) as copy:
                self._fatal = _has_fatal(copy.path)
        if self._fatal:
            raise BeyondRange(
                f"the input {name!r} has the shape {list(array.shape)}, and an empty Einsum, GRU or LSTM may end ONNX "
                "Runtime's process: give at least one number along each axis"
            )

    def close(self) -> None:
        """Free the runtime's session and its threads."""
        self._session = None


class SettledSession(Session):
    """The session for the certified request's shapes, and one for all others.

    Args:
        artifact: Artifact that was opened.
        settled: Session that takes the certified request's shapes alone.
        open_other: Function that opens the session for other shapes.
    """

    def __init__(
        self, artifact: Artifact, settled: Session, open_other: Callable[[], Session]
    ) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._sizes = [(spec.name, spec.sizes) for spec in artifact.request]
        self._settled, self._open_other = settled, open_other
        self._other: Session | None = None

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: the runtime failed.
        """
        if all(inputs[name].shape == sizes for name, sizes in self._sizes):
            return self._settled.run(inputs)
        if self._other is None:
            self._other = self._open_other()
        return self._other.run(inputs)

    def properties(self) -> Mapping[str, str]:
        """Settings that the runtime's session reports."""
        return {**self._settled.properties(), "shapes": "fixed for one sample, open for batches"}


def _has_fatal(path: Path) -> bool:
    """Whether an ONNX file has such an operator. Three letters alone are also somewhere among many weights."""
    types = [bytes([_OF_TYPE, len(name)]) + name.encode() for name in _FATAL]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(one) >= 0 for one in types)
