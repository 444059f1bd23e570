"""Per-sample scores, one file each. `base.py` is the contract."""

from hasten.inputs.metrics.choice import default_metric, parse_metric

__all__ = ["default_metric", "parse_metric"]
