"""A model file, its format and its tensor specs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from hasten.core.records import file_digest
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import CandidateError, InputError

Format: TypeAlias = Literal["onnx", "openvino", "tflite", "dais", "stablehlo"]
_NO_FILE = re.compile(r"[\x00-\x1f\x7f-\x9f*\ufffd]|_MEM_ADDR_")
"""Marks of a location that isn't a file's name, or isn't text."""


@dataclass(frozen=True)
class Model:
    """A model on disk. Immutable: a pass writes a new file.

    Attributes:
        path: File that an engine opens.
        format: "onnx"; "openvino" for its IR (.xml; the weights are in `files`); "tflite"; "dais"
            for da4ml's fixed-point programs; or "stablehlo" for files of `jax.export`.
        inputs: Specs of the model's inputs; open dimensions have names.
        outputs: Specs of the model's outputs.
        request: Specs of one request's inputs, with every size settled by the data; empty until
            then.
        files: Further files of the model, in the folder of `path`: external data, IR weights.
        custom_ops: Libraries with the user's own operators, for the engines to load.
        origin: Model that the run began with; None unless passes made this one from it.
        program: The .pt2 exported program behind the model, for targets that compile from it.
        constant_inputs: Inputs of whole numbers that are the same in all samples of the data, each with
            its numbers in C order; an engine that can't take the model otherwise may rely on them, if
            its sessions refuse other numbers.
    """

    path: Path
    format: Format
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    request: tuple[TensorSpec, ...] = ()
    files: tuple[Path, ...] = ()
    custom_ops: tuple[Path, ...] = ()
    origin: Model | None = None
    program: Path | None = None
    constant_inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the bytes of every file, in hex."""
        whole = hashlib.sha256()
        for file in (self.path, *self.files, *self.custom_ops):
            whole.update(bytes.fromhex(file_digest(file)))
        return whole.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Size on disk in bytes, of the model file and its further files."""
        return sum(file.stat().st_size for file in (self.path, *self.files))

    def settled_by(self, sample: Mapping[str, Array]) -> Model:
        """Return the model with `request` filled in from one sample.

        Args:
            sample: One sample by input name, of the shape of `x[i]` (no axis for samples).

        Raises:
            InputError: names, dtypes or shapes don't fit, or a dimension stays open.
        """
        expected = ", ".join(spec.name for spec in self.inputs)
        if sample.keys() != {spec.name for spec in self.inputs}:
            raise InputError(
                f"the model takes the inputs {expected}; the data has {', '.join(sample) or 'none'}"
            )
        return replace(
            self, request=tuple(_request(spec, sample[spec.name]) for spec in self.inputs)
        )


def _request(spec: TensorSpec, sample: Array) -> TensorSpec:
    """Settle one input's shape by a sample; add a batch axis of 1 where the model has one."""
    batched = len(spec.shape) == sample.ndim + 1
    shape = (1, *sample.shape) if batched else sample.shape
    if batched and isinstance(spec.shape[0], int) and spec.shape[0] != 1:
        raise InputError(
            f"input {spec.name!r} takes batches of {spec.shape[0]} only: {spec}; "
            f"{_further_batch(spec, sample)}export the model with an open batch dimension, or with 1"
        )
    settled = TensorSpec(spec.name, str(sample.dtype), shape)
    fits = len(spec.shape) == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape, shape, strict=True)
    )
    if not fits or settled.dtype != spec.dtype:
        mend = f'; convert it with x.astype("{spec.dtype}")' if fits else ""
        raise InputError(
            f"input {spec.name!r}: the model takes {spec}; a sample of the data is "
            f"{sample.dtype}[{', '.join(map(str, sample.shape))}]{mend}"
        )
    return settled


def _further_batch(spec: TensorSpec, sample: Array) -> str:
    """Return a remedy where another axis than the first may be the batch, such as behind time; "" elsewhere."""
    for axis, size in enumerate(spec.shape):
        rest = (*spec.shape[:axis], *spec.shape[axis + 1 :])
        fits = all(isinstance(n, str) or n == m for n, m in zip(rest, sample.shape, strict=True))
        if isinstance(size, str) and fits:
            given = ", ".join(map(str, (*sample.shape[:axis], 1, *sample.shape[axis:])))
            return f"if its axis {axis} is the batch, give samples [{given}]; or "
    return ""


def is_file_name(location: str) -> bool:
    """Whether a location of external data can only be a file's, for every runtime that reads it.

    ONNX Runtime and OpenVINO take some for a tag, such as "*/_ORT_MEM_ADDR_/*", and read an address in memory.
    """
    return _NO_FILE.search(location) is None


def libraries(custom_ops: Sequence[Path], entry_point: str) -> Iterator[Path]:
    """Yield the libraries that are made for one runtime: those that mention its entry point.

    A model that runs on two runtimes brings a library for each; neither runtime can load the
    other's.

    Args:
        custom_ops: Libraries of the model, for any runtime.
        entry_point: Name of the function through which the runtime registers operators.

    Raises:
        CandidateError: a library can't be read.
    """
    for library in custom_ops:
        try:
            if entry_point.encode() in library.read_bytes():
                yield library
        except OSError as error:
            raise CandidateError(f"can't read {library}: {error.strerror or error}") from error
