"""Settings of the speech detector, which server and page share (docs/decisions/0054-speech-detector.md).

Silero VAD 6 at 16 kHz gives a probability of speech for each frame. A window with enough frames above the threshold
holds speech.
"""

FRAME = 512
"""Samples of a frame."""
CONTEXT = 64
"""Samples of the frame before, that each frame begins with."""
STATE = (2, 1, 128)
"""Shape of the network's state."""
PROBABILITY = 0.3
"""Frames above it count."""
LEAST_FRAMES = 10
"""That many frames make a window one with speech: 0.32 s."""
PEAK = 0.5
"""The detector is less sure of quiet speech: the window is scaled to this peak."""
LEAST_PEAK = 0.001
"""A window whose peak is lower, -60 dBFS, counts as silence."""
