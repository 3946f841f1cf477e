"""What a server answers, as frozen dataclasses holding numpy arrays with their axes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Plane:
    """A matrix over frequency (rows, low to high) and time (columns)."""

    values: NDArray[np.float32]
    """[rows, columns]"""
    frequencies_hz: NDArray[np.float32]
    """[rows] centre of each row, in Hz"""
    times_s: NDArray[np.float32]
    """[columns] centre of each column, in seconds from the start of the audio"""


@dataclass(frozen=True)
class SpeakerScore:
    """One speaker's share of an answer."""

    speaker: str
    probability: float
    """Calibrated posterior over the model's speakers."""
    logit: float
    """Pre-softmax score."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model listened for `target_speaker`."""

    target_speaker: str
    maps: Mapping[str, Plane]
    """Saliency by stage (`s1` … `s4`, `fused`), in the order asked for."""
    log_mel: Plane | None
    """The features that the network saw; None where the server sent none."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One model's answer."""

    variant: str
    version: int
    speakers: tuple[SpeakerScore, ...]
    """Best first, never empty."""
    known: bool
    """False: not even the best speaker reaches the model's calibrated threshold."""
    explanation: Explanation | None
    embedding: NDArray[np.float32] | None
    """[embedding size], unnormalised; None unless asked for."""

    @property
    def name(self) -> str:
        """Variant and version as the client writes them: `act-da@3`."""
        return f"{self.variant}@{self.version}"

    @property
    def best(self) -> SpeakerScore:
        """The most probable speaker."""
        return self.speakers[0]


@dataclass(frozen=True)
class AudioInfo:
    """The audio as the server received it."""

    seconds: float
    sample_rate: int
    """Hz"""
    channels: int


@dataclass(frozen=True)
class Timings:
    """Where the server spent its time, in seconds."""

    decode_s: float
    queue_s: float
    inference_s: float
    encode_s: float


@dataclass(frozen=True, eq=False)
class Identification:
    """The answers to one utterance, one per model, in the order asked for."""

    answers: tuple[Answer, ...]
    audio: AudioInfo
    timings: Timings

    def __getitem__(self, variant: str) -> Answer:
        """Return the answer of `act-da` (the first one, if several versions were asked) or of `act-da@3`."""
        for answer in self.answers:
            if variant in (answer.variant, answer.name):
                return answer
        raise KeyError(f"no answer of {variant!r}; there is: {', '.join(answer.name for answer in self.answers)}")


@dataclass(frozen=True)
class StageInfo:
    """A stage of the network that a map can be taken at."""

    stage: str
    tap: str
    """Which activation the map is taken at."""
    rows: int
    stride: int
    """Frames of log-mel per column."""


@dataclass(frozen=True)
class ModelInfo:
    """A loaded model."""

    variant: str
    version: int
    speakers: tuple[str, ...]
    sample_rate: int
    """Hz"""
    mel_bins: int
    embedding_size: int
    stages: tuple[StageInfo, ...]
    code_revision: str
    training_data_digest: str


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    max_bytes: int
    min_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class Catalogue:
    """The loaded models, the engine's provider and the limits."""

    models: tuple[ModelInfo, ...]
    provider: str
    limits: Limits
