"""Labels for those sealed samples alone on which answers differ: asked for, shown, read and used."""
