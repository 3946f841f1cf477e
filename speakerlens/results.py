"""The results of calls: frozen dataclasses with numpy arrays and their axes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T")

OPTIMISTIC = (
    "the threshold was set without out-of-set speakers, so more of them pass it than the calibration says; "
    "export a bundle from a corpus with at least three in its dev split"
)


class ByModel(Mapping[str, _T]):
    """Results by model: `result["act-da"]` is that of the first version of a variant, `result["act-da@3"]` of another.

    Iterating yields the names with the version.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _named(self) -> list[tuple[str, _T]]:
        """Return the results with their names, such as `act-da@3`."""
        raise NotImplementedError

    def __getitem__(self, model: str) -> _T:
        """Return the result of a model; KeyError says which there are, and why one that was asked failed."""
        named = self._named()
        for name, result in named:
            if model in (name, name.rpartition("@")[0]):
                return result
        failures: tuple[ModelFailure, ...] = getattr(self, "failures", ())
        for failure in failures:
            if model in (failure.variant, failure.name):
                raise KeyError(f"{failure.name} failed ({failure.code}): {failure.message}")
        raise KeyError(f"no result of {model!r}; results: {', '.join(name for name, _ in named)}")

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._named())

    def __len__(self) -> int:
        return len(self._named())


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
    """The PNG of the server, if requested; its levels encode the values."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the values, as numpy asks for them."""
        return np.array(self.values, dtype, copy=copy)

    def __repr__(self) -> str:
        low, high = (float(self.frequencies_hz[place]) for place in (0, -1)) if len(self.frequencies_hz) else (0.0, 0.0)
        end = float(self.times_s[-1]) if len(self.times_s) else 0.0
        rows, columns = self.values.shape
        return f"<Plane {rows} x {columns}, {low:.0f} to {high:.0f} Hz, to {end:.2f} s>"


@dataclass(frozen=True)
class SpeakerScore:
    """The scores of one speaker."""

    speaker: str
    probability: float
    """Calibrated posterior over the model's speakers."""
    logit: float
    """Pre-softmax score."""


@dataclass(frozen=True)
class Listening:
    """A map as sound, and the probability of the explained speaker for it."""

    kept: bytes
    """What the map keeps of the audio: FLAC, 16 kHz."""
    removed: bytes
    """The rest of the audio: FLAC, 16 kHz."""
    score: float
    """Probability for the audio."""
    kept_score: float
    """For what is kept; 0 for silence."""
    removed_score: float
    """For what is removed; 0 for silence."""
    increase: bool
    """Whether what is kept has a higher probability; the mean over utterances is the average increase."""
    drop: float
    """max(0, score - kept_score) / score; the mean over utterances is the average drop in confidence."""

    def __repr__(self) -> str:
        parts = f"{self.kept_score:.1%} for what is kept, {self.removed_score:.1%} for what is removed"
        return f"<Listening {self.score:.1%}, {parts}>"


@dataclass(frozen=True, eq=False)
class Explanation:
    """Saliency maps for the score of `target_speaker`."""

    target_speaker: str
    maps: Mapping[str, Plane]
    """Saliency by stage (`s1` … `s4`, `fused`), in the order of the request."""
    log_mel: Plane | None
    """The input features of the network; None if the server sent none."""
    listening: Mapping[str, Listening] = field(default_factory=dict)
    """The sound of each map, by stage; empty unless requested."""

    def __repr__(self) -> str:
        return f"<Explanation of {self.target_speaker or 'a score'}: {', '.join(self.maps)}>"


@dataclass(frozen=True)
class Segment:
    """A part of a long recording with one speaker, smoothed over its windows."""

    start_s: float
    end_s: float
    speaker: str
    probability: float
    """Mean over its windows."""
    known: bool


class ThresholdBasis(StrEnum):
    """Whose utterances a threshold was set on."""

    OUT_OF_SET = "out-of-set speakers"
    KNOWN = "known speakers"
    """Speakers that the network was trained to tell apart: the threshold lets more out-of-set speakers pass than its
    calibration says."""
    NONE = "none"
    """There is no threshold: the bundle was exported without recordings to set one on."""
    UNSAID = "unsaid"
    """An older server."""


@dataclass(frozen=True)
class ModelFailure:
    """The error of one model, where another answered."""

    variant: str
    version: int
    code: str
    """Name of the gRPC status."""
    message: str

    @property
    def name(self) -> str:
        """Variant and version, such as `act-da@3`."""
        return f"{self.variant}@{self.version}"


@dataclass(frozen=True, eq=False)
class Answer:
    """One model's answer."""

    variant: str
    version: int
    speakers: tuple[SpeakerScore, ...]
    """Best first, never empty."""
    known: bool
    """Whether the best score reaches the open-set threshold of the model."""
    explanation: Explanation | None
    embedding: NDArray[np.float32] | None
    """float32 [embedding size], not normalised; None unless requested."""
    timeline: tuple[Segment, ...] = ()
    """Who spoke when; empty for audio of a single window, and without speech."""
    turn: Segment | None = None
    """Of live audio: the turn that the window is part of, from the windows so far. It changes only when the speaker is
    sure to have changed."""
    threshold_basis: ThresholdBasis = ThresholdBasis.UNSAID
    """What the threshold of `known` rests on."""

    @property
    def name(self) -> str:
        """Variant and version, such as `act-da@3`."""
        return f"{self.variant}@{self.version}"

    @property
    def best(self) -> SpeakerScore:
        """The most probable speaker."""
        return self.speakers[0]

    @property
    def summary(self) -> str:
        """The best speaker, its probability, and whether it is known, in a line."""
        return f"{self.best.speaker} {self.best.probability:.1%}, {'known' if self.known else 'unknown'}"

    def __repr__(self) -> str:
        return f"<Answer of {self.name}: {self.summary}>"


@dataclass(frozen=True)
class Evidence:
    """What an answer rests on: estimates by the server, from the samples alone."""

    speech_s: float
    """Seconds of speech, pauses left out."""
    snr_db: float | None
    """Energy of speech over that of everything else, in dB; None in silence."""
    bandwidth_hz: float
    """Up to where the sound reaches, in Hz."""
    clipping: float
    """Share of the samples that are clipped, 0 to 1."""
    level_db: float | None
    """Mean level during speech, in dB of full scale; None without speech."""


@dataclass(frozen=True)
class Mismatch:
    """How the conditions of audio differ from those of its reference: its evidence minus that of the reference."""

    speech_s: float | None = None
    snr_db: float | None = None
    bandwidth_hz: float | None = None
    clipping: float | None = None
    level_db: float | None = None


@dataclass(frozen=True)
class AudioInfo:
    """The audio as the server received it."""

    seconds: float
    sample_rate: int
    """Hz"""
    channels: int
    speech: bool | None = None
    """Whether any window holds speech. If none does, the answers are of all of it, and there is no timeline. None: the
    server does not say."""
    channel: int | None = None
    """The channel that was used, from 1; None: the mean of all."""
    bandwidth_hz: float | None = None
    """Up to where the sound reaches, where that is less than the 8000 that the models use: 4000 for speech that was
    sampled at 8 kHz. None: it reaches as far, or the server does not say."""
    evidence: Evidence | None = None
    """None: the server does not say."""


@dataclass(frozen=True)
class Timings:
    """Seconds that the server spent in each phase."""

    decode_s: float
    queue_s: float
    inference_s: float
    encode_s: float


@dataclass(frozen=True, eq=False)
class WindowResult:
    """The answers for one window of live audio; times in seconds from its start."""

    start_s: float
    end_s: float
    speech: bool
    """False: the window holds no speech, has no answers and does not count in the answer for the whole."""
    answers: tuple[Answer, ...]
    failures: tuple[ModelFailure, ...]
    timings: Timings


@dataclass(frozen=True, eq=False)
class Embeddings(ByModel[NDArray[np.float32]]):
    """The embeddings of one utterance."""

    by_model: Mapping[str, NDArray[np.float32]]
    """float32 [embedding size], not normalised, by model such as `act-da@3`, in the order of the request."""
    audio: AudioInfo
    timings: Timings
    failures: tuple[ModelFailure, ...] = ()
    """Errors of models, where others answered."""

    def _named(self) -> list[tuple[str, NDArray[np.float32]]]:
        return list(self.by_model.items())

    def __repr__(self) -> str:
        parts = [f"{name} [{len(values)}]" for name, values in self.by_model.items()]
        parts += [f"{failure.name} failed ({failure.code})" for failure in self.failures]
        return f"<Embeddings of {self.audio.seconds:.2f} s: {'; '.join(parts)}>"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Whether two utterances, or an utterance and an enrolment, have the same speaker."""

    variant: str
    version: int
    score: float
    """Cosine of the embeddings, -1 to 1."""
    threshold: float
    """The calibrated verification threshold of the model."""
    same: bool
    """Whether the score reaches the threshold."""
    explanation: Explanation | None
    """Maps of the score over the audio; None unless requested."""
    other_explanation: Explanation | None
    """Maps of the score over the other utterance, if there is one."""
    audio: AudioInfo
    other: AudioInfo | None
    """None for a comparison with an enrolled speaker."""
    timings: Timings
    threshold_basis: ThresholdBasis = ThresholdBasis.UNSAID
    """What the threshold rests on."""
    mismatch: Mismatch | None = None
    """Of the audio with the other, or with the enrolment; None: not known."""

    @property
    def name(self) -> str:
        """Variant and version, such as `act-da@3`."""
        return f"{self.variant}@{self.version}"

    def __repr__(self) -> str:
        found = "the same speaker" if self.same else "other speakers"
        return f"<Comparison by {self.name}: {found}, {self.score:.3f} against {self.threshold:.3f}>"
