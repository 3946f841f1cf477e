"""Crops of speech: read by seeking, or cut from clips cached in memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, without_offset
from speakerlens.training.data.manifest import Clip
from speakerlens.training.data.packing import PACKED, from_pcm, to_pcm
from speakerlens.training.data.perturbation import change_speed, samples_at_speed
from speakerlens.training.errors import UserError

_MEGABYTE = 1 << 20


class CropReader:
    """Reads crops of one length; thread-safe.

    Seeking in a FLAC file costs about a millisecond per crop. Clips that need at most `cache_megabytes` in all are
    therefore decoded once, when first used, and cached as 16-bit samples. Either all are cached or none, so that a crop
    depends on the configuration and not on earlier reads. Crops of 16 kHz, 16-bit files are the same either way; cached
    clips of other files are rounded to 16 bits and resampled as a whole.

    Args:
        clips: the clips that crops will be read from.
        samples: length of every crop.
        cache_megabytes: largest cache, in MiB; 0 disables it.
    """

    def __init__(self, clips: Sequence[Clip], samples: int, cache_megabytes: float) -> None:
        self._samples = samples
        needed = sum(2 * round(clip.duration * SAMPLE_RATE) for clip in clips)
        packed = all(clip.path.name == PACKED for clip in clips)  # cached by the operating system
        fits = needed <= cache_megabytes * _MEGABYTE
        self._cached: dict[Clip, NDArray[np.int16]] | None = {} if fits and not packed else None

    def read(self, clip: Clip, place: float, speed: float = 1.0) -> tuple[NDArray[np.float32], float]:
        """Return a crop, float32 [samples] with its mean subtracted, and its start within the clip in seconds.

        Args:
            clip: the clip; one shorter than the crop is repeated.
            place: position in [0, 1) among all possible starts.
            speed: factor on the tempo.

        Raises:
            UserError: the file cannot be read, or has no audio there.
        """
        whole, wanted = round(clip.duration * SAMPLE_RATE), samples_at_speed(self._samples, speed)
        if whole < wanted:
            first = int(place * whole)
            audio = np.roll(self._read(clip, 0, whole), -first)
        else:
            first = int(place * (whole - wanted + 1))
            audio = self._read(clip, first, wanted)
        if not len(audio):
            at = clip.start + first / SAMPLE_RATE
            raise UserError(f"{clip.path}: has no audio at {at:.2f} s; prepare the corpus again")
        audio = np.resize(without_offset(audio), wanted)
        return change_speed(audio, speed, self._samples), first / SAMPLE_RATE

    def _read(self, clip: Clip, first: int, samples: int) -> NDArray[np.float32]:
        """Return `samples` samples of a clip, starting at sample `first`."""
        if self._cached is None:
            start = (round(clip.start * SAMPLE_RATE) + first) / SAMPLE_RATE
            return read_audio(clip.path, start, samples / SAMPLE_RATE)
        cached = self._cached.get(clip)
        if cached is None:
            cached = self._cached[clip] = to_pcm(read_audio(clip.path, clip.start, clip.duration))
        return from_pcm(cached[first : first + samples])
