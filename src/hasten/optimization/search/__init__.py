"""What to try next, and the journal that lets a stopped run go on."""
