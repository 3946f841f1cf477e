"""Voices compared with one another, and those that are enrolled."""
