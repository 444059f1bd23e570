"""Serve bundles in real time to any client of the Open Inference Protocol."""
