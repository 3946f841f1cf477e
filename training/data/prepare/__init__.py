"""Anything that holds speech and interference in, one corpus folder with a manifest out."""
