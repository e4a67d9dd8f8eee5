"""The web console: static files that speak only the public API."""
