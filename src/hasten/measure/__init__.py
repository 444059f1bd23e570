"""Latency and accuracy of candidates, each in a process of its own."""
