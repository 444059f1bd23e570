"""Lighter networks in a model's place: pruned, or of another architecture, taught by the model itself."""

from hasten.lightening.run import lighten

__all__ = ["lighten"]
