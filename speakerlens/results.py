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
    picture: bytes | None = None
    """The PNG that the server made, where it was asked for; its levels are the values."""


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


@dataclass(frozen=True)
class Segment:
    """A stretch of audio in which the windows of a long recording agree."""

    start_s: float
    end_s: float
    speaker: str
    probability: float
    """Mean over its windows."""
    known: bool


@dataclass(frozen=True)
class ModelFailure:
    """How one model failed while another answered."""

    variant: str
    version: int
    code: str
    """Name of a gRPC status."""
    message: str

    @property
    def name(self) -> str:
        """Variant and version as the client writes them: `act-da@3`."""
        return f"{self.variant}@{self.version}"


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
    timeline: tuple[Segment, ...] = ()
    """Who spoke when; empty for audio of a single window."""

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
class WindowResult:
    """The answers for a window of live audio, in seconds from its beginning."""

    start_s: float
    end_s: float
    speech: bool
    """False: nobody speaks, there are no answers, and the window has no vote in the whole."""
    answers: tuple[Answer, ...]
    failures: tuple[ModelFailure, ...]
    timings: Timings


@dataclass(frozen=True, eq=False)
class Identification:
    """The answers to one utterance, one per model, in the order asked for."""

    answers: tuple[Answer, ...]
    audio: AudioInfo
    timings: Timings
    failures: tuple[ModelFailure, ...] = ()
    """Models that failed while others answered."""

    def __getitem__(self, variant: str) -> Answer:
        """Return the answer of `act-da` (the first one, if several versions were asked) or of `act-da@3`."""
        for answer in self.answers:
            if variant in (answer.variant, answer.name):
                return answer
        for failure in self.failures:
            if variant in (failure.variant, failure.name):
                raise KeyError(f"{failure.name} failed ({failure.code}): {failure.message}")
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
    max_requests: int
    """Of one batch."""


@dataclass(frozen=True)
class Catalogue:
    """The loaded models, the engine's provider and the limits."""

    models: tuple[ModelInfo, ...]
    provider: str
    limits: Limits
