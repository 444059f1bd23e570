"""Structured pruning of a torch module, with what each layer takes in measured milliseconds.

Nothing here trains: each step gives another module, which the caller fine-tunes. All modules of
this room but this one import torch.
"""
