"""Measures of sound, predictions and saliency maps, shared by the exporter and the server.

The exporter writes their distributions into a bundle's baseline, and the server compares its traffic with them. Imports
nothing else of this project; needs numpy, and soundfile for the probes.
"""
