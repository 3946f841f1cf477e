"""Enrolled speakers: their exemplars, and the stores that keep them."""
