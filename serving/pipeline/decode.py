"""Decode audio to 16 kHz mono, block by block, with every limit enforced before the memory is used.

* The container is recognised and its structure checked first; codecs run in processes of their own, which are ended
  when a file takes too long (`speakerlens.decoding`).
* A header's length is checked first and then not trusted: decoding stops at the limit.
* A file that ends early (a truncated WAV or MP3) counts for what it holds; one whose decoder reports damage is refused.
* A WAV file whose header claims more than it holds is read to its end; one whose header claims less, to that length.
* Clipping is measured before channels are averaged and the rate is changed, which remove the flat tops.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.decoding import AudioFileError, AudioReader, DecoderStoppedError, open_audio
from speakerlens.measures.sound import clipped_share
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.errors import DeadlineError, InvalidArgumentError, Reason, RequestError, ResourceExhaustedError
from speakerlens.serving.pipeline.samples import (
    SAMPLE_TYPES,
    AudioInfo,
    DurationLimit,
    Intake,
    check_form,
    check_length,
    check_no_header,
    floats,
)
from speakerlens.signatures import HEADER_BYTES

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
class Waveform:
    """Decoded audio, float32 [samples], mono at 16 kHz, full scale 1.0, and its format as received."""

    samples: NDArray[np.float32]
    info: AudioInfo


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
            check_length(field, file.frames, file.rate, limit)
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
    check_length(field, len(audio.data) // frame_bytes, audio.sample_rate, limit)
    return np.frombuffer(audio.data, kind).reshape(-1, audio.channels)


def _clipped(frames: NDArray[np.float32]) -> float:
    """Return the number of clipped frames of frames [frames, channels], in the mean over the channels."""
    columns = np.ascontiguousarray(frames.T)
    return len(frames) * sum(clipped_share(column) for column in columns) / len(columns)


def _raw_blocks(frames: NDArray[Any], sample_type: str) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(frames), BLOCK_FRAMES):
        yield floats(frames[start : start + BLOCK_FRAMES], sample_type)
