"""Report metrics and traces to people and systems that watch the server."""
