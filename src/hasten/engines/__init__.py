"""One file per runtime: Model -> Artifact -> Session. `base.py` is the contract."""
