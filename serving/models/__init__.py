"""Bundles on disk and the models loaded from them: reading, checking, loading, watching, leases."""
