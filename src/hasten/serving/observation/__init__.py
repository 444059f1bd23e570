"""What is told to who watches the server: metrics and traces."""
