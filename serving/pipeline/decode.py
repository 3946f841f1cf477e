"""Decode audio to 16 kHz mono, block by block, with every limit enforced before the memory is used.

* The container is recognised and its structure checked first; codecs run in processes of their own, which are ended
  when a file takes too long (`speakerlens.decoding`).
* A header's length is checked first and then not trusted: decoding stops at the limit.
* A file that ends early (a truncated WAV or MP3) counts for what it holds; one whose decoder reports damage is refused.
* A WAV header that claims more than the file holds is read to the end of the file; one that claims less is believed.
* Clipping is measured before channels are averaged and the rate is changed, which remove the flat tops.
* Silent audio, also with a constant offset, is refused: its scores would mean nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from speakerlens.decoding import AudioFileError, AudioReader, DecoderStoppedError, open_audio
from speakerlens.measures.evidence import Evidence
from speakerlens.measures.sound import clipped_share
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.errors import DeadlineError, InvalidArgumentError, Reason, RequestError, ResourceExhaustedError
from speakerlens.serving.pipeline.samples import SAMPLE_TYPES, floats
from speakerlens.signatures import HEADER_BYTES, header_name, other_content

MIN_RATE, MAX_RATE = 4_000, 192_000
MAX_CHANNELS = 8
# Float samples may exceed full scale a little; sixteen times is a wrong unit, and far more overflows the features.
MAX_PEAK = 16.0
# One step of 16-bit audio, peak to peak; less is silence.
SILENT_RANGE = 2.0**-15
BLOCK_FRAMES = 65_536
# Rate x channels x seconds: three hours at 48 kHz, one channel. A FLAC of silence holds more in every byte than audio.
MAX_DECODED_SAMPLES = 2**29


@dataclass(frozen=True)
class EncodedAudio:
    """A whole audio file; `channel` is the one to use, from 0, None for the mean of all."""

    data: bytes
    channel: int | None = None


@dataclass(frozen=True)
class RawAudio:
    """Interleaved samples; `sample_type` is a key of SAMPLE_TYPES, `sample_rate` is in Hz, `channel` as of a file."""

    data: bytes
    sample_type: str
    sample_rate: int
    channels: int
    channel: int | None = None


@dataclass(frozen=True)
class DurationLimit:
    """The longest audio accepted, in seconds; `what` ends the message, such as ` where maps are asked for`."""

    seconds: float
    what: str = ""


@dataclass(frozen=True)
class AudioInfo:
    """Format of audio as received.

    Attributes:
        seconds: duration.
        sample_rate: in Hz.
        channels: number of channels.
        clipped_share: share of clipped samples, 0 to 1; None if the decoded samples still show it, as nothing was
            averaged or resampled, and for streams, where it is not measured.
        speech: whether any window holds speech; None until that is known.
        channel: the one that is used, from 0; None for the mean of all.
        bandwidth_hz: up to where the sound reaches; None until that is known.
        evidence: what an answer rests on; None until that is known.
    """

    seconds: float
    sample_rate: int
    channels: int
    clipped_share: float | None = field(default=None, compare=False)
    speech: bool | None = field(default=None, compare=False)
    channel: int | None = None
    bandwidth_hz: float | None = field(default=None, compare=False)
    evidence: Evidence | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Waveform:
    """Decoded audio, float32 [samples], mono at 16 kHz, full scale 1.0, and its format as received."""

    samples: NDArray[np.float32]
    info: AudioInfo


class Intake:
    """Check frames block by block, average their channels and resample them to 16 kHz.

    The output does not depend on how the frames are cut into blocks; no block is kept.

    Args:
        field: of the request, for error messages.
        sample_rate: of the frames, in Hz.
        channels: of the frames.
        limit: the longest audio accepted.
        channel: the one to use, from 0; None for the mean of all.

    Raises:
        InvalidArgumentError: there is no such channel.
    """

    def __init__(
        self, field: str, sample_rate: int, channels: int, limit: DurationLimit, channel: int | None = None
    ) -> None:
        if channel is not None and channel >= channels:
            has = "one channel" if channels == 1 else f"{channels} channels"
            raise InvalidArgumentError(
                Reason.CHANNELS, f"{field}: channel {channel + 1} is asked for, and it has {has}"
            )
        self._channel = channel
        self._field = field
        self._rate = sample_rate
        self._channels = channels
        self._limit = limit
        self._frames = 0
        self._low, self._high = np.inf, -np.inf
        self._resampler = (
            None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        )

    @property
    def info(self) -> AudioInfo:
        """Return the format and the duration so far."""
        return AudioInfo(self._frames / self._rate, self._rate, self._channels, channel=self._channel)

    def feed(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the samples, float32 [n] at 16 kHz, of frames, float32 [frames, channels]; some lag behind.

        Raises:
            InvalidArgumentError: NaN or infinite samples, samples out of scale, or audio above the limit.
        """
        self._frames += len(frames)
        _check_length(self._field, self._frames, self._rate, self._limit)
        if not len(frames):
            return np.empty(0, np.float32)
        mono = self._mono(self.chosen(frames))
        self._check(mono)
        return mono if self._resampler is None else self._resampler.resample_chunk(mono)

    def _mono(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean of the channels, [frames]; of a single one its samples, which are not copied."""
        if frames.shape[1] == 1:
            return frames[:, 0]
        with np.errstate(all="ignore"):  # what overflows is refused as not finite
            mean: NDArray[np.float32] = frames.mean(axis=1, dtype=np.float32)
        return mean

    def chosen(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the channels that are used of frames [frames, channels]: all, or the chosen one [frames, 1]."""
        return frames if self._channel is None else frames[:, self._channel : self._channel + 1]

    def finish(self) -> NDArray[np.float32]:
        """Return the samples that were still behind, float32 [n].

        Raises:
            InvalidArgumentError: there were no frames, or they are silent.
        """
        if not self._frames:
            raise InvalidArgumentError(Reason.EMPTY, f"{self._field}: holds no samples")
        if self._high - self._low < SILENT_RANGE:
            averaged = f" after averaging the {self._channels} channels" if self._channels > 1 else ""
            if self._channel is not None:
                averaged = f" in channel {self._channel + 1}"
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


class Recording:
    """A recording that is decoded block by block; iterate over it once for its samples, float32 at 16 kHz.

    Args:
        audio: as received.
        limit: the longest accepted.
        field: of the request, for error messages.
        deadline: of the request, on the clock of `time.monotonic`.

    Raises:
        InvalidArgumentError: not audio, empty, too long by its header, or a rate or a number of channels that is not
            accepted. Iterating raises it for damage, NaN, silence and audio that is in fact too long.
        DeadlineError: the deadline has passed while a decoder was at work.
        ResourceExhaustedError: the system has no memory or no process left for decoding.
    """

    def __init__(
        self,
        audio: EncodedAudio | RawAudio,
        limit: DurationLimit,
        field: str = "audio",
        deadline: float | None = None,
    ) -> None:
        if isinstance(audio, EncodedAudio):
            field = f"{field}.encoded"
            file = _open(audio.data, limit, field, deadline)
            self._blocks = _file_blocks(file, field)
            self._intake = Intake(field, file.rate, file.channels, limit, audio.channel)
        else:
            frames = _raw_frames(audio, limit, f"{field}.raw")
            self._blocks = _raw_blocks(frames, audio.sample_type)
            self._intake = Intake(f"{field}.raw.samples", audio.sample_rate, audio.channels, limit, audio.channel)
        self._alters = (self._intake.info.sample_rate, self._intake.info.channels) != (SAMPLE_RATE, 1)
        self._clipped = 0.0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for block in self._blocks:
            samples = self._intake.feed(block)
            if self._alters:
                self._clipped += _clipped(self._intake.chosen(block))
            yield samples
        yield self._intake.finish()

    @property
    def info(self) -> AudioInfo:
        """Return the format and what has been decoded so far."""
        info = self._intake.info
        clipped_share = self._clipped / max(1.0, info.seconds * info.sample_rate) if self._alters else None
        return replace(info, clipped_share=clipped_share)


def decode(audio: EncodedAudio | RawAudio, limit: DurationLimit) -> Waveform:
    """Decode a whole recording: check it, average its channels and resample it to 16 kHz.

    Raises:
        InvalidArgumentError: as for `Recording` and its iteration. The shortest length is up to the model.
    """
    recording = Recording(audio, limit)
    return Waveform(np.concatenate(list(recording)), recording.info)


def checked_samples(samples: NDArray[np.float32], limit: DurationLimit, field: str) -> Waveform:
    """Check decoded samples, float32 [n] at 16 kHz, as `Recording` does, and return a copy.

    Raises:
        InvalidArgumentError: NaN or infinite samples, samples out of scale, silence, or audio above the limit.
    """
    intake = Intake(field, SAMPLE_RATE, 1, limit)
    blocks = [intake.feed(block) for block in _raw_blocks(samples.reshape(-1, 1), "float32")]
    return Waveform(np.concatenate([*blocks, intake.finish()]), intake.info)


def _open(data: bytes, limit: DurationLimit, field: str, deadline: float | None) -> AudioReader:
    if not data:
        raise InvalidArgumentError(Reason.EMPTY, f"{field}: empty; send a whole audio file")
    try:
        file = open_audio(data, deadline=deadline, expected=BLOCK_FRAMES)
    except AudioFileError as error:
        raise _refused(error, field) from error
    except OSError as error:
        raise ResourceExhaustedError(Reason.MEMORY, f"{field}: no process is left to decode it; {error}") from error
    try:
        check_form(field, field, file.rate, file.channels)
        if file.frames is not None:
            _check_length(field, file.frames, file.rate, limit)
            _check_size(field, file.frames, file)
    except InvalidArgumentError:
        file.close()
        raise
    return file


def _file_blocks(file: AudioReader, field: str) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of frames, float32 [frames, channels]."""
    frames = 0
    with file:
        try:
            for block in file.blocks(BLOCK_FRAMES):
                frames += len(block)
                _check_size(field, frames, file)
                yield block
        except AudioFileError as error:
            raise _refused(error, field) from error


def _check_size(field: str, frames: int, file: AudioReader) -> None:
    if frames * file.channels > MAX_DECODED_SAMPLES:
        most = MAX_DECODED_SAMPLES // (file.rate * file.channels)
        raise InvalidArgumentError(
            Reason.TOO_LONG,
            f"{field}: {frames / file.rate:.1f} s of {file.channels} channel(s) at {file.rate} Hz; at most {most} s "
            f"of this form are accepted ({MAX_DECODED_SAMPLES:,} samples, all channels together)",
        )


def _refused(error: AudioFileError, field: str) -> RequestError:
    """Return the error of a request whose file is not decoded."""
    reason = error.reason if isinstance(error, DecoderStoppedError) else None
    if reason == "deadline":
        return DeadlineError(Reason.DEADLINE, f"{field}: {error}")
    if reason == "memory":
        return ResourceExhaustedError(Reason.MEMORY, f"{field}: {error}")
    return InvalidArgumentError(Reason.NOT_AUDIO, f"{field}: {error}")


def _raw_frames(audio: RawAudio, limit: DurationLimit, parent: str) -> NDArray[Any]:
    """Return raw samples as frames [frames, channels] of their own type, without copying them."""
    field, kind = f"{parent}.samples", SAMPLE_TYPES[audio.sample_type]
    check_form(f"{parent}.sample_rate", f"{parent}.channels", audio.sample_rate, audio.channels)
    frame_bytes = kind.itemsize * audio.channels
    if not audio.data:
        raise InvalidArgumentError(Reason.EMPTY, f"{field}: empty; send interleaved {audio.sample_type} samples")
    check_no_header(field, audio.data[:HEADER_BYTES])
    if len(audio.data) % frame_bytes:
        raise InvalidArgumentError(
            Reason.NOT_AUDIO,
            f"{field}: {len(audio.data)} bytes are not whole frames of {frame_bytes} bytes "
            f"({audio.channels} channel(s) of {audio.sample_type})",
        )
    _check_length(field, len(audio.data) // frame_bytes, audio.sample_rate, limit)
    return np.frombuffer(audio.data, kind).reshape(-1, audio.channels)


def _clipped(frames: NDArray[np.float32]) -> float:
    """Return the number of clipped frames of frames [frames, channels], in the mean over the channels."""
    columns = np.ascontiguousarray(frames.T)
    return len(frames) * sum(clipped_share(column) for column in columns) / len(columns)


def _raw_blocks(frames: NDArray[Any], sample_type: str) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(frames), BLOCK_FRAMES):
        yield floats(frames[start : start + BLOCK_FRAMES], sample_type)


def check_form(rate_field: str, channels_field: str, rate: int, channels: int) -> None:
    """Check a sample rate in Hz and a number of channels.

    Raises:
        InvalidArgumentError: one of them is not accepted; names the field and the limits.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidArgumentError(
            Reason.SAMPLE_RATE, f"{rate_field}: sample rate {rate} Hz; accepted are {MIN_RATE} to {MAX_RATE} Hz"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidArgumentError(
            Reason.CHANNELS, f"{channels_field}: {channels} channels; accepted are 1 to {MAX_CHANNELS}"
        )


def check_no_header(field: str, start: bytes) -> None:
    """Check that raw samples do not begin with the header of a file, which would be decoded as noise.

    Args:
        field: of the request.
        start: the first HEADER_BYTES bytes, or all if there are fewer.

    Raises:
        InvalidArgumentError: they do; names the container.
    """
    if name := header_name(start):
        raise InvalidArgumentError(
            Reason.NOT_AUDIO, f"{field}: a whole {name} file, where samples without a header are expected"
        )
    if content := other_content(start):
        raise InvalidArgumentError(Reason.NOT_AUDIO, f"{field}: {content}")


def _check_length(field: str, frames: int, rate: int, limit: DurationLimit) -> None:
    if frames > limit.seconds * rate:
        raise InvalidArgumentError(
            Reason.TOO_LONG,
            f"{field}: longer than {limit.seconds:g} s, the most accepted{limit.what} ({frames / rate:.1f} s or more)",
        )


def check_minimum(info: AudioInfo, samples: int, min_samples: int, field: str = "audio") -> None:
    """Check that audio has at least `min_samples` samples at 16 kHz.

    Raises:
        InvalidArgumentError: it is shorter; names its duration and the shortest accepted.
    """
    if samples < min_samples:
        raise InvalidArgumentError(
            Reason.TOO_SHORT,
            f"{field}: {info.seconds:.3f} s long; the shortest accepted is {min_samples / SAMPLE_RATE:.3f} s",
        )
