"""Metrics that give one figure over a whole set of samples, one file each; `base.py` is the contract."""

from hasten.inputs.set_metrics.choice import chosen, default_set_metrics, parse_set_metric

__all__ = ["chosen", "default_set_metrics", "parse_set_metric"]
