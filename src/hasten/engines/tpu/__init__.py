"""JAX and XLA: torch programs as JAX functions, and what XLA's compiler says of them."""
