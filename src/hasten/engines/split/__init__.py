"""Engine of two runtimes that have a part of one model each."""
