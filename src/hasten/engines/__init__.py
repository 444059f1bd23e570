"""Engines, each of which turns a Model into an Artifact and opens it; see `base.py`."""
