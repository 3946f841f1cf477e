"""Saliency maps as they are sent: normalised, resized, fused, encoded, drawn."""
