"""Corpora of tones: the spectrum shows who talks."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speakerlens.training.data.audio import SAMPLE_RATE, write_audio
from speakerlens.training.data.interference import TALKERS, InterferenceSource
from speakerlens.training.data.manifest import Clip, Kind, Split, write_corpus

FREQUENCIES = {name: 300.0 + 200.0 * number for number, name in enumerate("abcdefghijkl")}


def tone(frequency: float, seconds: float = 1.0, level: float = 0.3) -> NDArray[np.float64]:
    wave: NDArray[np.float64] = level * np.sin(
        2 * np.pi * frequency * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    )
    return wave


class Builder:
    """Collects the clips of a corpus."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clips: list[Clip] = []

    def add(
        self, name: str, samples: ArrayLike, kind: Kind, split: Split = "train", speaker: str | None = None
    ) -> None:
        waveform = np.asarray(samples, dtype=np.float32)
        write_audio(self.root / f"{name}.flac", waveform)
        seconds = len(waveform) / SAMPLE_RATE
        self.clips.append(Clip(Path(f"{name}.flac"), kind, split, 0.0, seconds, speaker))

    def speakers(self, names: str) -> None:
        for name in names:
            self.add(f"train-{name}", tone(FREQUENCIES[name]), "utterance", speaker=name)

    def source(self, split: Split = "train", talkers: tuple[int, int] = TALKERS) -> InterferenceSource:
        return InterferenceSource(write_corpus(self.root, self.clips), split, talkers)


def audible_speakers(waveform: NDArray[np.floating]) -> set[str]:
    """Return the speakers whose tone stands out of the spectrum."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    levels = {name: spectrum[np.abs(hertz - frequency) < 20].max() for name, frequency in FREQUENCIES.items()}
    return {name for name, level in levels.items() if level > 0.1 * max(levels.values())}
