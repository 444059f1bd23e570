"""Conversion of the user's model to a `Model`, with one file per source format."""
