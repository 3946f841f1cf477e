"""Crops of speech at random places: read by seeking, or cut from clips that are held in memory."""

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
    """Reads crops of one length; `read` may be called from several threads.

    Seeking in a FLAC file costs about a millisecond a crop. Clips that take up to `cache_megabytes` in all are
    therefore decoded once each, when first wanted, and held as 16-bit samples. All are held or none, so that a crop
    depends on the configuration but not on what was read before it. Crops of 16 kHz, 16-bit files are the same either
    way; others are rounded to 16 bits where they are held, and resampled as a whole.

    Args:
        clips: what crops will be read of.
        samples: length of every crop.
        cache_megabytes: most memory to hold them in, MiB; 0 holds none.
    """

    def __init__(self, clips: Sequence[Clip], samples: int, cache_megabytes: float) -> None:
        self._samples = samples
        needed = sum(2 * round(clip.duration * SAMPLE_RATE) for clip in clips)
        packed = all(clip.path.name == PACKED for clip in clips)  # in memory already, as far as the system sees fit
        fits = needed <= cache_megabytes * _MEGABYTE
        self._held: dict[Clip, NDArray[np.int16]] | None = {} if fits and not packed else None

    def read(self, clip: Clip, place: float, speed: float = 1.0) -> tuple[NDArray[np.float32], float]:
        """Give a crop [samples] and where it begins, in seconds from the clip's start.

        `place` in [0, 1) chooses among all the places there are. A clip that is too short is repeated, beginning at
        that place. It is played at `speed` times its speed. Raises UserError if the file cannot be read, or holds no
        audio there. A constant offset is taken from it.
        """
        whole, wanted = round(clip.duration * SAMPLE_RATE), samples_at_speed(self._samples, speed)
        if whole < wanted:
            first = int(place * whole)
            audio = np.roll(self._stretch(clip, 0, whole), -first)
        else:
            first = int(place * (whole - wanted + 1))
            audio = self._stretch(clip, first, wanted)
        if not len(audio):
            at = clip.start + first / SAMPLE_RATE
            raise UserError(f"{clip.path}: has no audio at {at:.2f} s; prepare the corpus again")
        audio = np.resize(without_offset(audio), wanted)
        return change_speed(audio, speed, self._samples), first / SAMPLE_RATE

    def _stretch(self, clip: Clip, first: int, samples: int) -> NDArray[np.float32]:
        """Give `samples` of a clip from sample `first` on."""
        if self._held is None:
            start = (round(clip.start * SAMPLE_RATE) + first) / SAMPLE_RATE
            return read_audio(clip.path, start, samples / SAMPLE_RATE)
        held = self._held.get(clip)
        if held is None:
            held = self._held[clip] = to_pcm(read_audio(clip.path, clip.start, clip.duration))
        return from_pcm(held[first : first + samples])
