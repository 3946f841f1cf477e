"""Checkpoint in, verified model bundle out."""
