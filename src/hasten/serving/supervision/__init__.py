"""Run the serving process, and the supervisor that restarts it."""
