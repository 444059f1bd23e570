"""Passes: each file holds one transformation from Model to Model; `base.py` is the contract."""
