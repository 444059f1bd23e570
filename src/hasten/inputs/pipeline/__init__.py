"""Preprocessing from a file to the model's input; `base.py` holds the contract."""
