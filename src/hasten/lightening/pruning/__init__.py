"""Prune channels and blocks of a torch module, guided by the measured latency of each layer.

Nothing here trains: each step returns another module, which the caller fine-tunes. All modules of
this package except this one import torch.
"""
