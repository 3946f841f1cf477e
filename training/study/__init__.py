"""The study as one command: every variant from every seed, trained, measured, compared and reported."""
