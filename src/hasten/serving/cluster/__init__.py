"""More than one machine: on a Ray cluster, or by what Kubernetes reads."""
