"""Questions to a finished bundle or a machine: bench, certify, profile, load scenarios, doctor."""
