"""Compare trained variants on the same mixtures, and write the figures, the files and the report."""
