"""Models that are open: their queues, their engines, what they did."""
