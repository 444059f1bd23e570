"""Latency and accuracy of candidates, every one in a process of its own."""
