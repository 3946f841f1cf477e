"""Bundles on disk and the models made of them: read, checked, loaded, watched, leased."""
