"""The judge that measures: candidates timed in turns on this host, or on a device in it."""
