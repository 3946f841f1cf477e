"""Measures of a request: of the sound that comes in, of the answer, and of the map that explains it.

The exporter writes their distributions into a bundle's baseline, the server compares its traffic with these: both take
the numbers from here. Imports nothing else of this project, and numpy alone besides (soundfile for the probes).
"""
