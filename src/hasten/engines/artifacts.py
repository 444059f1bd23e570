"""Preparation of a model's files that engines share, before their runtimes read them."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import numpy as np

from hasten.core.model import Model
from hasten.core.records import file_digest
from hasten.core.tensors import Tensors, TensorSpec
from hasten.engines.base import Artifact, Session
from hasten.engines.failures import failed
from hasten.errors import CandidateError


def place(model: Model, workdir: Path) -> Artifact:
    """Copy a model's files unchanged into a folder.

    They are copied, not hard-linked: runtimes refuse external data that has several names.

    Raises:
        CandidateError: a file is missing or can't be copied.
    """
    placed = []
    for file in (model.path, *model.files):
        to = workdir / file.relative_to(model.path.parent)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
        except OSError as error:
            raise CandidateError(f"can't copy {file}: {error.strerror or error}") from error
        placed.append(to)
    return Artifact(
        path=placed[0],
        inputs=model.inputs,
        outputs=model.outputs,
        request=model.request,
        files=tuple(placed[1:]),
        custom_ops=model.custom_ops,
    )


def artifact_digest(artifact: Artifact) -> str:
    """Return the SHA-256 over the bytes of an artifact's files, folders and libraries, in hex."""
    whole = hashlib.sha256()
    for given in (artifact.path, *artifact.files, *artifact.custom_ops):
        within = sorted(given.rglob("*")) if given.is_dir() else [given]
        for file in within:
            if file.is_file():
                whole.update(bytes.fromhex(file_digest(file)))
    return whole.hexdigest()


def batch_sizes(artifact: Artifact) -> tuple[int, ...] | None:
    """Return the batch sizes that an artifact's input shapes allow; None for any.

    A request whose first axis isn't 1 has no batch axis, so it is answered alone.
    """
    if any(not spec.shape or spec.shape[0] != 1 for spec in artifact.request):
        return (1,)
    if any(spec.shape and isinstance(spec.shape[0], str) for spec in artifact.inputs):
        return None
    sizes = {spec.shape[0] for spec in artifact.inputs if spec.shape}
    only = sizes.pop() if len(sizes) == 1 else 1
    return (int(only),)


def answer_once(session: Session, artifact: Artifact) -> None:
    """Have a session compile what the certified request needs, by a request of zeros.

    Zeros may take a branch that can't answer; then the first real request compiles.
    """
    with contextlib.suppress(CandidateError):
        session.run(zeros_for(artifact))


def zeros_for(artifact: Artifact) -> Tensors:
    """Return the request of zeros in the sizes that an artifact is certified for."""
    return {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in artifact.request}


def settled_request(model: Model, taker: str) -> tuple[TensorSpec, ...]:
    """Return the inputs of one request, for a runtime that takes only settled shapes.

    Args:
        model: Model, settled by data or not.
        taker: Name of the runtime, for messages.

    Raises:
        CandidateError: a shape is open.
    """
    specs = model.request or model.inputs
    if still := [spec for spec in specs if not spec.static]:
        raise CandidateError(
            f"{taker} takes only fixed shapes: got {still[0]}; give a sample of data to fix it"
        )
    return specs


def settle(path: Path, request: tuple[TensorSpec, ...], what: str) -> None:
    """Write the shapes of one request into an ONNX file; its reader infers all other shapes.

    Args:
        path: Path of the file, which is changed.
        request: Specs of one request's inputs, with every size settled.
        what: Start of the message if the file can't be read: "QNN can't load the model".

    Raises:
        CandidateError: the file can't be read.
    """
    import onnx

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise failed(what, error) from error
    settled = {spec.name: spec.sizes for spec in request}
    for value in proto.graph.input:
        if value.name in settled:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in settled[value.name]:
                dims.add().dim_value = size
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    del proto.graph.value_info[:]
    path.write_bytes(proto.SerializeToString())
