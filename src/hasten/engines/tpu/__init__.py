"""JAX and XLA: torch programs as JAX functions, and their compilation for TPUs."""
