"""The gRPC layer around every call: statuses, limits, TLS, tokens, health, traces and draining."""
