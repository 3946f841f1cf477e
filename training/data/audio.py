"""Read and write audio files: every waveform in training is 16 kHz mono float32 in [-1, 1]."""

import contextlib
import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speakerlens.decoding import AudioFileError, AudioReader, StepLimits, open_audio
from speakerlens.training.data.packing import PACKED, from_pcm, packed_samples
from speakerlens.training.data.wholeness import fault
from speakerlens.training.errors import UserError

SAMPLE_RATE = 16_000

_BLOCK = 16_384
_LIMITS = StepLimits(cpu_seconds=20.0, wall_seconds=120.0)
"""Of one step of a decoder: files here may be hours long, and in some formats a seek decodes from the beginning."""


def read_audio(
    path: Path, start: float = 0.0, duration: float | None = None, channel: int | None = None
) -> NDArray[np.float32]:
    """Return part of a file as 16 kHz mono: seek, average the channels, resample.

    Args:
        path: any file of a format that is read (docs/formats.md).
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
        with open_audio(path, _LIMITS) as file:
            rate = file.rate
            first = round(start * rate)
            if file.frames is not None and first > file.frames:
                raise UserError(f"{path}: ends at {file.frames / rate:g} s, cannot be read from {start:g} s")
            if first:
                file.seek(first)
            channels = file.read(None if duration is None else round(duration * rate))
    except (AudioFileError, OSError) as error:
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


class AudioFacts(NamedTuple):
    """What reading a whole file once has shown.

    Attributes:
        rate: sampling rate in Hz.
        channels: how many.
        container, encoding: such as "OGG" and "VORBIS".
        seconds: length of what can be decoded.
        promised: length by the header in seconds, or `seconds` where the header does not state it.
        stated: whether the header states the length.
        peak: largest magnitude of the mean of all channels, or of the chosen channel.
        digest: of the decoded samples, rate and channels; equal for files of the same content.
    """

    rate: int
    channels: int
    container: str
    encoding: str
    seconds: float
    promised: float
    stated: bool
    peak: float
    digest: bytes

    @property
    def cut_short(self) -> bool:
        """Whether there is less than the header says."""
        return self.promised > self.seconds


def measure_audio(path: Path, channel: int | None = None) -> AudioFacts:
    """Decode a whole file, block by block, and return its form and measured length.

    Raises:
        UserError: the file is missing, not audio, empty, damaged, holds NaN or infinity, or lacks the channel.
    """
    frames, peak = 0, 0.0
    try:
        with open_audio(path, _LIMITS) as file:
            if reason := _structural_fault(path, file.container):
                raise UserError(f"{path}: {reason}")
            if channel is not None and channel >= file.channels:
                raise UserError(f"{path}: has {file.channels} channel(s), and channel {channel + 1} is wanted")
            form = (file.rate, file.channels, file.container, file.encoding)
            digest = hashlib.blake2b(repr(form[:2]).encode(), digest_size=16)
            for block in _blocks(file, path):
                frames += len(block)
                digest.update(block.data)
                with np.errstate(all="ignore"):  # what overflows is refused as not finite
                    heard = np.abs(block.mean(axis=1) if channel is None else block[:, channel]).max()
                if not np.isfinite(heard):
                    raise UserError(f"{path}: contains NaN or infinity")
                peak = max(peak, float(heard))
    except (AudioFileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio ({_reason(error)})") from error
    if not frames:
        raise UserError(f"{path}: holds no audio")
    promised = frames + file.missing_frames
    if file.frames is not None and form[2] == "FLAC":  # whose length counts samples; others round it, or estimate it
        promised = file.frames
    stated = file.frames is not None
    return AudioFacts(*form, frames / form[0], promised / form[0], stated, peak, digest.digest())


def _structural_fault(path: Path, container: str) -> str | None:
    with (
        contextlib.suppress(OSError, ValueError),  # of pipes, and file systems that map no files
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        return fault(data, container)
    return None


def _blocks(file: AudioReader, path: Path) -> Iterator[NDArray[np.float32]]:
    """Yield the frames of a file to its end, float32 [frames, channels]."""
    frames = 0
    try:
        for block in file.blocks(_BLOCK):
            frames += len(block)
            yield block
    except AudioFileError as error:
        decoded = f"{frames / file.rate:.1f} s" + (f" of {file.frames / file.rate:.2f} s" if file.frames else "")
        raise UserError(
            f"{path}: damaged or cut short: {file.container} that can be decoded up to {decoded} ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    """Return the message without the path."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.strip().rstrip(".")
