"""Samples of any rate and number of channels to 16 kHz mono, checked: their types on the wire, form, length and values.

Silent audio, also with a constant offset, is refused: its scores would mean nothing.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.signatures import header_name, other_content

SAMPLE_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "int16": np.dtype("<i2"),
    "mulaw": np.dtype("u1"),
    "alaw": np.dtype("u1"),
}
MIN_RATE, MAX_RATE = 4_000, 192_000
MAX_CHANNELS = 8
# Float samples may exceed full scale a little; sixteen times is a wrong unit, and far more overflows the features.
MAX_PEAK = 16.0
# One step of 16-bit audio, peak to peak; less is silence.
SILENT_RANGE = 2.0**-15


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
        check_length(self._field, self._frames, self._rate, self._limit)
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


def check_length(field: str, frames: int, rate: int, limit: DurationLimit) -> None:
    """Check that audio of so many frames at a rate in Hz is not longer than the limit.

    Raises:
        InvalidArgumentError: it is longer; names its duration and the longest accepted.
    """
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


def floats(frames: NDArray[Any], sample_type: str) -> NDArray[np.float32]:
    """Return samples of one of `SAMPLE_TYPES` as float32 of the same shape, full scale 1.0."""
    if sample_type in LAWS:
        decoded: NDArray[np.float32] = LAWS[sample_type][frames]
        return decoded
    if sample_type == "int16":
        return frames.astype(np.float32) / np.float32(32768)
    return frames.astype(np.float32, copy=False)


def _mu_law() -> NDArray[np.float32]:
    """Return the samples of the 256 codes of ITU-T G.711 mu-law, full scale 1.0."""
    code = ~np.arange(256, dtype=np.uint8)
    size = (((code & 15).astype(np.int32) << 3) + 132 << (code >> 4 & 7)) - 132
    return (np.where(code & 128, -size, size) / 32768).astype(np.float32)


def _a_law() -> NDArray[np.float32]:
    """Return the samples of the 256 codes of ITU-T G.711 A-law, full scale 1.0."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    step, segment = (code & 15).astype(np.int32), (code >> 4 & 7).astype(np.int32)
    size = np.where(segment, (step << 4) + 264 << np.maximum(segment - 1, 0), (step << 4) + 8)
    return (np.where(code & 128, size, -size) / 32768).astype(np.float32)


LAWS = {"mulaw": _mu_law(), "alaw": _a_law()}
