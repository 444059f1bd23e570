"""hasten: the fastest version of a model that is certified to still give the right answers."""
