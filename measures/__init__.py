"""Measures of sound, predictions and saliency maps, shared by the exporter and the server.

The exporter writes their distributions into a bundle's baseline, and the server compares its traffic with them. Imports
of the rest of this project only the leaves that every part shares; needs numpy, and soundfile for the probes.
"""
