"""The page that a person can send to a colleague, made from records alone."""
