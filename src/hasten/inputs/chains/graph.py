"""A chain: bundles and steps between them, from one value to one decision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hasten.errors import InputError
from hasten.inputs.chains.nodes import SOURCE, Crop, Model, Node, kind_of

MOST_NODES = 64
"""Largest number of nodes."""


@dataclass(frozen=True)
class Chain:
    """Nodes with names and sources; each is checked against the others when the chain is made.

    Attributes:
        nodes: Nodes in any order.

    Raises:
        InputError: two nodes have one name, a source doesn't exist or gives what the node can't
            take, or nodes wait for each other.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        """Check the nodes."""
        if not 0 < len(self.nodes) <= MOST_NODES:
            raise InputError(f"a chain has 1 to {MOST_NODES} nodes; got {len(self.nodes)}")
        names = [node.name for node in self.nodes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two nodes of the chain are named {twice}: rename one")
        for node in self.nodes:
            self._check_source(node)
        self._check_cycles()
        if not self.models:
            raise InputError("the chain has no model: give at least one")

    def _check_source(self, node: Node) -> None:
        """Check that a node's source exists and gives what the node takes."""
        name = node.comes_from
        if name != SOURCE and name not in self.by_name:
            there = ", ".join((SOURCE, *(n for n in self.by_name if n != node.name)))
            raise InputError(
                f"{node.name} takes {name!r:.80}, which isn't there; there are {there}"
            )
        source = self.by_name.get(name)
        if isinstance(node, Model):
            if isinstance(source, Model):
                raise InputError(
                    f"{node.name} can't take the decision of {name}: put a crop of its boxes, or "
                    "a when, between them"
                )
        elif not isinstance(source, Model):
            what = "the boxes" if isinstance(node, Crop) else "the decision"
            got = "what the chain is given" if source is None else f"a {kind_of(source)}"
            raise InputError(f"{node.name} needs {what} of a model; {name} is {got}")

    def _check_cycles(self) -> None:
        for node in self.nodes:
            path = [node.name]
            while (name := self.by_name[path[-1]].comes_from) != SOURCE:
                if name in path:
                    around = " <- ".join((*path[path.index(name) :], name))
                    raise InputError(f"nodes of the chain wait for each other: {around}")
                path.append(name)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """Models, in the order in which they run."""
        return tuple(node for node in self.in_order if isinstance(node, Model))

    @cached_property
    def in_order(self) -> tuple[Node, ...]:
        """Nodes in an order in which each comes after its source; else as they were given."""
        done, left = {SOURCE}, list(self.nodes)
        order: list[Node] = []
        while left:
            node = next(node for node in left if node.comes_from in done)
            left.remove(node)
            order.append(node)
            done.add(node.name)
        return tuple(order)

    @cached_property
    def stream(self) -> dict[str, str]:
        """The samples that each node sees, by its name: `SOURCE`, or the name of a crop."""
        streams = {SOURCE: SOURCE}
        for node in self.in_order:
            streams[node.name] = node.name if isinstance(node, Crop) else streams[node.comes_from]
        return streams

    @cached_property
    def roots(self) -> tuple[Model, ...]:
        """Models that see the source itself."""
        return tuple(model for model in self.models if self.stream[model.name] == SOURCE)

    def readers(self, crop: Crop) -> tuple[Model, ...]:
        """Return the models that see what a crop cuts, whether through a condition or not.

        Args:
            crop: Crop of this chain.
        """
        return tuple(model for model in self.models if self.stream[model.name] == crop.name)

    def in_words(self) -> str:
        """Return a description of the chain in one line."""
        return ", ".join(
            f"{node.name} ({kind_of(node)} of {node.comes_from})" for node in self.nodes
        )
