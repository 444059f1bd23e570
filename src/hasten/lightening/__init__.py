"""Lighter networks in a model's place: pruned, or of another architecture, taught by the model itself."""
