"""Data sets, read lazily, and their splits. `dataset.py` is the contract."""
