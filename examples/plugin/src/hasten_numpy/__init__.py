"""A plug-in for hasten: an engine, a pass, a metric and the steps of a pipeline, one file each."""
