"""Whether the answers can still be trusted: what each one tells of that, samples that are looked into, drift."""
