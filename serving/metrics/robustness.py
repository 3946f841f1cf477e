"""Metrics of robustness: the sound that comes in, how sure the models are, what they looked at, whether they agree.

`serving.robustness` measures; this says what there is to report.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import prometheus_client as prometheus

from speakerlens.serving.metrics.registry import Page

# On the borders of `SNR_BANDS`; the estimate ends at -10 and at 30 dB.
SNR_DECIBELS = (-5, 0, 5, 10, 15, 20, 25, 30)
SPEECH_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Sound is clean of clipping or is not: nought has a bucket of its own, and above it every decade counts.
CLIPPED_RATIOS = (0.0, 0.00001, 0.0001, 0.001, 0.01, 0.05, 0.1, 0.3)
LEVEL_DECIBELS = (-80, -70, -60, -50, -45, -40, -35, -30, -25, -20, -15, -10, -5)
# Telephones end at 3.4 kHz, what was sampled at 8 kHz just below 4, at 11,025 Hz below 5.5, at 16 kHz below 8.
BANDWIDTH_HERTZ = (1000, 2000, 3000, 3600, 4200, 5000, 6000, 7000, 7500, 8000)
# From the shortest that is accepted by default to the longest.
DURATIONS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 10_800.0)
# Models are mostly sure: what tells them apart lies near 1.
PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
MARGINS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
# A thousand speakers that are all the same to a model are 6.9 nats.
ENTROPY_NATS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
# 1 is a map that does not care where interference lies; below, it avoids it.
DELETION_INDICES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
CONCENTRATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

DECISIONS = ("known", "unknown")
WORKS = ("measure", "saliency", "shadow")
OUTCOMES = ("done", "dropped", "failed")
SNR_BANDS = ("below_0", "0_to_5", "5_to_10", "10_to_20", "above_20", "unknown")
AGREEMENTS = ("same", "different")
PROBE_OUTCOMES = ("right", "wrong", "failed")

_Series = tuple[prometheus.Gauge, tuple[str, ...]]
"""A gauge and the values of its labels."""


class Robustness:
    """The metrics of robustness.

    Args:
        page: where they stand.
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
        """A variant is loaded: what counts for it begins at nought, so that its first event is an increase."""
        self.prediction.add_variant(variant)
        self.saliency.add_variant(variant)
        for outcome in PROBE_OUTCOMES:
            self.probes.utterances.labels(variant, outcome)

    def add_pair(self, first: str, second: str) -> None:
        """Two variants, in the order of their names, may be compared from now on."""
        for band, agreement in product(SNR_BANDS, AGREEMENTS):
            self.shadow.labels(first, second, band, agreement)


class Input:
    """The sound of answered requests."""

    def __init__(self, page: Page) -> None:
        self.snr = page.histogram("input_snr_decibels", "Estimated signal-to-noise ratio of the audio.", SNR_DECIBELS)
        self.speech = page.histogram(
            "input_speech_ratio", "Share of the audio in which somebody speaks.", SPEECH_RATIOS
        )
        self.clipped = page.histogram("input_clipped_ratio", "Share of samples that are clipped.", CLIPPED_RATIOS)
        self.level = page.histogram("input_level_decibels", "Level of the audio, in dBFS.", LEVEL_DECIBELS)
        self.bandwidth = page.histogram(
            "input_bandwidth_hertz", "Highest frequency that the audio makes use of.", BANDWIDTH_HERTZ
        )
        self.duration = page.histogram("input_duration_seconds", "Duration of the audio.", DURATIONS)


class Prediction:
    """How sure each variant was."""

    def __init__(self, page: Page) -> None:
        self.top1_probability = page.histogram(
            "prediction_top1_probability", "Calibrated probability of the best speaker.", PROBABILITIES, "variant"
        )
        self.margin = page.histogram(
            "prediction_margin", "Probability of the best speaker less that of the second.", MARGINS, "variant"
        )
        self.entropy = page.histogram(
            "prediction_entropy_nats", "Entropy of the probabilities of all speakers.", ENTROPY_NATS, "variant"
        )
        self.decisions = page.counter(
            "prediction_decisions",
            "Answers by whether the best speaker was above the threshold for unknown ones.",
            "variant",
            "decision",
        )

    def add_variant(self, variant: str) -> None:
        """Begins at nought."""
        for histogram in (self.top1_probability, self.margin, self.entropy):
            histogram.labels(variant)
        for decision in DECISIONS:
            self.decisions.labels(variant, decision)


class Saliency:
    """What each variant looked at."""

    def __init__(self, page: Page) -> None:
        self.deletion_index = page.histogram(
            "saliency_deletion_index",
            "Share of a map that lies on interference (by an estimated floor) over the share of the area it covers.",
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
        """Begins at nought."""
        self.deletion_index.labels(variant)
        self.concentration.labels(variant)


@dataclass(frozen=True)
class ConditionResult:
    """What a round of probes found in one condition, and what the export had found; None is not defined.

    Attributes:
        interference: the kind, `clean` or `resampled`.
        snr: the ratio in decibels as the label has it; empty without interference.
        accuracy: share named right.
        seconds: from an utterance to its speaker, in the mean.
        deletion_index: in the mean, by the true mask.
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
    """How the newest version of each variant did on its own sealed probes, in the last round."""

    def __init__(self, page: Page) -> None:
        condition = ("variant", "interference", "snr")
        self.accuracy = page.gauge("probe_accuracy_ratio", "Share of probes named right.", *condition)
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
            "probe_latency_seconds", "Mean time of a probe, from asking to its answer.", *condition
        )
        self.utterances = page.counter("probe_utterances", "Probes computed, by how they ended.", "variant", "outcome")
        self.round = page.gauge(
            "probe_round_timestamp_seconds", "When the last round of probes ended, in seconds since 1970.", "variant"
        )
        self.round_duration = page.gauge("probe_round_duration_seconds", "Duration of the last round.", "variant")
        self.period = page.gauge("probe_period_seconds", "From the beginning of one round to the next; 0 is never.")
        self._shown: dict[str, set[_Series]] = {}

    @property
    def shown(self) -> set[str]:
        """The variants of which anything is shown."""
        return {variant for variant, series in self._shown.items() if series}

    def show(self, variant: str, results: Sequence[ConditionResult], seconds: float) -> None:
        """What a variant's round of so many seconds found, which has just ended; a scrape never finds a gap."""
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
        """A round of a variant is to come; as long as there was none, the last one ended at nought."""
        self._set(variant, {(self.round, (variant,)): 0.0})

    def forget(self, variant: str) -> None:
        """Shows nothing of a variant any more; what counts stays."""
        self._set(variant, {})

    def _set(self, variant: str, values: Mapping[_Series, float]) -> None:
        for (gauge, labels), value in values.items():
            gauge.labels(*labels).set(value)
        for gauge, labels in self._shown.get(variant, set()) - values.keys():
            gauge.remove(*labels)
        self._shown[variant] = set(values)
