"""Engine for Google's TPUs through JAX and XLA, compiled ahead of time with or without a TPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.artifacts import batch_sizes, place
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import private
from hasten.engines.estimates import Estimate
from hasten.engines.failures import failed
from hasten.engines.tpu import stablehlo
from hasten.engines.tpu.cycles import estimated_cycles
from hasten.engines.tpu.environment import libtpu, load_jax, silenced
from hasten.errors import CandidateError, HastenError

EXECUTABLE = "model.tpu"
"""File with the executable that XLA made for one generation of TPUs, as PJRT serializes it."""
FACTS = "compiled.json"
"""File with the facts that the compiler reports about the executable."""
_NODE = re.compile(r'op_name="jit\([^)]*\)/([^/";]+)')


@dataclass(frozen=True)
class Generation:
    """Generation of TPUs that XLA compiles for.

    Attributes:
        topology: Smallest arrangement of chips of this generation that libtpu knows.
        memory_bytes: High-bandwidth memory of one JAX device, which is one chip, except half of one
            (a TensorCore) of v4, and half of one (a chiplet) of tpu7x.
    """

    topology: str
    memory_bytes: int


GENERATIONS: Mapping[str, Generation] = {
    "v4": Generation("v4:2x2x1", 16 << 30),
    "v5e": Generation("v5e:2x2", 16 << 30),
    "v5p": Generation("v5p:2x2x1", 95 << 30),
    "v6e": Generation("v6e:2x2", 32 << 30),
    "tpu7x": Generation("tpu7x:2x2x1", 96 << 30),
}
"""Generations of TPUs, by the parts' names in `hasten.core.devices`.

Source: Google Cloud's documentation, "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x": 32 GiB, 16 GB,
95 GB, 32 GB and 192 GB of HBM a chip.
"""


@dataclass(frozen=True)
class Tpu(Engine):
    """XLA, for a TPU of this host or for one that isn't here.

    Without a TPU, a session on this host is compiled by XLA for processors: the program is the
    same, but its sums are ordered otherwise, and it may keep more precision between bfloat16
    operators.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"stablehlo"})
    families: ClassVar[frozenset[str]] = frozenset({"tpu"})
    distributions: ClassVar[tuple[str, ...]] = ("jax", "jaxlib", "libtpu")
    extra: ClassVar[str] = "tpu"
    settles: ClassVar[bool] = True
    faithful: ClassVar[bool] = False

    @property
    def exact(self) -> bool:
        """True: a program states its own precision."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return JAX's version and libtpu's: "0.10.2+libtpu0.0.42".

        Raises:
            InputError: either isn't installed.
        """
        try:
            return f"{metadata.version('jax')}+libtpu{metadata.version('libtpu')}"
        except metadata.PackageNotFoundError as error:
            raise cls.missing("JAX for TPUs", error) from error

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Keep the program; for a TPU also keep the compiled executable and the compiler's facts.

        Raises:
            CandidateError: XLA can't compile the program for this TPU (the message names the
                operator and node), or it doesn't fit into the TPU's memory.
            InputError: JAX or libtpu isn't installed.
        """
        artifact = place(model, workdir)
        exported = stablehlo.read(artifact.path)
        if target.family != "tpu":
            return artifact
        with _device(target) as device:
            compiled = _compiled(exported, device, target)
            executable, facts = workdir / EXECUTABLE, workdir / FACTS
            with silenced():
                executable.write_bytes(compiled.runtime_executable().serialize())
                facts.write_text(json.dumps(_facts(compiled, device, target), indent=2))
        return replace(artifact, files=(*artifact.files, executable, facts))

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Compile the program for this host's TPU, or for its processor where there is none.

        The executable in the artifact is meant for other programs. It isn't loaded here, since
        loading may run any code and a bundle is untrusted.

        Raises:
            CandidateError: the program can't be read or compiled.
        """
        with private(artifact) as copy:
            exported = stablehlo.read(copy.path)
        here = target if target.kind == "attached" else replace(target, kind="host", device="host")
        with _device(here) as device:
            session = TpuSession(artifact, _compiled(exported, device, here), device)
        try:
            yield session
        finally:
            session.close()

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Return the figures that XLA's compiler reported when the artifact was built.

        `optimal_seconds` of its cost analysis isn't used: it is negative for many programs.

        Raises:
            CandidateError: the artifact was built for another device.
        """
        found = [file for file in artifact.files if file.name == FACTS]
        try:
            facts = json.loads(found[0].read_text()) if found else {}
        except (OSError, ValueError) as error:
            raise CandidateError(f"can't read {FACTS}: {error}") from error
        if facts.get("device") != target.device:
            built = facts.get("device", "no TPU")
            raise CandidateError(f"the artifact was built for {built}, not for {target.device}")
        figures = {name: float(value) for name, value in facts["figures"].items()}
        endless = figures["loops_of_unknown_length"] > 0
        return Estimate(
            "compiler estimate",
            rank=None if endless else figures["estimated_cycles"],
            unit="cycles",
            figures=figures,
            limits={"peak_memory_bytes": float(GENERATIONS[target.part].memory_bytes)},
        )

    def words(self) -> str:
        return "XLA"


@contextmanager
def _device(target: Target) -> Iterator[Any]:
    """Yield the device to compile for: this host's TPU or processor, or a TPU that isn't here.

    Raises:
        CandidateError: libtpu has no such device.
        InputError: JAX isn't installed.
    """
    attached = target.kind == "attached" and target.family == "tpu"
    jax = load_jax(tpu=attached)
    with libtpu(present=attached), silenced():
        try:
            if target.family != "tpu":
                found = jax.devices("cpu")
            elif attached:
                found = jax.devices("tpu")
            else:
                from jax.experimental import topologies

                name = GENERATIONS[target.part].topology
                found = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        except Exception as error:  # JAX's backends may raise any exception
            raise failed(f"libtpu doesn't offer {target.device}", error) from error
        yield found[0]


def _compiled(exported: Any, device: Any, target: Target) -> Any:
    """Compile a program for one device."""
    jax = load_jax(tpu=target.kind == "attached" and target.family == "tpu")
    there = jax.sharding.SingleDeviceSharding(device)
    given = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=there) for aval in exported.in_avals
    ]
    args, kwargs = jax.tree.unflatten(exported.in_tree, given)
    try:
        with silenced():
            return jax.jit(exported.call).lower(*args, **kwargs).compile()
    except HastenError:
        raise
    except Exception as error:
        what = f"XLA can't compile the model for {target.device}"
        said = failed(what, error)
        node = _NODE.search(str(error))
        if node is None or repr(node.group(1)) in str(said):
            raise said from error
        raise CandidateError(f"{said} (node {node.group(1)!r})") from error


def _facts(compiled: Any, device: Any, target: Target) -> dict[str, Any]:
    """Return the facts that the compiler reports about a program."""
    cycles = estimated_cycles(compiled.as_text())
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    figures = {
        "estimated_cycles": cycles.total,
        "instructions_estimated": cycles.estimated,
        "loops_of_unknown_length": cycles.endless,
        "flops": costs.get("flops", 0.0),
        "accessed_bytes": costs.get("bytes accessed", 0.0),
        "peak_memory_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    return {
        "device": target.device,
        "compiled_for": device.device_kind,
        "compiler": Tpu.version(),
        "figures": figures,
        "cycles_by_node": dict(sorted(cycles.by_node.items(), key=lambda one: -one[1])),
    }


class TpuSession(Session):
    """Session of a compiled program on a device."""

    def __init__(self, artifact: Artifact, compiled: Any, device: Any) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes(artifact)
        self._compiled, self._device = compiled, device
        self._put = import_module("jax").device_put

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: the runtime failed, or an input is missing or doesn't fit.
        """
        if self._compiled is None:
            raise CandidateError("the session is closed: open the artifact again")
        for spec in self.inputs:
            if spec.name not in inputs:
                raise CandidateError(f"XLA didn't get the input {spec.name!r}")
            if not spec.fits(inputs[spec.name]):
                got = ", ".join(map(str, inputs[spec.name].shape))
                raise CandidateError(f"XLA takes {spec}; got {inputs[spec.name].dtype}[{got}]")
        try:
            given = {spec.name: _narrowed(inputs[spec.name], spec) for spec in self.inputs}
            answers = self._compiled(self._put(given, self._device))
            return {s.name: np.array(answers[s.name], s.dtype) for s in self.outputs}
        except CandidateError:
            raise
        except Exception as error:
            raise failed("XLA failed", error) from error

    def properties(self) -> Mapping[str, str]:
        """Kind and platform of the device that runs the program."""
        return {"device": str(self._device.device_kind), "platform": str(self._device.platform)}

    def close(self) -> None:
        """Free the program and its memory on the device."""
        self._compiled = None


def _narrowed(array: Array, spec: TensorSpec) -> Array:
    """Return an input with integers in the 32 bits that JAX has for them."""
    to = np.dtype(stablehlo.narrowed(spec.dtype))
    if to == array.dtype:
        return array
    limits = np.iinfo(to)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise CandidateError(f"input {spec.name!r} has integers of more than 32 bits")
    return array.astype(to)
