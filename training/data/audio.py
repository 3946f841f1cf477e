"""Read and write audio files: every waveform in training is 16 kHz mono float32 in [-1, 1]."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speakerlens.containers import AudioFileError, checked_file
from speakerlens.training.data.packing import PACKED, from_pcm, packed_samples
from speakerlens.training.errors import UserError

SAMPLE_RATE = 16_000

_DATA_CUT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
"""How libsndfile logs a data chunk that is longer than the rest of the file; sizes in bytes."""
_STREAMED = 0x7FFF_0000
"""Declared sizes from here on mean "unknown": to a pipe ffmpeg writes 0xFFFFFFFF, sox 0x7FFFF000."""


def read_audio(
    path: Path, start: float = 0.0, duration: float | None = None, channel: int | None = None
) -> NDArray[np.float32]:
    """Return part of a file as 16 kHz mono: seek, average the channels, resample.

    Args:
        path: any file that libsndfile reads.
        start: first sample, in seconds.
        duration: seconds to read, or less where the file ends sooner; None reads to the end.
        channel: which channel to use; None averages all.

    Returns:
        Samples [N], float32 in [-1, 1]; N is round(`duration` x 16000) where the file is long enough.

    Raises:
        UserError: the file is missing, not audio, ends before `start`, or contains NaN or infinity.
    """
    try:
        if path.name == PACKED:
            return _packed_stretch(path, start, duration)
        with soundfile.SoundFile(checked_file(path)) as file:
            rate = file.samplerate
            first = round(start * rate)
            if first > file.frames:
                raise UserError(f"{path}: ends at {file.frames / rate:g} s, cannot be read from {start:g} s")
            file.seek(first)
            frames = -1 if duration is None else round(duration * rate)
            channels: NDArray[np.float32] = file.read(frames, dtype="float32", always_2d=True)
    except (AudioFileError, soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio ({_reason(error)})") from error
    samples = channels.mean(axis=1) if channel is None else np.ascontiguousarray(channels[:, channel])
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: contains NaN or infinity")
    if rate != SAMPLE_RATE:
        samples = np.asarray(soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)
        # The resampler may return one sample more or less than requested.
        if duration is not None:
            samples = samples[: round(duration * SAMPLE_RATE)]
    return samples


def read_sound(path: Path, start: float = 0.0, duration: float | None = None) -> NDArray[np.float32]:
    """Return part of a file as `read_audio` does, with its mean subtracted."""
    return without_offset(read_audio(path, start, duration))


def without_offset(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return samples [N] of speech or interference with their mean subtracted.

    Some recorders add a constant offset. It is inaudible and the front end removes it, but it would count as signal
    energy when an SNR is set. Impulse responses keep their mean: it is the room's response at 0 Hz.
    """
    return samples - samples.mean(dtype=np.float64).astype(np.float32) if len(samples) else samples


def _packed_stretch(path: Path, start: float, duration: float | None) -> NDArray[np.float32]:
    """Return a slice [N] of a packed corpus, which is mapped into memory."""
    samples = packed_samples(path, SAMPLE_RATE)
    first = round(start * SAMPLE_RATE)
    if first > len(samples):
        raise UserError(f"{path}: ends at {len(samples) / SAMPLE_RATE:g} s, cannot be read from {start:g} s")
    return from_pcm(samples[first:] if duration is None else samples[first : first + round(duration * SAMPLE_RATE)])


def write_audio(path: Path, samples: NDArray[np.float32]) -> None:
    """Write samples [N] as a 16 kHz 16-bit FLAC file, clipped to [-1, 1]; make its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


class AudioHeader(NamedTuple):
    """Format and length of a file.

    Attributes:
        rate: sampling rate in Hz.
        channels: how many.
        container, encoding: libsndfile's names, such as "OGG" and "VORBIS".
        seconds: length of the data that is there.
        promised: length by the header, in seconds; longer than `seconds` if a WAV file was cut short.
    """

    rate: int
    channels: int
    container: str
    encoding: str
    seconds: float
    promised: float

    @property
    def cut_short(self) -> bool:
        """Whether a WAV file has less data than its header says."""
        return self.promised > self.seconds


def audio_header(path: Path) -> AudioHeader:
    """Return a file's format and length without decoding it.

    Raises:
        UserError: the file is missing, not audio, or empty.
    """
    try:
        with soundfile.SoundFile(checked_file(path)) as file:
            frames = file.frames
            seconds = frames / file.samplerate
            promised = seconds * _promised_by_held(file)
            header = AudioHeader(file.samplerate, file.channels, file.format, file.subtype, seconds, promised)
    except (AudioFileError, soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio ({_reason(error)})") from error
    if frames <= 0:
        raise UserError(f"{path}: holds no audio")
    return header


def _promised_by_held(file: soundfile.SoundFile) -> float:
    """Return the declared size of a WAV file's data over its actual size; 1 for complete files and other formats.

    libsndfile reads truncated files without an error and only logs the difference.
    """
    match = _DATA_CUT.search(file.extra_info) if file.format in ("WAV", "WAVEX") else None
    if match is None or int(match[1]) >= _STREAMED:
        return 1.0
    return int(match[1]) / max(1, int(match[2]))


def is_silent(path: Path) -> bool:
    """Return whether all samples of a file are zero; decode up to the first that is not.

    Raises:
        UserError: the file is missing or not audio.
    """
    try:
        with soundfile.SoundFile(checked_file(path)) as file:
            return not any(block.any() for block in file.blocks(4096, dtype="float32"))
    except (AudioFileError, soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return libsndfile's message without the path."""
    text = getattr(error, "error_string", None) or str(error)
    return str(text).strip().rstrip(".")
