"""Models of which compiled C covers a part, and ONNX Runtime has the rest."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.split.engine import Split
from hasten.testing.engine_tests import EngineTests


def with_uncovered(model: Model, folder: Path, where: str) -> Model:
    """Put operators that compiled C doesn't cover, and that change nothing, at the outputs or the inputs."""
    try:
        proto = onnx.load(model.path)
    except Exception:
        return model
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    at = graph.output if where == "rest" else [i for i in graph.input if i.name not in constants]
    names = {value.name: f"{value.name}_inside" for value in at}
    for node in graph.node:
        for tensors in (node.output, node.input):
            for place, name in enumerate(tensors):
                if name in names and (where == "rest" or tensors is node.input):
                    tensors[place] = names[name]
    added = []
    graph.initializer.append(onnx.helper.make_tensor("none", onnx.TensorProto.INT64, [], [0]))
    for name, inside in names.items():
        read, given = (inside, name) if where == "rest" else (name, inside)
        listed = onnx.helper.make_node(
            "SequenceConstruct", [read], [f"list of {name}"], f"list of {name}"
        )
        picked = onnx.helper.make_node(
            "SequenceAt", [f"list of {name}", "none"], [given], f"item of {name}"
        )
        added += [listed, picked]
    own = [*graph.node]
    del graph.node[:]
    graph.node.extend([*own, *added] if where == "rest" else [*added, *own])
    path = folder / f"uncovered-{where}.onnx"
    onnx.save(proto, path)
    return replace(model, path=path, files=())


class SplitTests(EngineTests):
    engine = Split()
    where = "rest"

    def built(self, model: Model, target: Target, workdir: Path) -> Artifact:
        return super().built(with_uncovered(model, workdir, self.where), target, workdir)

    def skip_without_bundles(self, target: Target) -> None:
        """Skip nothing: the search proposes it on this host, though no family of devices has it."""


class TestSplit(SplitTests):
    pass


class TestSplitHead(SplitTests):
    where = "head"
