"""Utterances of known speakers, and interference to mix with them: from a corpus or from a bundle's probes."""

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from speakerlens.decoding import AudioFileError, open_audio

RATE = 16_000
FEWEST_TALKERS, MOST_TALKERS = 3, 5
SILENT_NORM = 1e-6
KEPT_FILES = 1024

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Utterance:
    """One utterance: samples at 16 kHz, float32 [samples], its speaker, and its place in the source."""

    samples: Samples
    speaker: str
    place: int


class AudioSource(ABC):
    """Utterances and interference.

    Attributes:
        kinds: kinds of interference.
        count: number of utterances.
    """

    kinds: frozenset[str]
    count: int

    @abstractmethod
    def utterance(self, place: int) -> Utterance:
        """Return the utterance at a place, from 0 to `count` - 1."""

    @abstractmethod
    def interference(self, kind: str, utterance: Utterance, rng: Random) -> Samples:
        """Return interference without the utterance's speaker: float32 [samples], as long as it, at any level."""


class CorpusSource(AudioSource):
    """The test split of a corpus: utterances, clips of noise and music, and other talkers as babble.

    Args:
        folder: with a manifest.jsonl.

    Raises:
        ValueError: its test split is empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clips: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines():
            clip = json.loads(line) if line.strip() else {}
            if clip.get("split") == "test":
                self._clips[clip["kind"]].append(clip)
        self.count = len(self._clips["utterance"])
        if not self.count:
            raise ValueError(f"{folder} has no utterances in its test split")
        self._talkers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for clip in self._clips["speech"] or self._clips["utterance"]:
            self._talkers[clip.get("speaker") or clip["path"]].append(clip)
        others = len(self._talkers) - (0 if self._clips["speech"] else 1)  # without the speaker of the utterance
        enough = {"babble"} if others >= FEWEST_TALKERS else set()
        self.kinds = frozenset(enough | {kind for kind in ("noise", "music") if self._clips[kind]})

    def utterance(self, place: int) -> Utterance:
        """Return the utterance at a place, from 0 to `count` - 1."""
        clip = self._clips["utterance"][place]
        return Utterance(self._read(clip), clip["speaker"], place)

    def interference(self, kind: str, utterance: Utterance, rng: Random) -> Samples:
        """Return a random part of one clip of noise or music, or babble: the sum of 3 to 5 equally loud talkers."""
        samples = len(utterance.samples)
        if kind != "babble":
            return _stretch(self._read(rng.choice(self._clips[kind])), samples, rng)
        talkers = sorted(self._talkers.keys() - {utterance.speaker})
        others = rng.sample(talkers, min(MOST_TALKERS, len(talkers)))
        voices = [_stretch(self._read(rng.choice(self._talkers[talker])), samples, rng) for talker in others]
        babble = np.zeros(samples, np.float32)
        for voice in voices:
            babble += voice / max(float(np.linalg.norm(voice)), SILENT_NORM)
        return babble

    def _read(self, clip: dict[str, Any]) -> Samples:
        return read(self._folder / clip["path"], clip["start"], clip["duration"])


class BundleSource(AudioSource):
    """The probes of a model bundle: a few utterances, and for each one its own interference of each kind.

    Args:
        folder: of the bundle, with its bundle.json.

    Raises:
        ValueError: it has no probes.
    """

    def __init__(self, folder: Path) -> None:
        probes = json.loads((folder / "bundle.json").read_text("utf-8"))["probes"]
        if probes is None:
            raise ValueError(f"{folder} was exported without probes; give a corpus")
        self._folder = folder
        self._probes = folder / probes["folder"]
        self._utterances: Sequence[dict[str, str]] = probes["utterances"]
        self.count = len(self._utterances)
        self.kinds = frozenset(probes["interference"])

    def utterance(self, place: int) -> Utterance:
        """Return the utterance at a place, from 0 to `count` - 1."""
        probe = self._utterances[place]
        return Utterance(read(self._folder / probe["file"]), probe["speaker"], place)

    def interference(self, kind: str, utterance: Utterance, rng: Random) -> Samples:
        """Return the probe's own interference, from a random place on."""
        return _stretch(read(self._probes / kind / f"{utterance.place:02d}.flac"), len(utterance.samples), rng)


def find(folder: Path) -> AudioSource:
    """Open a corpus, a bundle, or a folder of bundles (<variant>/<version>) of which the first with probes is taken.

    Raises:
        ValueError: the folder is none of these.
        OSError: a file cannot be read.
    """
    if (folder / "manifest.jsonl").is_file():
        return CorpusSource(folder)
    if (folder / "bundle.json").is_file():
        return BundleSource(folder)
    for manifest in sorted(folder.glob("*/*/bundle.json")):
        if json.loads(manifest.read_text("utf-8"))["probes"] is not None:
            return BundleSource(manifest.parent)
    raise ValueError(f"{folder} is neither a corpus (manifest.jsonl) nor holds a bundle with probes (bundle.json)")


def mixture(speech: Samples, interference: Samples, snr_db: float) -> Samples:
    """Return speech plus interference at an SNR, scaled to stay within [-1, 1]: float32 [samples].

    Args:
        speech: float32 [samples].
        interference: float32 [samples], as long.
        snr_db: energy of the speech over that of the interference, in dB.
    """
    loudness, unwanted = float(np.linalg.norm(speech)), float(np.linalg.norm(interference))
    gain = loudness / max(unwanted, SILENT_NORM) * 10 ** (-snr_db / 20)
    mixed = (speech + gain * interference).astype(np.float32)
    return mixed / max(1.0, float(np.abs(mixed).max(initial=0.0)))


@lru_cache(KEPT_FILES)
def read(file: Path, start: float = 0.0, duration: float | None = None) -> Samples:
    """Read a part of an audio file as one channel at 16 kHz: float32 [samples].

    Args:
        file: of any format that is read (docs/formats.md).
        start: in seconds.
        duration: in seconds; None reads to the end.

    Raises:
        OSError: the file cannot be read as audio.
    """
    try:
        with open_audio(file) as audio:
            rate = audio.rate
            audio.seek(round(start * rate))
            samples = audio.read(None if duration is None else round(duration * rate)).mean(axis=1)
    except AudioFileError as error:
        raise OSError(str(error)) from error
    resampled: Samples = samples if rate == RATE else soxr.resample(samples, rate, RATE)
    return resampled


def _stretch(samples: Samples, length: int, rng: Random) -> Samples:
    """Return `length` samples from a random place on, repeated where there are fewer."""
    first = rng.randrange(max(len(samples) - length, 0) + 1)
    return np.resize(samples[first:], length)
