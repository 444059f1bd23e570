"""Define the Open Inference Protocol (KServe V2), for the server and for clients."""
