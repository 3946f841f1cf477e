"""Metrics of robustness: input sound, confidence, saliency, agreement between variants, and probes.

The measuring is done in `serving.robustness`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import prometheus_client as prometheus

from speakerlens.serving.metrics.registry import Page

# Includes the borders of `SNR_BANDS`; the estimate ranges from -10 to 30 dB.
SNR_DECIBELS = (-5, 0, 5, 10, 15, 20, 25, 30)
SPEECH_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Unclipped audio (0) has a bucket of its own; above it, one per decade.
CLIPPED_RATIOS = (0.0, 0.00001, 0.0001, 0.001, 0.01, 0.05, 0.1, 0.3)
LEVEL_DECIBELS = (-80, -70, -60, -50, -45, -40, -35, -30, -25, -20, -15, -10, -5)
# Telephone speech ends at 3.4 kHz; audio sampled at 8, 11.025 and 16 kHz just below 4, 5.5 and 8 kHz.
BANDWIDTH_HERTZ = (1000, 2000, 3000, 3600, 4200, 5000, 6000, 7000, 7500, 8000)
# From the shortest to the longest audio accepted by default.
DURATIONS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 10_800.0)
# Most probabilities lie near 1.
PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
MARGINS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
# A uniform distribution over 1,000 speakers has 6.9 nats.
ENTROPY_NATS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
# At 1 the map ignores where the interference lies; below, it avoids it.
DELETION_INDICES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
CONCENTRATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

SPEECH = ("found", "none")
DECISIONS = ("known", "unknown")
WORKS = ("measure", "saliency", "shadow")
OUTCOMES = ("done", "dropped", "failed")
SNR_BANDS = ("below_0", "0_to_5", "5_to_10", "10_to_20", "above_20", "unknown")
AGREEMENTS = ("same", "different")
PROBE_OUTCOMES = ("right", "wrong", "failed")

_Series = tuple[prometheus.Gauge, tuple[str, ...]]
"""A gauge and the values of its labels."""


class Robustness:
    """All metrics of robustness.

    Args:
        page: creates the metrics.
    """

    def __init__(self, page: Page) -> None:
        self.input = Input(page)
        self.prediction = Prediction(page)
        self.saliency = Saliency(page)
        self.probes = Probes(page)
        self.background = page.counter(
            "background",
            "Work beside the requests: answers measured, saliency samples, shadow comparisons.",
            "work",
            "outcome",
        )
        self.shadow = page.counter(
            "shadow_comparisons",
            "Pairs of variants that answered the same audio, by whether they name the same speaker.",
            "first",
            "second",
            "snr_band",
            "agreement",
        )
        for labels in product(WORKS, OUTCOMES):
            self.background.labels(*labels)

    def add_variant(self, variant: str) -> None:
        """Start the counters of a loaded variant at 0, so that its first event is an increase."""
        self.prediction.add_variant(variant)
        self.saliency.add_variant(variant)
        for outcome in PROBE_OUTCOMES:
            self.probes.utterances.labels(variant, outcome)

    def add_pair(self, first: str, second: str) -> None:
        """Start the counters of two variants that may be compared, in the order of their names, at 0."""
        for band, agreement in product(SNR_BANDS, AGREEMENTS):
            self.shadow.labels(first, second, band, agreement)


class Input:
    """Sound measures of answered requests."""

    def __init__(self, page: Page) -> None:
        self.snr = page.histogram("input_snr_decibels", "Estimated signal-to-noise ratio of the audio.", SNR_DECIBELS)
        self.speech = page.histogram("input_speech_ratio", "Share of the audio that is speech.", SPEECH_RATIOS)
        self.clipped = page.histogram("input_clipped_ratio", "Share of samples that are clipped.", CLIPPED_RATIOS)
        self.level = page.histogram("input_level_decibels", "Level of the audio, in dBFS.", LEVEL_DECIBELS)
        self.bandwidth = page.histogram(
            "input_bandwidth_hertz", "Highest frequency in use in the audio.", BANDWIDTH_HERTZ
        )
        self.duration = page.histogram("input_duration_seconds", "Duration of the audio.", DURATIONS)
        self.recordings = page.counter(
            "input_recordings", "Recordings and streams answered, by whether any window of them holds speech.", "speech"
        )
        for speech in SPEECH:
            self.recordings.labels(speech)


class Prediction:
    """Confidence of each variant."""

    def __init__(self, page: Page) -> None:
        self.top1_probability = page.histogram(
            "prediction_top1_probability", "Calibrated probability of the top speaker.", PROBABILITIES, "variant"
        )
        self.margin = page.histogram(
            "prediction_margin", "Probability of the top speaker minus that of the second.", MARGINS, "variant"
        )
        self.entropy = page.histogram(
            "prediction_entropy_nats", "Entropy of the probabilities of all speakers.", ENTROPY_NATS, "variant"
        )
        self.decisions = page.counter(
            "prediction_decisions",
            "Answers by whether the top score reached the open-set threshold.",
            "variant",
            "decision",
        )

    def add_variant(self, variant: str) -> None:
        """Start the counters of a variant at 0."""
        for histogram in (self.top1_probability, self.margin, self.entropy):
            histogram.labels(variant)
        for decision in DECISIONS:
            self.decisions.labels(variant, decision)


class Saliency:
    """Measures of each variant's saliency maps."""

    def __init__(self, page: Page) -> None:
        self.deletion_index = page.histogram(
            "saliency_deletion_index",
            "Share of a map on interference (by an estimated noise floor) over the share of the area it covers.",
            DELETION_INDICES,
            "variant",
        )
        self.concentration = page.histogram(
            "saliency_concentration",
            "Gini coefficient of a map: 0 is flat, 1 is a single bin.",
            CONCENTRATIONS,
            "variant",
        )

    def add_variant(self, variant: str) -> None:
        """Start the counters of a variant at 0."""
        self.deletion_index.labels(variant)
        self.concentration.labels(variant)


@dataclass(frozen=True)
class ConditionResult:
    """Results of one round of probes in one condition, and at export; None where a value is not defined.

    Attributes:
        interference: its kind, `clean` or `resampled`.
        snr: label of the SNR in decibels; empty without interference.
        accuracy: share identified correctly.
        seconds: mean time from audio to prediction.
        deletion_index: mean, by the true mask.
        expected_accuracy: at export.
        expected_deletion_index: at export.
    """

    interference: str
    snr: str
    accuracy: float
    seconds: float | None
    deletion_index: float | None
    expected_accuracy: float
    expected_deletion_index: float | None


class Probes:
    """Results of the last round of probes of each variant's newest version."""

    def __init__(self, page: Page) -> None:
        condition = ("variant", "interference", "snr")
        self.accuracy = page.gauge("probe_accuracy_ratio", "Share of probes identified correctly.", *condition)
        self.expected_accuracy = page.gauge(
            "probe_expected_accuracy_ratio", "The same share when the bundle was exported.", *condition
        )
        self.deletion_index = page.gauge(
            "probe_deletion_index", "Deletion index of the probes' maps, by the true mask of interference.", *condition
        )
        self.expected_deletion_index = page.gauge(
            "probe_expected_deletion_index", "The same index when the bundle was exported.", *condition
        )
        self.latency = page.gauge(
            "probe_latency_seconds", "Mean time of a probe, from audio to prediction.", *condition
        )
        self.utterances = page.counter("probe_utterances", "Probes computed, by outcome.", "variant", "outcome")
        self.round = page.gauge(
            "probe_round_timestamp_seconds", "When the last round of probes ended, in seconds since 1970.", "variant"
        )
        self.round_duration = page.gauge("probe_round_duration_seconds", "Duration of the last round.", "variant")
        self.period = page.gauge("probe_period_seconds", "Time between the starts of two rounds; 0 for no probes.")
        self._shown: dict[str, set[_Series]] = {}

    @property
    def shown(self) -> set[str]:
        """The variants with results shown."""
        return {variant for variant, series in self._shown.items() if series}

    def show(self, variant: str, results: Sequence[ConditionResult], seconds: float) -> None:
        """Show the results of a round that took `seconds` and has just ended; no scrape finds a gap."""
        new: dict[_Series, float | None] = {
            (gauge, (variant, each.interference, each.snr)): value
            for each in results
            for gauge, value in (
                (self.accuracy, each.accuracy),
                (self.expected_accuracy, each.expected_accuracy),
                (self.deletion_index, each.deletion_index),
                (self.expected_deletion_index, each.expected_deletion_index),
                (self.latency, each.seconds),
            )
        }
        new |= {(self.round, (variant,)): time.time(), (self.round_duration, (variant,)): seconds}
        self._set(variant, {series: value for series, value in new.items() if value is not None})

    def begin(self, variant: str) -> None:
        """Show a variant whose first round is to come: its last round ended at 0."""
        self._set(variant, {(self.round, (variant,)): 0.0})

    def forget(self, variant: str) -> None:
        """Remove the results of a variant; its counters remain."""
        self._set(variant, {})

    def _set(self, variant: str, values: Mapping[_Series, float]) -> None:
        for (gauge, labels), value in values.items():
            gauge.labels(*labels).set(value)
        for gauge, labels in self._shown.get(variant, set()) - values.keys():
            gauge.remove(*labels)
        self._shown[variant] = set(values)
