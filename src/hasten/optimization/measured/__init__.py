"""The judge that measures: candidates are timed in turns on this host, or on a device in it."""
