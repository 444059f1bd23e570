"""Packed bundles: one file, as small as it gets with the same answers bit for bit."""
