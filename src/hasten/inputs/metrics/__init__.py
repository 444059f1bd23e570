"""Metrics that score each sample, one file each; `base.py` holds their contract."""

from hasten.inputs.metrics.choice import default_metric, parse_metric

__all__ = ["default_metric", "parse_metric"]
