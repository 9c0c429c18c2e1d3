"""Real clients and proxies, unchanged, each doing what it can against a real server."""
