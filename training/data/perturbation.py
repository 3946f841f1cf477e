"""Speed perturbation, codecs and limited bands: options of training, off by default.

Speed changes the speech before anything is mixed in, so that a clean crop and its corrupted copy stay aligned in time.
A codec, or a limited band, is part of the channel: speech and interference of a copy pass through it together.
"""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.config import Band, Codec, PerturbationConfig
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


_NARROW_RATE = 8_000
_TELEPHONE = (200.0, 300.0, 3_400.0, 3_600.0)
"""Hz: nothing passes below the first and above the last, everything between the two in the middle."""


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


def draw_channel(config: PerturbationConfig, rng: np.random.Generator) -> Codec | Band | None:
    """Draw the channel of a copy: a codec as `draw_codec`, else a band for the configured share, else None."""
    codec = draw_codec(config, rng)
    if codec is not None or not config.band or rng.random() >= config.band:
        return codec
    return config.bands[int(rng.integers(len(config.bands)))]


def draw_alone(config: PerturbationConfig, channel: Codec | Band | None, rng: np.random.Generator) -> bool:
    """Draw whether a copy passes through its channel without interference."""
    return channel is not None and config.alone > 0 and rng.random() < config.alone


def transmit(audio: Tensor, channels: Sequence[Codec | Band | None]) -> Tensor:
    """Pass rows of audio through channels, each through its own, on the CPU.

    Args:
        audio: [B, N], float32 in [-1, 1], on any device.
        channels: one for each row; None leaves the row unchanged.

    Returns:
        [B, N], float32 in [-1, 1], on the same device and without delay.
    """
    rows = [row for row, channel in enumerate(channels) if channel is not None]
    if not rows:
        return audio
    chosen = audio[rows].cpu().numpy()
    passed = [_passed(samples, channels[row] or "mu-law") for row, samples in zip(rows, chosen, strict=True)]
    received = audio.clone()
    received[rows] = torch.from_numpy(np.stack(passed)).to(audio.device)
    return received


def _passed(samples: _Waveform, channel: Codec | Band) -> _Waveform:
    match channel:
        case "narrow" | "telephone":
            return limit_band(samples, channel)
        case _:
            return round_trip(samples, channel)


def limit_band(samples: _Waveform, band: Band) -> _Waveform:
    """Limit 16 kHz samples [N], float32 in [-1, 1], to a band; keep length, range and time alignment.

    "narrow" is what sampling at 8 kHz leaves, "telephone" the 300 to 3,400 Hz of a telephone line (ITU-T G.712).
    """
    if band == "narrow":
        return _fitted(
            soxr.resample(soxr.resample(samples, SAMPLE_RATE, _NARROW_RATE), _NARROW_RATE, SAMPLE_RATE), samples
        )
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    passes = np.interp(hertz, _TELEPHONE, (0.0, 1.0, 1.0, 0.0))
    return _fitted(np.fft.irfft(np.fft.rfft(samples) * passes, len(samples)), samples)


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
    return _fitted(decoded, samples)


def _fitted(received: NDArray[Any], samples: _Waveform) -> _Waveform:
    """Return what was received with the length of what was sent, clipped to [-1, 1]."""
    received = np.pad(received[: len(samples)], (0, max(0, len(samples) - len(received))))
    return np.asarray(np.clip(received, -1.0, 1.0), dtype=np.float32)
