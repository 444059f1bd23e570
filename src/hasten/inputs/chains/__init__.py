"""Chains: several bundles and the steps between them, as a small graph; see `graph.py`."""

from hasten.inputs.chains.graph import Chain
from hasten.inputs.chains.nodes import SOURCE, Crop, Model, Node, When
from hasten.inputs.chains.reading import chain_of, is_chain, models_in_words

__all__ = [
    "SOURCE",
    "Chain",
    "Crop",
    "Model",
    "Node",
    "When",
    "chain_of",
    "is_chain",
    "models_in_words",
]
