"""Inputs that a user brings: models, data, preprocessing pipelines and metrics."""
