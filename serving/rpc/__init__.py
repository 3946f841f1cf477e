"""What surrounds every call: statuses, ids, TLS, tokens, limits of connections, traces."""
