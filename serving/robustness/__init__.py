"""Robustness monitoring: measures of every answer, drift, sampled re-inference, and active probes."""
