"""One file per transformation, Model -> Model. `base.py` is the contract."""
