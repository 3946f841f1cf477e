"""Speech played faster or slower, and sound that has been through a codec: options of training, off by default.

Speed is a matter of the speech: whatever is made of a crop, clean or corrupted, has the crop's speed, so that the two
of a pair stay aligned in time. A codec is one of the channel: it carries a copy's speech and interference together.
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
    """How libsndfile names a codec; the sampling rate it works at; its compression, where there is a choice."""

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
    """Draw the speed of each of `count` crops: 1 but for the configured share, which has one of the factors."""
    changed = rng.random(count) < config.speed
    factors = rng.choice(np.array(config.factors), size=count)
    return [float(speed) for speed in np.where(changed, factors, 1.0)]


def samples_at_speed(samples: int, speed: float) -> int:
    """How many samples to read for `samples` of a speed."""
    return math.ceil(samples * speed)


def change_speed(audio: _Waveform, speed: float, samples: int) -> _Waveform:
    """Play audio [samples_at_speed(samples, speed)] at `speed` times its speed; pitch and formants move along.

    Returns:
        [samples], as resampling from `speed` times the sampling rate gives them.
    """
    if speed == 1.0:
        return audio
    played = np.asarray(soxr.resample(audio, SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ"), dtype=np.float32)
    return np.pad(played[:samples], (0, max(0, samples - len(played))))


def draw_codec(config: PerturbationConfig, rng: np.random.Generator) -> Codec | None:
    """Draw the codec of a copy: none but for the configured share."""
    if rng.random() >= config.codec:
        return None
    return config.codecs[int(rng.integers(len(config.codecs)))]


def transmit(audio: Tensor, codecs: Sequence[Codec | None]) -> Tensor:
    """Encode and decode rows of audio, each by a codec of its own, on the CPU.

    Args:
        audio: [B, N] in [-1, 1], on any device.
        codecs: one for each row; None leaves it alone.

    Returns:
        [B, N] in [-1, 1], on the same device and not moved in time.
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
    """Encode and decode samples [N] in [-1, 1] at 16 kHz; the same length, range and place in time come back.

    "mu-law" and "a-law" are ITU-T G.711, the fixed telephone network's; "gsm" is full rate (ETSI GSM 06.10), of mobile
    telephones; all three cut off at 4 kHz. "vorbis" is Ogg Vorbis at its lowest quality, some 35 kbit/s.
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
    heard = soxr.resample(received, form.rate, SAMPLE_RATE) if form.rate != SAMPLE_RATE else received
    heard = np.pad(heard[: len(samples)], (0, max(0, len(samples) - len(heard))))
    return np.asarray(np.clip(heard, -1.0, 1.0), dtype=np.float32)
