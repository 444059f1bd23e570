"""Run models that are open, with their queues, engines and statistics."""
