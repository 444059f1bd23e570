"""Training: a network learns from the user's own model, from labels, or from both."""
