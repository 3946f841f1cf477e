"""Ours beside what a user would pick instead, all tables in one run: `python -m benchmarks.peers`."""
