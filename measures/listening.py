"""The sound that a saliency map keeps and removes, and how faithful the map is by that sound.

The map weighs the short-time spectrum of the waveform in its original phase, so that the sound can be played, and given
to a network again (Parekh et al., "Listen to Interpret", arXiv 2202.11479; Paissan et al., "Listenable Maps for Audio
Classifiers", arXiv 2403.13086).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of the spectrum, in samples at 16 kHz: periodic Hann windows, both before and after, and a fourth of that as shift.
SIZE, SHIFT = 512, 128
RATE = 16_000
# Frames transformed at a time, so that memory does not grow with the recording: 2 s.
BLOCK = 256


def kept(
    samples: NDArray[np.float32],
    saliency: NDArray[np.float32],
    centres_hz: NDArray[np.floating],
    frame_length: int,
    frame_shift: int,
) -> NDArray[np.float32]:
    """Return the part of samples that a map keeps, float32 [n]; what it removes is the rest.

    Args:
        samples: float32 [n] at 16 kHz.
        saliency: the map in [0, 1], float32 [mel, frames]. Between the centres of its rows it is interpolated, beyond
            them and beyond its frames repeated.
        centres_hz: of the rows, [mel].
        frame_length: of the map's frames, in samples.
        frame_shift: between them, in samples.
    """
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(SIZE) / SIZE)
    padded = np.zeros(len(samples) + 2 * SIZE, np.float64)
    padded[SIZE : SIZE + len(samples)] = samples
    starts = np.arange(0, len(padded) - SIZE + 1, SHIFT)
    frames = np.rint((starts - SIZE / 2 - frame_length / 2) / frame_shift).astype(np.int64)
    frames = frames.clip(0, saliency.shape[1] - 1)
    rows = np.interp(np.arange(SIZE // 2 + 1) * RATE / SIZE, centres_hz, np.arange(len(centres_hz)))
    low = rows.astype(np.int64)
    high = np.minimum(low + 1, len(centres_hz) - 1)
    share = (rows - low)[:, None]
    total, weights = np.zeros_like(padded), np.zeros_like(padded)
    for first in range(0, len(starts), BLOCK):
        block = starts[first : first + BLOCK]
        columns = saliency[:, frames[first : first + BLOCK]]
        gains = columns[low] * (1 - share) + columns[high] * share
        pieces = padded[block[:, None] + np.arange(SIZE)] * window
        masked = np.fft.irfft(np.fft.rfft(pieces) * gains.T, SIZE) * window
        for start, piece in zip(block, masked, strict=True):
            total[start : start + SIZE] += piece
            weights[start : start + SIZE] += window**2
    inside = slice(SIZE, SIZE + len(samples))
    found: NDArray[np.float32] = (total[inside] / np.maximum(weights[inside], 1e-12)).astype(np.float32)
    return found


@dataclass(frozen=True)
class Confidences:
    """Probabilities of the explained class for some utterances, each [utterances].

    Attributes:
        whole: of the utterance.
        kept: of what the map keeps.
        removed: of what it removes.
        same_class: whether the class with the highest probability is the same for the utterance and what is kept.
    """

    whole: NDArray[np.float64]
    kept: NDArray[np.float64]
    removed: NDArray[np.float64]
    same_class: NDArray[np.bool_]


@dataclass(frozen=True)
class Listened:
    """How faithful maps are by their sound, means over utterances, each 0 to 1 but for `faithfulness`.

    Attributes:
        average_increase: AI, share of the utterances whose kept part has a higher probability (Chattopadhyay et al.,
            arXiv 1710.11063); higher is better.
        average_drop: AD, mean of max(0, whole - kept) / whole (likewise); lower is better.
        average_gain: AG, mean of max(0, kept - whole) / (1 - whole) (Zhang et al., Opti-CAM, arXiv 2301.07002);
            higher is better.
        faithfulness: FF, mean of whole - removed (Parekh et al.), -1 to 1; higher is better.
        input_fidelity: Fid-In, share whose class is the same for what is kept (Paissan et al., arXiv 2303.12659);
            higher is better.
    """

    average_increase: float
    average_drop: float
    average_gain: float
    faithfulness: float
    input_fidelity: float


def drop(whole: float, kept: float) -> float:
    """Return the drop in confidence, max(0, whole - kept) / whole; 0 where there was no confidence."""
    return max(0.0, whole - kept) / whole if whole > 0 else 0.0


def listened(confidences: Confidences) -> Listened:
    """Return the measures of at least one utterance."""
    whole, part = confidences.whole, confidences.kept
    room = 1 - whole
    gains = np.divide(np.maximum(0, part - whole), room, out=np.zeros_like(whole), where=room > 0)
    return Listened(
        average_increase=float((part > whole).mean()),
        average_drop=float(np.mean([drop(*pair) for pair in zip(whole.tolist(), part.tolist(), strict=True)])),
        average_gain=float(gains.mean()),
        faithfulness=float((whole - confidences.removed).mean()),
        input_fidelity=float(confidences.same_class.mean()),
    )
