"""What is asked of a finished bundle or of a machine: bench, certify, profile, load scenarios, doctor."""
