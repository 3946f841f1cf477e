"""Audio files in and out: every waveform in training is 16 kHz mono float32 in [-1, 1]."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speakerlens.training.data.packing import PACKED, from_pcm, packed_samples
from speakerlens.training.errors import UserError

SAMPLE_RATE = 16_000

_DATA_CUT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
"""How libsndfile notes down that a data chunk is longer than what is left of the file, in bytes."""
_STREAMED = 0x7FFF_0000
"""From here on, a declared size stands for one that was unknown: ffmpeg writes 0xFFFFFFFF to a pipe, sox 0x7FFFF000."""


def read_audio(
    path: Path, start: float = 0.0, duration: float | None = None, channel: int | None = None
) -> NDArray[np.float32]:
    """Read a stretch of a file as 16 kHz mono: seeks, averages the channels, resamples.

    Args:
        path: any file that libsndfile reads.
        start: where to begin, in seconds.
        duration: seconds to read; None reads to the end. A file that ends sooner gives what it has.
        channel: the one to take; None takes the mean of all.

    Returns:
        The samples [N] in [-1, 1]; N is `duration` x 16000, rounded, where the file is long enough.

    Raises:
        UserError: the file is missing, not audio, ends before `start`, or holds NaN or infinity.
    """
    try:
        if path.name == PACKED:
            return _packed_stretch(path, start, duration)
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            first = round(start * rate)
            if first > file.frames:
                raise UserError(f"{path}: ends at {file.frames / rate:g} s, but is to be read from {start:g} s")
            file.seek(first)
            frames = -1 if duration is None else round(duration * rate)
            channels: NDArray[np.float32] = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio ({_reason(error)})") from error
    samples = channels.mean(axis=1) if channel is None else np.ascontiguousarray(channels[:, channel])
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are NaN or infinite")
    if rate != SAMPLE_RATE:
        samples = np.asarray(soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)
        # The resampler may give one sample more or less than the stretch that was asked for.
        if duration is not None:
            samples = samples[: round(duration * SAMPLE_RATE)]
    return samples


def read_sound(path: Path, start: float = 0.0, duration: float | None = None) -> NDArray[np.float32]:
    """Read an utterance, or a stretch of one, as `read_audio` does, without its constant offset."""
    return without_offset(read_audio(path, start, duration))


def without_offset(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the mean from samples [N] of speech or interference.

    Some recorders add a constant that nobody hears and that the front end takes from every frame. Left in, it would
    count as energy of the speech wherever a signal-to-noise ratio is set. Impulse responses keep theirs: it is what the
    room does to the lowest frequencies.
    """
    return samples - samples.mean(dtype=np.float64).astype(np.float32) if len(samples) else samples


def _packed_stretch(path: Path, start: float, duration: float | None) -> NDArray[np.float32]:
    """Read a stretch of a packed corpus: a slice of what is mapped into memory already."""
    samples = packed_samples(path, SAMPLE_RATE)
    first = round(start * SAMPLE_RATE)
    if first > len(samples):
        raise UserError(f"{path}: ends at {len(samples) / SAMPLE_RATE:g} s, but is to be read from {start:g} s")
    return from_pcm(samples[first:] if duration is None else samples[first : first + round(duration * SAMPLE_RATE)])


def write_audio(path: Path, samples: NDArray[np.float32]) -> None:
    """Write samples [N] in [-1, 1] as a 16 kHz 16-bit FLAC file, with its folders; louder samples are clipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


class AudioHeader(NamedTuple):
    """What a file says about itself.

    Attributes:
        rate: samples a second.
        channels: how many.
        container, encoding: as libsndfile names them, such as "OGG" and "VORBIS".
        seconds: how long what can be read of it lasts.
        promised: how long it lasts by its header, in seconds: above `seconds` if a WAV file was cut short.
    """

    rate: int
    channels: int
    container: str
    encoding: str
    seconds: float
    promised: float

    @property
    def cut_short(self) -> bool:
        """Whether a WAV file holds less than its header says."""
        return self.promised > self.seconds


def audio_header(path: Path) -> AudioHeader:
    """Read what a file says about itself, without decoding it.

    Raises:
        UserError: the file is missing, not audio, or empty.
    """
    try:
        with soundfile.SoundFile(path) as file:
            frames = file.frames
            seconds = frames / file.samplerate
            promised = seconds * _promised_by_held(file)
            header = AudioHeader(file.samplerate, file.channels, file.format, file.subtype, seconds, promised)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio ({_reason(error)})") from error
    if frames <= 0:
        raise UserError(f"{path}: holds no audio")
    return header


def _promised_by_held(file: soundfile.SoundFile) -> float:
    """Divide the declared size of a WAV file's data by what is there; 1 if it is whole, or no such file.

    libsndfile reads what is there without a complaint, but for what it notes down.
    """
    match = _DATA_CUT.search(file.extra_info) if file.format in ("WAV", "WAVEX") else None
    if match is None or int(match[1]) >= _STREAMED:
        return 1.0
    return int(match[1]) / max(1, int(match[2]))


def is_silent(path: Path) -> bool:
    """Whether a file holds nothing but zeros; decodes it up to the first sample that is not one.

    Raises:
        UserError: the file is missing or not audio.
    """
    try:
        with soundfile.SoundFile(path) as file:
            return not any(block.any() for block in file.blocks(4096, dtype="float32"))
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: cannot be read as audio ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Give what libsndfile says, without the path that it repeats."""
    text = getattr(error, "error_string", None) or str(error)
    return str(text).strip().rstrip(".")
