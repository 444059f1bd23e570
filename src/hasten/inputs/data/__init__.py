"""Data sets that are read lazily, and their splits; `dataset.py` holds their contract."""
