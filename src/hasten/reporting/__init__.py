"""The page that a person can send to a colleague, made from a bundle's records alone."""
