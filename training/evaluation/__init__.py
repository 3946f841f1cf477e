"""Trained networks in, accuracy, calibration and saliency measures out."""
