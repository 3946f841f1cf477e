"""Waveforms in, checkpoints and robustness reports out."""
