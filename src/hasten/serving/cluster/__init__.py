"""Serve on several machines: on a Ray cluster, or on Kubernetes with KServe."""
