"""Bytes in, 16 kHz mono out, with every limit held before the memory is spent.

Decisions:

* Headers are checked first and then not believed: decoding goes block by block and stops at the limit.
* A file that ends early (a truncated WAV, an MP3 cut off) counts for what it holds, as libsndfile reads it; one whose
  decoder reports damage is refused, as nobody knows what the rest would have said.
* A WAV header that claims more than the file holds is read to the end of the file; one that claims less is believed.
* Clipping is looked for before channels are averaged and the rate is changed, which take the flat tops away.
* Audio without any sound, which includes a constant offset, is refused: scores for it would be invented.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from speakerlens.measures.sound import clipped_share
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.errors import InvalidArgumentError, Reason

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
class DurationLimit:
    """The most seconds of audio accepted, and of what, such as ` of an explained request`."""

    seconds: float
    what: str = ""


@dataclass(frozen=True)
class AudioInfo:
    """Duration in seconds, rate in Hz and number of channels, as received.

    `clipped_share` is the share of its samples that were cut off; None where that can still be told of what it was
    decoded to, as nothing was averaged or resampled, or where nobody looked, as in live audio.
    """

    seconds: float
    sample_rate: int
    channels: int
    clipped_share: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Waveform:
    """Decoded audio: float32 [samples], mono at 16 kHz, full scale 1.0; and what it was received as."""

    samples: NDArray[np.float32]
    info: AudioInfo


class Intake:
    """Frames of one recording in, block by block; checked, averaged over channels and resampled to 16 kHz out.

    What comes out does not depend on how the frames were cut into blocks, and no block is kept.

    Args:
        field: what messages name.
        sample_rate: Hz, of what is fed.
        channels: of what is fed.
        longest: the longest recording accepted.
    """

    def __init__(self, field: str, sample_rate: int, channels: int, longest: DurationLimit) -> None:
        self._field = field
        self._rate = sample_rate
        self._channels = channels
        self._longest = longest
        self._frames = 0
        self._low, self._high = np.inf, -np.inf
        self._resampler = (
            None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        )

    @property
    def info(self) -> AudioInfo:
        """What has come in so far."""
        return AudioInfo(self._frames / self._rate, self._rate, self._channels)

    def feed(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """The samples at 16 kHz that frames [frames, channels] give rise to; some come with later frames.

        Raises:
            InvalidArgumentError: NaN or infinite samples, samples out of scale, or more seconds than accepted.
        """
        self._frames += len(frames)
        _check_length(self._field, self._frames, self._rate, self._longest)
        if not len(frames):
            return np.empty(0, np.float32)
        with np.errstate(all="ignore"):  # what overflows here is refused as not finite
            mono: NDArray[np.float32] = frames.mean(axis=1, dtype=np.float32)
        self._check(mono)
        return mono if self._resampler is None else self._resampler.resample_chunk(mono)

    def finish(self) -> NDArray[np.float32]:
        """The samples that were still to come.

        Raises:
            InvalidArgumentError: nothing came in, or nothing but silence.
        """
        if not self._frames:
            raise InvalidArgumentError(Reason.EMPTY, f"{self._field}: holds no samples")
        if self._high - self._low < SILENT_RANGE:
            averaged = f" after averaging the {self._channels} channels" if self._channels > 1 else ""
            raise InvalidArgumentError(
                Reason.SILENT, f"{self._field}: silent{averaged}: no sound above one step of 16-bit audio"
            )
        nothing = np.empty(0, np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, last=True)

    def _check(self, mono: NDArray[np.float32]) -> None:
        low, high = float(mono.min()), float(mono.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise InvalidArgumentError(
                Reason.NOT_FINITE, f"{self._field}: holds NaN or infinite samples; every one must be finite"
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        peak = max(-low, high)
        if peak > MAX_PEAK:
            raise InvalidArgumentError(
                Reason.OUT_OF_SCALE,
                f"{self._field}: peak {peak:.4g}; full scale is 1.0, and at most {MAX_PEAK:g} is accepted "
                "(divide 16-bit values by 32768)",
            )


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


class Recording:
    """A recording that is decoded a block at a time; iterate over it once for its samples at 16 kHz.

    Args:
        audio: the whole of it, as received.
        longest: the longest accepted.

    Raises:
        InvalidArgumentError: not audio, empty, too long by what it says itself, or of a rate or a number of channels
            that is not accepted. Iterating finds what is wrong inside: damage, NaN, silence, too long in fact.
    """

    def __init__(self, audio: EncodedAudio | RawAudio, longest: DurationLimit) -> None:
        if isinstance(audio, EncodedAudio):
            file = _open(audio.data, longest)
            self._blocks = _file_blocks(file)
            self._intake = Intake("audio.encoded", file.samplerate, file.channels, longest)
        else:
            frames = _raw_frames(audio, longest)
            self._blocks = _raw_blocks(frames)
            self._intake = Intake("audio.raw.samples", audio.sample_rate, audio.channels, longest)
        info = self._intake.info
        self._alters = (info.sample_rate, info.channels) != (SAMPLE_RATE, 1)
        self._clipped = 0.0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for block in self._blocks:
            samples = self._intake.feed(block)
            if self._alters:
                self._clipped += _clipped(block)
            yield samples
        yield self._intake.finish()

    @property
    def info(self) -> AudioInfo:
        """What has been decoded so far."""
        info = self._intake.info
        if not self._alters:
            return info
        return replace(info, clipped_share=self._clipped / max(1.0, info.seconds * info.sample_rate))


def decode(audio: EncodedAudio | RawAudio, longest: DurationLimit) -> Waveform:
    """Decodes, checks, averages the channels and resamples to 16 kHz, all at once.

    Raises:
        InvalidArgumentError: as `Recording` and iterating over it. How short is too short is the models' matter.
    """
    recording = Recording(audio, longest)
    return Waveform(np.concatenate(list(recording)), recording.info)


def floats(frames: NDArray[Any]) -> NDArray[np.float32]:
    """Samples of one of `SAMPLE_TYPES` as float32, full scale 1.0."""
    if frames.dtype == SAMPLE_TYPES["int16"]:
        return frames.astype(np.float32) / np.float32(32768)
    return frames.astype(np.float32, copy=False)


def _open(data: bytes, longest: DurationLimit) -> sf.SoundFile:
    field = "audio.encoded"
    if not data:
        raise InvalidArgumentError(Reason.EMPTY, f"{field}: empty; send a whole audio file")
    try:
        file = _Stream(_File(data))
    except sf.LibsndfileError as error:
        raise InvalidArgumentError(
            Reason.NOT_AUDIO, f"{field}: not a file that libsndfile reads (WAV, FLAC, OGG, MP3 …): {error.error_string}"
        ) from error
    check_form(field, field, file.samplerate, file.channels)
    if file.frames < UNKNOWN_FRAMES:
        _check_length(field, file.frames, file.samplerate, longest)
    return file


def _file_blocks(file: sf.SoundFile) -> Iterator[NDArray[np.float32]]:
    """Frames [frames, channels]; never holds more than a block of what the file unpacks to."""
    frames = 0
    with file:
        while True:
            try:
                block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            except sf.LibsndfileError as error:
                raise InvalidArgumentError(
                    Reason.NOT_AUDIO,
                    f"audio.encoded: damaged {file.format} after {frames / file.samplerate:.2f} s: "
                    f"{error.error_string}",
                ) from error
            if not len(block):
                return
            frames += len(block)
            yield block


def _raw_frames(audio: RawAudio, longest: DurationLimit) -> NDArray[Any]:
    """The frames [frames, channels] of samples that are there already, of their own type."""
    field, kind = "audio.raw.samples", SAMPLE_TYPES[audio.sample_type]
    check_form("audio.raw.sample_rate", "audio.raw.channels", audio.sample_rate, audio.channels)
    frame_bytes = kind.itemsize * audio.channels
    if not audio.data:
        raise InvalidArgumentError(Reason.EMPTY, f"{field}: empty; send interleaved {audio.sample_type} samples")
    if len(audio.data) % frame_bytes:
        raise InvalidArgumentError(
            Reason.NOT_AUDIO,
            f"{field}: {len(audio.data)} bytes are not whole frames of {frame_bytes} bytes "
            f"({audio.channels} channel(s) of {audio.sample_type})",
        )
    _check_length(field, len(audio.data) // frame_bytes, audio.sample_rate, longest)
    return np.frombuffer(audio.data, kind).reshape(-1, audio.channels)


def _clipped(frames: NDArray[np.float32]) -> float:
    """How many of the frames [frames, channels] were cut off, in the mean over the channels."""
    columns = np.ascontiguousarray(frames.T)
    return len(frames) * sum(clipped_share(column) for column in columns) / len(columns)


def _raw_blocks(frames: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(frames), BLOCK_FRAMES):
        yield floats(frames[start : start + BLOCK_FRAMES])


def check_form(rate_field: str, channels_field: str, rate: int, channels: int) -> None:
    """Refuses a rate in Hz or a number of channels that is not accepted.

    Raises:
        InvalidArgumentError: naming the field and the limits.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidArgumentError(
            Reason.SAMPLE_RATE, f"{rate_field}: sample rate {rate} Hz; accepted are {MIN_RATE} to {MAX_RATE} Hz"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidArgumentError(
            Reason.CHANNELS, f"{channels_field}: {channels} channels; accepted are 1 to {MAX_CHANNELS}"
        )


def _check_length(field: str, frames: int, rate: int, longest: DurationLimit) -> None:
    if frames > longest.seconds * rate:
        raise InvalidArgumentError(
            Reason.TOO_LONG,
            f"{field}: longer than {longest.seconds:g} s, the most accepted{longest.what} "
            f"({frames / rate:.1f} s or more)",
        )


def check_minimum(info: AudioInfo, samples: int, min_samples: int) -> None:
    """Refuses audio of fewer `samples` at 16 kHz than `min_samples`.

    Raises:
        InvalidArgumentError: naming how long the audio is and how long it must be.
    """
    if samples < min_samples:
        raise InvalidArgumentError(
            Reason.TOO_SHORT,
            f"audio: {info.seconds:.3f} s long; the shortest accepted is {min_samples / SAMPLE_RATE:.3f} s",
        )
