"""Bytes in, 16 kHz mono out, with every limit held before the memory is spent.

Decisions:

* Headers are checked first and then not believed: decoding goes block by block and stops at the limit.
* A file that ends early (a truncated WAV, an MP3 cut off) counts for what it holds, as libsndfile reads it; one whose
  decoder reports damage is refused, as nobody knows what the rest would have said.
* A WAV header that claims more than the file holds is read to the end of the file; one that claims less is believed.
* Audio without any sound, which includes a constant offset, is refused: scores for it would be invented.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from serving.errors import InvalidArgumentError, Reason

MODEL_RATE = 16_000
MIN_RATE, MAX_RATE = 4_000, 192_000
MAX_CHANNELS = 8
# Float samples may exceed full scale a little; sixteen-fold is a mistake of units, and far more overflows the features.
MAX_PEAK = 16.0
# Less than one step of 16-bit audio from peak to peak is no sound.
SILENT_RANGE = 2.0**-15
BLOCK_FRAMES = 65_536
# libsndfile's count for streams that do not say how long they are.
UNKNOWN_FRAMES = 2**62

SAMPLE_TYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int16": np.dtype("<i2")}


@dataclass(frozen=True)
class EncodedAudio:
    """A whole audio file."""

    data: bytes


@dataclass(frozen=True)
class RawAudio:
    """Interleaved samples; `sample_type` is a key of `SAMPLE_TYPES`, `sample_rate` is in Hz."""

    data: bytes
    sample_type: str
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class Waveform:
    """Decoded audio.

    Attributes:
        samples: float32 [samples], mono at 16 kHz, full scale 1.0.
        seconds: duration as received.
        sample_rate: Hz, as received.
        channels: as received.
    """

    samples: NDArray[np.float32]
    seconds: float
    sample_rate: int
    channels: int


class _File(io.BytesIO):
    """A file in memory for libsndfile, which seeks before its beginning where a damaged header says so."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Stays where it is rather than raise: libsndfile's callback would print a stack trace, and go on."""
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


class _Stream(sf.SoundFile):  # type: ignore[misc]
    """A file read once from front to back: `soundfile` seeks after every read of what it could seek in.

    That costs time with every block, and fails for a FLAC that does not say how long it is, as a pipe writes it.
    """

    def seekable(self) -> bool:
        return False


def decode(audio: EncodedAudio | RawAudio, max_seconds: float) -> Waveform:
    """Decodes, checks, averages the channels and resamples to 16 kHz.

    Raises:
        InvalidArgumentError: not audio, empty, damaged, NaN or infinite, out of scale, silent, too long, or with a rate
            or a number of channels that is not accepted. How short is too short is the models' matter.
    """
    if isinstance(audio, EncodedAudio):
        mono, rate, channels = _decode_file(audio.data, max_seconds)
        field = "audio.encoded"
    else:
        mono, rate, channels = _decode_raw(audio, max_seconds)
        field = "audio.raw.samples"
    _check_samples(field, mono, channels)
    samples = mono if rate == MODEL_RATE else soxr.resample(mono, rate, MODEL_RATE)
    return Waveform(np.ascontiguousarray(samples, np.float32), len(mono) / rate, rate, channels)


def _decode_file(data: bytes, max_seconds: float) -> tuple[NDArray[np.float32], int, int]:
    field = "audio.encoded"
    if not data:
        raise InvalidArgumentError(Reason.EMPTY, f"{field}: empty; send a whole audio file")
    try:
        file = _Stream(_File(data))
    except sf.LibsndfileError as error:
        raise InvalidArgumentError(
            Reason.NOT_AUDIO, f"{field}: not a file that libsndfile reads (WAV, FLAC, OGG, MP3 …): {error.error_string}"
        ) from error
    with file:
        _check_form(field, field, file.samplerate, file.channels)
        if file.frames < UNKNOWN_FRAMES:
            _check_length(field, file.frames, file.samplerate, max_seconds)
        return _read_blocks(file, max_seconds), file.samplerate, file.channels


def _read_blocks(file: sf.SoundFile, max_seconds: float) -> NDArray[np.float32]:
    """Channel mean, float32 [frames]; never holds more than a block of what the file unpacks to beyond the limit."""
    blocks: list[NDArray[np.float32]] = []
    frames = 0
    while True:
        try:
            block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except sf.LibsndfileError as error:
            raise InvalidArgumentError(
                Reason.NOT_AUDIO,
                f"audio.encoded: damaged {file.format} after {frames / file.samplerate:.2f} s: {error.error_string}",
            ) from error
        if not len(block):
            break
        frames += len(block)
        _check_length("audio.encoded", frames, file.samplerate, max_seconds)
        with np.errstate(all="ignore"):  # what overflows here is refused as not finite
            blocks.append(block.mean(axis=1))
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _decode_raw(audio: RawAudio, max_seconds: float) -> tuple[NDArray[np.float32], int, int]:
    field, kind = "audio.raw.samples", SAMPLE_TYPES[audio.sample_type]
    _check_form("audio.raw.sample_rate", "audio.raw.channels", audio.sample_rate, audio.channels)
    frame_bytes = kind.itemsize * audio.channels
    if not audio.data:
        raise InvalidArgumentError(Reason.EMPTY, f"{field}: empty; send interleaved {audio.sample_type} samples")
    if len(audio.data) % frame_bytes:
        raise InvalidArgumentError(
            Reason.NOT_AUDIO,
            f"{field}: {len(audio.data)} bytes are not whole frames of {frame_bytes} bytes "
            f"({audio.channels} channel(s) of {audio.sample_type})",
        )
    _check_length(field, len(audio.data) // frame_bytes, audio.sample_rate, max_seconds)
    frames = np.frombuffer(audio.data, kind).reshape(-1, audio.channels)
    if audio.sample_type == "int16":
        return frames.mean(axis=1, dtype=np.float32) / np.float32(32768), audio.sample_rate, audio.channels
    with np.errstate(all="ignore"):  # what overflows here is refused as not finite
        return frames.mean(axis=1, dtype=np.float32), audio.sample_rate, audio.channels


def _check_form(rate_field: str, channels_field: str, rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidArgumentError(
            Reason.SAMPLE_RATE, f"{rate_field}: sample rate {rate} Hz; accepted are {MIN_RATE} to {MAX_RATE} Hz"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidArgumentError(
            Reason.CHANNELS, f"{channels_field}: {channels} channels; accepted are 1 to {MAX_CHANNELS}"
        )


def _check_length(field: str, frames: int, rate: int, max_seconds: float) -> None:
    if frames > max_seconds * rate:
        raise InvalidArgumentError(
            Reason.TOO_LONG,
            f"{field}: longer than {max_seconds:g} s, the most accepted ({frames / rate:.1f} s or more)",
        )


def _check_samples(field: str, mono: NDArray[np.float32], channels: int) -> None:
    if not len(mono):
        raise InvalidArgumentError(Reason.EMPTY, f"{field}: holds no samples")
    low, high = float(mono.min()), float(mono.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InvalidArgumentError(
            Reason.NOT_FINITE, f"{field}: holds NaN or infinite samples; every one must be finite"
        )
    peak = max(-low, high)
    if peak > MAX_PEAK:
        raise InvalidArgumentError(
            Reason.OUT_OF_SCALE,
            f"{field}: peak {peak:.4g}; full scale is 1.0, and at most {MAX_PEAK:g} is accepted "
            "(divide 16-bit values by 32768)",
        )
    if high - low < SILENT_RANGE:
        averaged = f" after averaging the {channels} channels" if channels > 1 else ""
        raise InvalidArgumentError(Reason.SILENT, f"{field}: silent{averaged}: no sound above one step of 16-bit audio")


def check_minimum(waveform: Waveform, min_samples: int) -> None:
    """Refuses audio shorter than `min_samples` at 16 kHz.

    Raises:
        InvalidArgumentError: naming how long the audio is and how long it must be.
    """
    if len(waveform.samples) < min_samples:
        raise InvalidArgumentError(
            Reason.TOO_SHORT,
            f"audio: {waveform.seconds:.3f} s long; the shortest accepted is {min_samples / MODEL_RATE:.3f} s",
        )
