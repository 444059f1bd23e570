"""Train a network by the answers of the user's own model, by labels, or by both."""
