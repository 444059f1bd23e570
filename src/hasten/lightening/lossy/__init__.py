"""Smaller files for the same network: most weights become 0, and the others share a few values."""
