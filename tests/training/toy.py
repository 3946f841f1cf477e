"""A corpus and a configuration small enough to train in a second."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.config import Config, load_config
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, write_audio
from speakerlens.training.data.manifest import Clip, Corpus, Kind, Split, write_corpus

SPEAKERS = ("ada", "bob", "cyd")
TOY_CONFIG = """\
network:
  blocks: [1, 1, 1, 1]
  width: 2
  embedding: 8
  mel_bins: 16
updates: 6
seed: 3
head: {kind: aam, scale: 16, margin: 0.1}
data: {crop_seconds: 0.3, batch_size: 6, read_ahead: 2}
optimiser: {kind: adamw, learning_rate: 0.01}
intervals: {log: 1, dev: 3, checkpoint: 2, dev_utterances: 6}
"""


def make_corpus(folder: Path, seconds: float = 1.0, interference: bool = True, seed: int = 0) -> Corpus:
    """Buzzes of a pitch per speaker, with noise and rooms for interference."""
    rng = np.random.default_rng(seed)
    clips = []

    def add(name: str, samples: np.ndarray, kind: Kind, split: Split, speaker: str | None = None) -> None:
        path = folder / f"{name}.flac"
        write_audio(path, samples.astype(np.float32))
        clips.append(Clip(path, kind, split, 0.0, len(samples) / SAMPLE_RATE, speaker))

    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    splits: tuple[Split, ...] = ("train", "train", "train", "dev", "dev", "test")
    for number, speaker in enumerate(SPEAKERS):
        for index, split in enumerate(splits):
            tone = sum(np.sin(2 * np.pi * (110 + 60 * number) * k * time) / k for k in range(1, 6))
            buzz = 0.1 * tone * (1 + 0.5 * np.sin(2 * np.pi * (2 + index) * time)) + 0.01 * rng.standard_normal(
                len(time)
            )
            add(f"{speaker}-{index}", buzz, "utterance", split, speaker)
    for split in ("train", "dev", "test") if interference else ():
        add(f"noise-{split}", 0.1 * rng.standard_normal(SAMPLE_RATE), "noise", split)
        room = 0.3 * rng.standard_normal(4000) * np.exp(-np.arange(4000) / 800)
        room[0] = 1.0
        add(f"room-{split}", room, "rir", split)
    return write_corpus(folder, clips)


def write_config(folder: Path, text: str = TOY_CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def toy_config(folder: Path, *overrides: str) -> Config:
    return load_config(write_config(folder), overrides)


def noting(reads: list[Path]) -> Callable[..., NDArray[np.float32]]:
    """Give a `read_audio` that notes which file it reads."""

    def read(path: Path, start: float, duration: float) -> NDArray[np.float32]:
        reads.append(path)
        return read_audio(path, start, duration)

    return read
