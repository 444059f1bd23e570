"""Per-sample scores, one file each. `base.py` is the contract."""
