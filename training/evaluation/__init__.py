"""Measure trained networks: accuracy under interference, calibration, verification and saliency maps."""
