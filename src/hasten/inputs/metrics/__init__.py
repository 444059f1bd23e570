"""Metrics that score each sample, one file each; `base.py` holds their contract."""

from hasten.inputs.metrics.choice import check_outputs, default_metric, named_metric, parse_metric
from hasten.inputs.metrics.combined import for_labels

__all__ = ["check_outputs", "default_metric", "for_labels", "named_metric", "parse_metric"]
