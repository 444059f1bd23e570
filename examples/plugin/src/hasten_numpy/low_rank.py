"""A pass: matrix products with a weight of low rank become two thin ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped, Stage
from hasten.passes.onnx_files import read_onnx, write_onnx


@dataclass(frozen=True)
class LowRank(Pass):
    """Replace x W by (x U) V wherever U and V together are smaller than W.

    U and V keep a share of W's energy, the sum of its squared singular values.

    Attributes:
        energy: Share that is kept, in (0, 1].

    Source: the truncated singular value decomposition is the best approximation of its rank; Eckart
        and Young, Psychometrika 1936.
    """

    stage: ClassVar[Stage | None] = "lossy"

    energy: float = 0.999

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.energy <= 1:
            raise InputError(f"low_rank keeps a share of the energy in (0, 1]: got {self.energy:g}")

    @property
    def quantized(self) -> bool:
        """Never: the products stay in float."""
        return False

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the likeliest share, then a safer and a bolder one."""
        yield from (cls(energy) for energy in (0.999, 0.9999, 0.99))

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        from onnx import helper, numpy_helper

        proto = read_onnx(model)
        weights = {one.name: one for one in proto.graph.initializer}
        nodes, thin = [], []
        for node in proto.graph.node:
            weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
            factors = None if weight is None else self._factors(numpy_helper.to_array(weight))
            if factors is None:
                nodes.append(node)
                continue
            names = [f"{node.output[0]}/{end}" for end in ("u", "v", "thin")]
            thin += [numpy_helper.from_array(a, n) for a, n in zip(factors, names, strict=False)]
            nodes += [
                helper.make_node("MatMul", [node.input[0], names[0]], [names[2]], f"{node.name}/u"),
                helper.make_node("MatMul", [names[2], names[1]], [node.output[0]], node.name),
            ]
        if not thin:
            raise Skipped("no matrix product has a weight of low rank")
        used = {name for node in nodes for name in node.input}
        kept = [one for name, one in weights.items() if name in used]
        for field, values in ((proto.graph.node, nodes), (proto.graph.initializer, [*kept, *thin])):
            del field[:]
            field.extend(values)
        return write_onnx(proto, model, workdir / "low_rank.onnx")

    def words(self) -> str:
        return f"low rank ({100 * self.energy:g}% of the energy)"

    def _factors(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return U and V of a weight; None where they would be no smaller."""
        if weight.ndim != 2:
            return None
        u, values, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
        energy = np.cumsum(values**2) / np.sum(values**2)
        rank = int(np.searchsorted(energy, self.energy)) + 1
        if rank * sum(weight.shape) >= weight.size:
            return None
        return (u[:, :rank] * values[:rank]).astype(weight.dtype), v[:rank].astype(weight.dtype)
