"""A model bundle as a value: what a checked `bundle.json` and `baseline.json` say, and how a bundle can be unfit.

Reading and checking is done by `serving.models.reader`; opening the graphs is done by the engine.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.distribution import Bins
from speakerlens.measures.precision import FP32
from speakerlens.measures.probes import ProbeSet
from speakerlens.measures.scorer import Scorer
from speakerlens.measures.search import SearchCalibration

SAMPLE_RATE = 16_000
"""Sample rate of all audio that reaches a model, in Hz."""

PREDICT, EXPLAIN, VERIFY = "predict.onnx", "explain.onnx", "verify.onnx"
STAGES = ("s1", "s2", "s3", "s4")
# As in the schema.
VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Fault(StrEnum):
    """What is wrong with a bundle; the values of the metric's label `reason`."""

    UNREADABLE = "unreadable"
    DIGEST = "digest"
    MANIFEST = "manifest"
    MISPLACED = "misplaced"
    PARITY = "parity"
    BASELINE = "baseline"
    PROBES = "probes"
    GRAPH = "graph"
    PRECISION = "precision"

    @property
    def may_be_transient(self) -> bool:
        """Whether a bundle that is still being copied shows this fault."""
        return self in (Fault.UNREADABLE, Fault.DIGEST)


class BundleError(Exception):
    """A bundle that must not be served.

    Args:
        message: one sentence that says why.
        fault: the kind of reason.
    """

    def __init__(self, message: str, fault: Fault = Fault.GRAPH) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class Distribution:
    """How one measure was distributed at export.

    Attributes:
        bins: of the histogram.
        counts: values in each bin, [len(bins.edges) + 1].
        samples: sum of the counts.
        mean: of the values; None without values.
    """

    bins: Bins
    counts: tuple[int, ...]
    samples: int
    mean: float | None


@dataclass(frozen=True)
class ExpectedProbe:
    """The model's results on its probes in one condition, measured at export.

    Attributes:
        interference: `clean`, `resampled` or a kind of interference.
        snr_db: in decibels; None without interference.
        utterances: number of probes.
        accuracy: share identified correctly, 0 to 1.
        deletion_index: mean over the probes; None where it is not defined.
    """

    interference: str
    snr_db: float | None
    utterances: int
    accuracy: float
    deletion_index: float | None


@dataclass(frozen=True)
class Baseline:
    """The distribution of each measure on clean speech, by the measure's name, and the expected probe results."""

    clean: Mapping[str, Distribution]
    probes: tuple[ExpectedProbe, ...]


@dataclass(frozen=True)
class StageSpec:
    """Where a saliency map is taken.

    Attributes:
        name: `s1` to `s4`.
        tap: module of the network whose output is used.
        rows: frequency bins of the native map.
        stride: log-mel frames per column of the native map.
    """

    name: str
    tap: str
    rows: int
    stride: int


class ThresholdBasis(StrEnum):
    """Whose utterances a threshold was set on; NONE: there is no threshold, as there were no recordings."""

    OUT_OF_SET = "out-of-set speakers"
    KNOWN = "known speakers"
    NONE = "none"


@dataclass(frozen=True)
class Calibration:
    """How temperature and thresholds were set.

    Attributes:
        temperature: probabilities are softmax(logits / temperature).
        threshold: a top score below it means that the speaker is not one of the model's.
        false_acceptance: share of out-of-set utterances that may reach the threshold.
        basis: whose utterances the threshold rests on.
        speakers: how many these are.
        utterances: of these speakers.
        noises: recordings without a speaker that the threshold rests on as well.
        noise_acceptance: share of them that may reach the threshold.
        scorer: adds to the logits in what the threshold is on; None: that is logits over the objective's scale.
    """

    temperature: float
    threshold: float
    false_acceptance: float
    basis: ThresholdBasis
    speakers: int
    utterances: int
    noises: int
    noise_acceptance: float
    scorer: Scorer | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Precision:
    """Graphs of a bundle in another number format than float32.

    Attributes:
        files: in place of the float32 graphs, by their names; a graph that is not here is computed in float32.
        misses: a phrase for each measured figure that misses the bundle's floor.
        predict_time: processor time of `predict` over that in float32, where the bundle was exported.
    """

    files: Mapping[str, str]
    misses: tuple[str, ...]
    predict_time: float


@dataclass(frozen=True)
class Bundle:
    """One exported version of a variant, checked.

    Attributes:
        speakers: of the classifier's classes, in order; empty for a network without a classifier.
        frame_length: of the log-mel front end, in samples at 16 kHz.
        frame_shift: likewise.
        stages: S1 to S4.
        fused_stages: names of the stages whose mean is the fused map.
        min_samples: shortest audio that the graphs accept.
        score_scale: of the objective.
        calibration: temperature and threshold of the classifier, and what they rest on; None without a classifier.
        verification_thresholds: pairs, ascending: utterances in the reference (1 first), and the cosine from which an
            utterance is accepted as the reference's speaker; empty if the export had no recordings.
        verification_basis: whose pairs these thresholds rest on.
        search: calibration of open-set search; None if the export had too few out-of-set speakers for one.
        digest: SHA-256 of bundle.json, which has those of all other files.
        probes: None if the bundle has none.
        precisions: beside float32, by name: `int8`, `fp16`.
        precision: in which it is served: of the scores, and of the maps where the bundle has graphs for them in it.
    """

    folder: Path
    variant: str
    version: int
    speakers: tuple[str, ...]
    frame_length: int
    frame_shift: int
    mel_centres_hz: tuple[float, ...]
    embedding_size: int
    stages: tuple[StageSpec, ...]
    fused_stages: tuple[str, ...]
    min_samples: int
    score_scale: float
    calibration: Calibration | None
    verification_thresholds: tuple[tuple[int, float], ...]
    verification_basis: ThresholdBasis
    code_revision: str
    training_data_digest: str
    digest: str
    # The digest covers both.
    baseline: Baseline = field(compare=False, repr=False)
    probes: ProbeSet | None = field(compare=False, repr=False)
    search: SearchCalibration | None = field(default=None, compare=False, repr=False)
    precisions: Mapping[str, Precision] = field(default_factory=dict, compare=False, repr=False)
    precision: str = FP32

    def file(self, graph: str) -> str:
        """Return the file that computes a graph, named as in float32, in the precision that is served."""
        return graph if self.precision == FP32 else self.precisions[self.precision].files.get(graph, graph)

    def borrows_scores(self, graph: str) -> bool:
        """Return whether a graph is in float32 although another precision is served, so that its scores are not its."""
        return self.precision != FP32 and self.file(graph) == graph

    def open_set_scores(self, logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what the threshold is on, for each speaker, float64 [speakers], from logits [speakers]."""
        scorer = self.classification.scorer
        values = logits.astype(np.float64)
        return values / self.score_scale if scorer is None else values + scorer.scores(embedding)

    def open_set_score(self, logits: NDArray[np.float32], embedding: NDArray[np.float32], speaker: int) -> float:
        """Return the score of one speaker, as `open_set_scores` does."""
        scorer, value = self.classification.scorer, float(logits[speaker])
        return value / self.score_scale if scorer is None else value + scorer.score(embedding, speaker)

    @property
    def has_classifier(self) -> bool:
        """Whether the network names speakers; otherwise it only embeds and compares."""
        return bool(self.speakers)

    @property
    def classification(self) -> Calibration:
        """The calibration of the classifier; only for a model that has one."""
        assert self.calibration is not None, "a model without a classifier is not asked who is speaking"
        return self.calibration

    @property
    def temperature(self) -> float:
        """The temperature of the classifier's probabilities."""
        return self.classification.temperature

    @property
    def name(self) -> str:
        """`variant/version`, for logs and messages."""
        return f"{self.variant}/{self.version}"

    @property
    def mel_bins(self) -> int:
        """Rows of the log-mel features."""
        return len(self.mel_centres_hz)

    def frames(self, samples: int) -> int:
        """Return the number of whole log-mel frames in `samples` at 16 kHz."""
        return 1 + (samples - self.frame_length) // self.frame_shift

    def columns(self, samples: int, stage: StageSpec) -> int:
        """Return the number of columns of a stage's native map for `samples` at 16 kHz."""
        return -(-self.frames(samples) // stage.stride)
