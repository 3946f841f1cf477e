"""Draw interference from a corpus; the random generator passed in determines the result."""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, without_offset
from speakerlens.training.data.manifest import Clip, Corpus, Kind, Split
from speakerlens.training.data.mixing import DIRECT_SAMPLES, KINDS
from speakerlens.training.errors import UserError

RESPONSE_SAMPLES = 8_000
"""Impulse responses are cut or padded to half a second."""

TALKERS = (3, 7)
"""Fewest and most talkers in the babble of evaluations."""

_CROSS_FADE = SAMPLE_RATE // 100
_SILENT = 1e-4  # peak; about three 16-bit quantisation steps
_DRAWS = 100
_KEPT_SECONDS = 30.0
_CACHE_BYTES = 512 << 20

_Waveform = NDArray[np.float32]


class InterferenceSource:
    """The interference of one split of a corpus; thread-safe.

    Talkers for babble and for the interfering speaker come from the corpus's "speech" clips; where the split has none,
    from the other speakers' utterances of the split.

    Attributes:
        kinds: those of `KINDS` that the corpus can supply, given the fewest and most `talkers` in babble.
    """

    kinds: tuple[str, ...]

    def __init__(self, corpus: Corpus, split: Split, talkers: tuple[int, int] = TALKERS) -> None:
        self._where = f"{corpus.root} ({split})"
        sounds: tuple[Kind, ...] = ("noise", "music", "rir")
        self._clips = {kind: corpus.interference(kind, split) for kind in sounds}
        outside = corpus.interference("speech", split)
        self._talkers = _by_talker(outside or corpus.utterances(split))
        self._babble_of = talkers
        others = len(self._talkers) - (0 if outside else 1)  # the target is one of the talkers
        supplied = {
            "noise": bool(self._clips["noise"]),
            "music": bool(self._clips["music"]),
            "babble": others >= talkers[0],
            "speaker": others >= 1,
            "reverb": bool(self._clips["rir"]),
        }
        self.kinds = tuple(kind for kind in KINDS if supplied[kind])
        self._cache = _ClipCache(_CACHE_BYTES)

    def draw(self, kind: str, samples: int, rng: np.random.Generator, speaker: str | None = None) -> _Waveform:
        """Draw a waveform of a kind that is not silent.

        Args:
            kind: one of `kinds`.
            samples: length of the waveform.
            rng: the only source of randomness.
            speaker: the target, who is never among the interfering talkers.

        Returns:
            float32 [samples], at any level, with mean 0: for noise and music, one clip from a random position, looped
            with a short cross-fade if it is too short; for "speaker", one other talker; for "babble", the sum of
            several talkers of equal energy.
            For "reverb", the impulse response [8000], which begins at most 2.5 ms before its direct sound.

        Raises:
            UserError: the corpus cannot supply the kind, or only silence was drawn.
        """
        if kind not in self.kinds:
            raise UserError(f"{self._where}: has no interference of kind {kind}; it has {', '.join(self.kinds)}")
        if kind == "reverb":
            return self._response(rng)
        if kind == "babble":
            return self._babble(samples, rng, speaker)
        if kind == "speaker":
            return self._talk(self._draw_talkers(1, rng, speaker)[0], samples, rng)
        return self._draw_crop(self._clips[_sound(kind)], samples, rng)

    def _babble(self, samples: int, rng: np.random.Generator, speaker: str | None) -> _Waveform:
        fewest, most = self._babble_of
        count = int(rng.integers(fewest, most + 1))
        babble = np.zeros(samples, dtype=np.float32)
        for talker in self._draw_talkers(count, rng, speaker):
            voice = self._talk(talker, samples, rng)
            babble += voice / np.linalg.norm(voice)
        return babble

    def _draw_talkers(self, count: int, rng: np.random.Generator, speaker: str | None) -> list[str]:
        """Draw talkers other than `speaker`; none occurs twice unless there are too few."""
        others = [talker for talker in self._talkers if talker != speaker]
        rounds = [rng.permutation(len(others)) for _ in range(-(-count // len(others)))]
        return [others[index] for index in np.concatenate(rounds)[:count]]

    def _talk(self, talker: str, samples: int, rng: np.random.Generator) -> _Waveform:
        return self._draw_crop(self._talkers[talker], samples, rng)

    def _draw_crop(self, clips: Sequence[Clip], samples: int, rng: np.random.Generator) -> _Waveform:
        """Draw a crop [samples] of a random clip that is not silent, with its mean subtracted.

        The mean is the crop's: subtracting that of the whole clip would turn digital silence into an offset.
        """
        for _ in range(_DRAWS):
            clip = clips[int(rng.integers(len(clips)))]
            position = float(rng.random())
            waveform = without_offset(self._crop(clip, samples, position))
            if np.abs(waveform).max() > _SILENT:
                return waveform
        raise UserError(f"{clips[0].path}: all of {_DRAWS} crops drawn from it and similar files were silent")

    def _crop(self, clip: Clip, samples: int, position: float) -> _Waveform:
        """Return `samples` samples of a clip; `position` in [0, 1) selects one of the possible starts."""
        seconds = samples / SAMPLE_RATE
        if clip.duration > max(_KEPT_SECONDS, seconds):
            whole = int(clip.duration * SAMPLE_RATE)
            first = int(position * (whole - samples + 1))
            waveform = read_audio(clip.path, clip.start + first / SAMPLE_RATE, seconds)
            return _loop(waveform, samples, 0)
        waveform = self._cache.read(clip)
        if len(waveform) >= samples:
            first = int(position * (len(waveform) - samples + 1))
            return waveform[first : first + samples]
        return _loop(waveform, samples, int(position * len(waveform)))

    def _response(self, rng: np.random.Generator) -> _Waveform:
        clips = self._clips["rir"]
        for _ in range(_DRAWS):
            clip = clips[int(rng.integers(len(clips)))]
            response = self._cache.read(clip)
            direct = int(np.abs(response).argmax())
            if np.abs(response[direct + DIRECT_SAMPLES + 1 :]).max(initial=0.0) > 0:
                cut = response[max(0, direct - DIRECT_SAMPLES) :][:RESPONSE_SAMPLES]
                return np.pad(cut, (0, RESPONSE_SAMPLES - len(cut)))
        raise UserError(f"{clips[0].path}: this and other impulse responses contain only the direct sound")


class _ClipCache:
    """Decoded clips, shared by threads; above `limit` bytes the least recently used are dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._clips: OrderedDict[tuple[Path, float], _Waveform] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, clip: Clip) -> _Waveform:
        key = (clip.path, clip.start)
        with self._lock:
            if key in self._clips:
                self._clips.move_to_end(key)
                return self._clips[key]
        # Outside the lock: two threads may decode the same clip at once.
        waveform = read_audio(clip.path, clip.start, clip.duration)
        if not len(waveform):
            raise UserError(f"{clip.path}: has no audio at {clip.start:g} s")
        with self._lock:
            if key not in self._clips:
                self._clips[key] = waveform
                self._held += waveform.nbytes
            while self._held > self._limit and len(self._clips) > 1:
                self._held -= self._clips.popitem(last=False)[1].nbytes
        return waveform


def _loop(waveform: _Waveform, samples: int, first: int) -> _Waveform:
    """Return `samples` samples of a waveform [N] looped from sample `first`, with a cross-fade at the seam."""
    if len(waveform) == samples:
        return waveform
    fade = min(_CROSS_FADE, len(waveform) // 4)
    period = len(waveform) - fade
    unit = waveform[:period].copy()
    ramp = np.linspace(0.0, 1.0, fade, endpoint=False, dtype=np.float32)
    unit[:fade] = waveform[:fade] * ramp + waveform[period:] * (1.0 - ramp)
    first %= period
    return np.tile(unit, -(-(first + samples) // period))[first : first + samples]


def _by_talker(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Group clips by talker; a clip without a name counts as a talker of its own."""
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[clip.speaker or f"{clip.path} {clip.start!r}"].append(clip)
    return dict(groups)


def _sound(kind: str) -> Kind:
    return "music" if kind == "music" else "noise"
