"""List light architectures in a catalogue of plain data, which needs no torch, and build them."""

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
