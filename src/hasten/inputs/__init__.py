"""What a user brings: models, data, the steps around them, and how answers are scored."""
