"""Answer a stream of pictures as it comes: the newest frame first, each within its deadline."""
