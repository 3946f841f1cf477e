"""Speed perturbation and codecs: options of training, off by default.

Speed changes the speech before anything is mixed in, so that a clean crop and its corrupted copy stay aligned in time.
A codec is part of the channel: it encodes a copy's speech and interference together.
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.config import Codec, PerturbationConfig
from speakerlens.training.data.audio import SAMPLE_RATE

_Waveform = NDArray[np.float32]


class _Format(NamedTuple):
    """libsndfile's names of a codec, its sampling rate in Hz, and its compression level if it has one."""

    container: str
    encoding: str
    rate: int
    compression: float | None = None


_FORMATS: dict[Codec, _Format] = {
    "mu-law": _Format("AU", "ULAW", 8_000),
    "a-law": _Format("AU", "ALAW", 8_000),
    "gsm": _Format("WAV", "GSM610", 8_000),
    "vorbis": _Format("OGG", "VORBIS", SAMPLE_RATE, 1.0),
}


def draw_speeds(count: int, config: PerturbationConfig, rng: np.random.Generator) -> list[float]:
    """Draw the speeds of `count` crops: one of the factors for the configured share, else 1."""
    changed = rng.random(count) < config.speed
    factors = rng.choice(np.array(config.factors), size=count)
    return [float(speed) for speed in np.where(changed, factors, 1.0)]


def samples_at_speed(samples: int, speed: float) -> int:
    """Return how many samples to read for `samples` samples at a speed."""
    return math.ceil(samples * speed)


def change_speed(audio: _Waveform, speed: float, samples: int) -> _Waveform:
    """Change tempo, pitch and formants by the factor `speed`, by resampling.

    Args:
        audio: [samples_at_speed(samples, speed)], float32.
        speed: above 1 is faster.
        samples: length of the result.

    Returns:
        [samples], float32.
    """
    if speed == 1.0:
        return audio
    resampled = np.asarray(soxr.resample(audio, SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ"), dtype=np.float32)
    return np.pad(resampled[:samples], (0, max(0, samples - len(resampled))))


def draw_codec(config: PerturbationConfig, rng: np.random.Generator) -> Codec | None:
    """Draw the codec of a copy: one of the configured codecs for the configured share, else None."""
    if rng.random() >= config.codec:
        return None
    return config.codecs[int(rng.integers(len(config.codecs)))]


def transmit(audio: Tensor, codecs: Sequence[Codec | None]) -> Tensor:
    """Encode and decode rows of audio, each with its own codec, on the CPU.

    Args:
        audio: [B, N], float32 in [-1, 1], on any device.
        codecs: one for each row; None leaves the row unchanged.

    Returns:
        [B, N], float32 in [-1, 1], on the same device and without delay.
    """
    rows = [row for row, codec in enumerate(codecs) if codec is not None]
    if not rows:
        return audio
    chosen = audio[rows].cpu().numpy()
    decoded = [round_trip(samples, codecs[row] or "mu-law") for row, samples in zip(rows, chosen, strict=True)]
    received = audio.clone()
    received[rows] = torch.from_numpy(np.stack(decoded)).to(audio.device)
    return received


def round_trip(samples: _Waveform, codec: Codec) -> _Waveform:
    """Encode and decode 16 kHz samples [N], float32 in [-1, 1]; keep length, range and time alignment.

    "mu-law" and "a-law" are ITU-T G.711 (fixed telephony), "gsm" is full rate (ETSI GSM 06.10, mobile telephony); all
    three are limited to 4 kHz. "vorbis" is Ogg Vorbis at its lowest quality, about 35 kbit/s.
    """
    form = _FORMATS[codec]
    sent = soxr.resample(samples, SAMPLE_RATE, form.rate) if form.rate != SAMPLE_RATE else samples
    file = io.BytesIO()
    soundfile.write(
        file, sent, form.rate, format=form.container, subtype=form.encoding, compression_level=form.compression
    )
    file.seek(0)
    received, _ = soundfile.read(file, dtype="float32")
    received = received[: len(sent)]  # GSM pads to its frames
    decoded = soxr.resample(received, form.rate, SAMPLE_RATE) if form.rate != SAMPLE_RATE else received
    decoded = np.pad(decoded[: len(samples)], (0, max(0, len(samples) - len(decoded))))
    return np.asarray(np.clip(decoded, -1.0, 1.0), dtype=np.float32)
