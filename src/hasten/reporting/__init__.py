"""The report: a page to send to a colleague, made from a bundle's records alone."""
