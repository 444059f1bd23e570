"""A plug-in for hasten: an engine, a pass and a metric, one file each."""
