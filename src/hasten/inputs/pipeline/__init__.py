"""What stands between a file and the model's input. `base.py` is the contract."""
