"""Chains that are open: `opened.py` runs them in this process, `plan.py` says what runs after what."""

from hasten.bundle.chains.opened import OpenChain, open_chain
from hasten.bundle.chains.plan import Stage

__all__ = ["OpenChain", "Stage", "open_chain"]
