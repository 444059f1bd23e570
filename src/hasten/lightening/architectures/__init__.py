"""A catalogue of light architectures, as data, and what builds them. The catalogue needs no torch."""

from hasten.lightening.architectures.building import build, deployed, multiply_adds, parameters
from hasten.lightening.architectures.catalogue import CATALOGUE, Architecture, Task, find

__all__ = [
    "CATALOGUE",
    "Architecture",
    "Task",
    "build",
    "deployed",
    "find",
    "multiply_adds",
    "parameters",
]
