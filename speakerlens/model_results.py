"""The loaded models of a server, how they were calibrated, and the limits of a request."""

from dataclasses import dataclass

from speakerlens.results import ThresholdBasis


@dataclass(frozen=True)
class StageInfo:
    """A stage of the network that has a saliency map."""

    stage: str
    tap: str
    """The activation that the map is computed at."""
    rows: int
    stride: int
    """Frames of log-mel per column."""


@dataclass(frozen=True)
class Calibration:
    """How a model's probabilities and thresholds were set."""

    temperature: float
    """Probabilities are softmax(logits / temperature)."""
    threshold: float
    """On the score of the speaker with the best logit; the bundle says which score."""
    false_acceptance: float
    """The share of out-of-set utterances that may reach the threshold."""
    threshold_basis: ThresholdBasis
    speakers: int
    """Whose utterances the threshold rests on."""
    utterances: int
    noises: int
    """Recordings without a speaker that the threshold rests on as well."""
    noise_acceptance: float
    """The share of them that may reach the threshold."""
    verification_basis: ThresholdBasis
    """Of the thresholds of verification."""


@dataclass(frozen=True)
class Outlook:
    """Share of the utterances of enrolled speakers that are missed under a condition, with its 95 % interval."""

    condition: str
    miss: float
    low: float
    high: float


@dataclass(frozen=True)
class SearchCalibration:
    """How the decisions of a model's searches were calibrated."""

    false_alarm: float
    """Share of utterances of other people whose best candidate may reach the threshold, at any size of gallery."""
    speakers: int
    """Speakers that the network was not trained on, whose recordings it rests on."""
    recordings: int
    least_speech_s: float
    """Of what the calibration has seen: below one of these three an answer is unreliable."""
    least_snr_db: float
    least_bandwidth_hz: float
    margin: float
    """The least lead over the second candidate, of the log-likelihood ratio."""
    outlook: tuple[Outlook, ...]
    """Share of enrolled speakers' utterances that are missed, by condition, in a gallery of ten."""


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
    calibration: Calibration | None = None
    """None from an older server, and of a model without a classifier."""
    without_classifier: bool = False
    """The model names no speakers: it embeds, verifies and searches."""
    search: SearchCalibration | None = None
    """None where searches are not calibrated."""
    precision: str = "fp32"
    """Number format of the scores: `fp32`, `int8` or `fp16`."""

    @property
    def name(self) -> str:
        """Variant and version, such as `act-da@3`."""
        return f"{self.variant}@{self.version}"

    def __repr__(self) -> str:
        names = "no speakers" if self.without_classifier else f"{len(self.speakers)} speakers"
        return f"<ModelInfo {self.name}: {names}, {len(self.stages)} stages, {self.sample_rate} Hz>"


@dataclass(frozen=True)
class Limits:
    """The limits of a request."""

    max_bytes: int
    min_seconds: float
    max_seconds: float
    max_requests: int
    """Of one batch call."""


@dataclass(frozen=True)
class Catalogue:
    """The loaded models, the execution provider of ONNX Runtime, and the limits."""

    models: tuple[ModelInfo, ...]
    provider: str
    limits: Limits

    def __repr__(self) -> str:
        return f"<Catalogue on {self.provider}: {', '.join(model.name for model in self.models) or 'no models'}>"
