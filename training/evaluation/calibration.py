"""Temperature and open-set threshold of a network: set on the dev split, measured on the test split.

The *score* of an utterance is that of the speaker with the best logit. It is the logit over its head's scale: for the
AAM head the cosine between the embedding and the speaker's weight; for the softmax head, which has no scale, the logit
itself (the maximum-logit score of Vaze et al., "Open-Set Recognition: A Good Closed-Set Classifier Is All You Need",
ICLR 2022). Or it is the sum of the logit and a log-likelihood ratio (`training.evaluation.scorer`), both in nats, where
that accepts more clean utterances of known speakers.

The threshold rests on out-of-set speakers and on recordings without a speaker; the stricter of the two decides.

Where a split has too few out-of-set speakers, the best score among the *other* known speakers stands in for an
out-of-set score. This is optimistic: the network has learned to separate those speakers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.measures.scorer import Scorer
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.evaluation.conditions import CLEAN
from speakerlens.training.evaluation.intervals import Interval, wilson
from speakerlens.training.evaluation.metrics import (
    DetectionPoint,
    ReliabilityBin,
    detection_curve,
    equal_error,
    expected_calibration_error,
    fit_temperature,
    reliability,
    threshold_for,
)
from speakerlens.training.evaluation.noise import predict_noise
from speakerlens.training.evaluation.predictions import SplitPredictions, predict_split
from speakerlens.training.model.network import SpeakerNetwork

Strangers = Literal["held-out speakers", "known speakers with their own class left out"]
"""Whose scores stand for out-of-set speakers; the names are part of the bundle format."""

HELD_OUT: Strangers = "held-out speakers"
OWN_CLASS_LEFT_OUT: Strangers = "known speakers with their own class left out"

FALSE_ACCEPTANCE = 0.05
"""Default share of out-of-set utterances that the threshold accepts."""

NOISE_ACCEPTANCE = 0.02
"""Share of recordings without a speaker that the threshold accepts."""

OUT_OF_SET_WEIGHT = 0.05
"""Weight of out-of-set utterances and noises in the temperature. They count as any speaker alike."""

Score = Literal["logit", "logit + likelihood ratio"]
"""What the threshold is on; the names are part of the bundle format."""

METHOD = (
    "each dev utterance clean, and under each kind of interference at 20, 10 or 0 dB in turn, and dev noise and music "
    "and made noises alone; temperature: least negative log-likelihood of the known speakers, and with a weight of "
    "0.05 of any speaker alike for the others; threshold: on the score of the best speaker (logit over the head's "
    "scale, or logit plus log-likelihood ratio by two-covariance PLDA), such that at most the given shares of "
    "out-of-set utterances and of noises reach it"
)


@dataclass(frozen=True)
class Calibration:
    """Temperature and threshold of a network. The fields are part of the bundle format.

    Attributes:
        temperature: probabilities are softmax(logits / temperature), the one with the least negative log-likelihood
            (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
        threshold: an utterance with a lower score (see the module) is rejected as out-of-set.
        false_acceptance: the share of out-of-set utterances that may reach the threshold.
        strangers: whose scores the threshold rests on.
        stranger_speakers: how many; stranger_utterances: their clips, each tested in several conditions.
        utterances: clips of known speakers that the temperature rests on, each tested in several conditions.
        noises: recordings without a speaker that threshold and temperature rest on as well.
        noise_acceptance: the share of them that may reach the threshold.
        score: what the threshold is on.
    """

    temperature: float
    threshold: float
    false_acceptance: float
    strangers: Strangers
    stranger_speakers: int
    stranger_utterances: int
    utterances: int
    noises: int = 0
    noise_acceptance: float = NOISE_ACCEPTANCE
    score: Score = "logit"


@dataclass(frozen=True)
class OperatingPoint:
    """Error rates at the threshold in one condition.

    Attributes:
        condition: "all", "clean" or a kind of interference.
        false_acceptance: share of out-of-set utterances accepted.
        miss: share of known speakers' utterances rejected.
        misidentified: share of known speakers' utterances accepted as another speaker.
        false_acceptance_interval: Wilson 95 % interval; miss_interval likewise. They count an utterance tested in
            several conditions as one trial, and do not cover other speakers than those tested.
        known: utterances of known speakers; strangers: out-of-set utterances; each counted once.
    """

    condition: str
    false_acceptance: float
    false_acceptance_interval: Interval
    miss: float
    miss_interval: Interval
    misidentified: float
    known: int
    strangers: int


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration measured on the test split; plain numbers, ready for JSON.

    Attributes:
        strangers: whose scores stand for out-of-set speakers in the test split; stranger_speakers: how many.
        top1: share of the known speakers' mixtures that were identified, regardless of the threshold.
        ece_before: expected calibration error over 15 equal bins, at temperature 1; ece_after: at the calibrated one.
        nll_before: mean negative log-likelihood in nats, at temperature 1; nll_after: at the calibrated one.
        bins_before: reliability diagram at temperature 1; bins_after: at the calibrated one.
        curve: false acceptance and miss over rising thresholds; equal_error: where the two are equal.
        points: error rates at the calibrated threshold: over all conditions, clean, and per kind of interference.
    """

    strangers: Strangers
    stranger_speakers: int
    top1: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    bins_before: tuple[ReliabilityBin, ...]
    bins_after: tuple[ReliabilityBin, ...]
    curve: tuple[DetectionPoint, ...]
    equal_error: DetectionPoint
    points: tuple[OperatingPoint, ...]


Scored = Callable[[Tensor, Tensor], Tensor]
"""Scores of all speakers, float64 [n, speakers], from logits [n, speakers] and embeddings [n, size]."""


class _Trials(NamedTuple):
    """Predictions of the known speakers of a split, and of what stands for out-of-set speakers.

    In `out_of_set`, own classes are left out where `strangers` says so. utterances: clips of the known speakers.
    """

    known: SplitPredictions
    utterances: int
    out_of_set: SplitPredictions
    strangers: Strangers
    stranger_speakers: int
    stranger_utterances: int

    def scores(self, of: Scored) -> tuple[Tensor, Tensor]:
        """Return the scores of the known speakers' mixtures, [n], and of the out-of-set ones, [m]."""
        left_out = self.out_of_set.labels if self.strangers == OWN_CLASS_LEFT_OUT else None
        return (
            best_scores(of, self.known.logits, self.known.embeddings),
            best_scores(of, self.out_of_set.logits, self.out_of_set.embeddings, left_out),
        )


def best_scores(of: Scored, logits: Tensor, embeddings: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Return the score of the speaker with the best logit, float64 [n].

    Args:
        of: computes the scores of all speakers.
        logits: [n, speakers].
        embeddings: [n, size].
        left_out: a speaker for each utterance who does not count, [n]; None for none.
    """
    considered = logits if left_out is None else logits.scatter(1, left_out.unsqueeze(1), -torch.inf)
    return of(logits, embeddings).gather(1, considered.argmax(dim=1, keepdim=True)).squeeze(1)


def calibrate(
    network: SpeakerNetwork,
    corpus: Corpus,
    speakers: Sequence[str],
    false_acceptance: float = FALSE_ACCEPTANCE,
    advance: Callable[[], None] = lambda: None,
    scorer: Scorer | None = None,
    predicted: Sequence[SplitPredictions] | None = None,
) -> Calibration:
    """Choose temperature, score and threshold on the dev split.

    Args:
        network: in evaluation mode, on any device.
        corpus: its dev utterances must all be of `speakers`.
        speakers: in the order of the network's classes.
        false_acceptance: share of out-of-set utterances that may be accepted, between 0 and 1.
        advance: called after each of `prediction_steps` batches.
        scorer: adds to the logit, where more clean utterances of known speakers are accepted then.
        predicted: from `predict_split` on the dev split, where that was done before.

    Raises:
        UserError: the dev split is empty, or has an utterance of a speaker who is not among `speakers`.
    """
    if predicted is None:
        predicted = predict_split(network, corpus, "dev", speakers, advance)
    trials = _trials(predicted)
    noise = predict_noise(network, corpus, "dev")
    ways: dict[Score, Scored] = {"logit": _by_logit(network)}
    if scorer is not None:
        ways["logit + likelihood ratio"] = lambda logits, embeddings: (
            logits.double() + torch.from_numpy(scorer.scores(embeddings.numpy()))
        )
    clean = torch.tensor([kind == CLEAN.kind for kind in trials.known.kinds])
    found: list[tuple[float, float, Score]] = []
    for score, way in ways.items():
        known, out_of_set = trials.scores(way)
        threshold = max(
            threshold_for(out_of_set, false_acceptance),
            threshold_for(best_scores(way, *noise), NOISE_ACCEPTANCE),
        )
        found.append((float((known >= threshold)[clean].double().mean()), threshold, score))
    # The first of equals: the logit.
    _, threshold, score = max(found, key=lambda each: each[0])
    others = [noise[0]] if trials.strangers == OWN_CLASS_LEFT_OUT else [trials.out_of_set.logits, noise[0]]
    return Calibration(
        temperature=fit_temperature(trials.known.logits, trials.known.labels, others, OUT_OF_SET_WEIGHT),
        threshold=threshold,
        false_acceptance=false_acceptance,
        strangers=trials.strangers,
        stranger_speakers=trials.stranger_speakers,
        stranger_utterances=trials.stranger_utterances,
        utterances=trials.utterances,
        noises=len(noise[0]),
        score=score,
    )


def _by_logit(network: SpeakerNetwork) -> Scored:
    scale = network.head.scale
    return lambda logits, _: logits.double() / scale


def measure_calibration(
    network: SpeakerNetwork,
    corpus: Corpus,
    speakers: Sequence[str],
    calibration: Calibration,
    advance: Callable[[], None] = lambda: None,
) -> CalibrationReport:
    """Measure a calibration on the test split.

    Args:
        network: the calibrated one.
        corpus: the same; speakers: the same.
        calibration: from `calibrate`.
        advance: called after each of `prediction_steps` batches.

    Raises:
        UserError: the test split is empty, or has an utterance of a speaker who is not among `speakers`.
    """
    trials = _trials(predict_split(network, corpus, "test", speakers, advance))
    logits, labels = trials.known.logits, trials.known.labels
    scores = trials.scores(_by_logit(network))
    correct = logits.argmax(dim=1) == labels
    figures = []
    for temperature in (1.0, calibration.temperature):
        log_probability = (logits.double() / temperature).log_softmax(dim=1)
        bins = reliability(log_probability.amax(dim=1).exp(), correct)
        figures.append((bins, expected_calibration_error(bins), F.nll_loss(log_probability, labels).item()))
    (bins_before, ece_before, nll_before), (bins_after, ece_after, nll_after) = figures
    return CalibrationReport(
        strangers=trials.strangers,
        stranger_speakers=trials.stranger_speakers,
        top1=correct.double().mean().item(),
        ece_before=ece_before,
        ece_after=ece_after,
        nll_before=nll_before,
        nll_after=nll_after,
        bins_before=bins_before,
        bins_after=bins_after,
        curve=detection_curve(*scores),
        equal_error=equal_error(*scores),
        points=_operating_points(trials, scores, correct, calibration.threshold),
    )


def _trials(predicted: Sequence[SplitPredictions]) -> _Trials:
    """Return the trials in the predictions of a split."""
    known, clips = predicted[0], len(set(predicted[0].clips))
    if len(predicted) > 1:
        others = predicted[1]
        count = len({clip.speaker for clip in others.clips})
        return _Trials(known, clips, others, HELD_OUT, count, len(set(others.clips)))
    return _Trials(known, clips, known, OWN_CLASS_LEFT_OUT, len({clip.speaker for clip in known.clips}), clips)


def _operating_points(
    trials: _Trials, scores: tuple[Tensor, Tensor], correct: Tensor, threshold: float
) -> tuple[OperatingPoint, ...]:
    """Return the error rates at a threshold over all mixtures, and by kind of interference; `correct` is bool [n]."""
    accepted, falsely_accepted = (each >= threshold for each in scores)
    points = []
    for condition in ("all", *dict.fromkeys(trials.known.kinds)):
        known = torch.tensor([condition in ("all", kind) for kind in trials.known.kinds])
        out_of_set = torch.tensor([condition in ("all", kind) for kind in trials.out_of_set.kinds])
        false_acceptance = falsely_accepted[out_of_set].double().mean().item()
        miss = 1.0 - accepted[known].double().mean().item()
        tested = trials.stranger_utterances
        points.append(
            OperatingPoint(
                condition=condition,
                false_acceptance=false_acceptance,
                false_acceptance_interval=wilson(false_acceptance * tested, tested),
                miss=miss,
                miss_interval=wilson(miss * trials.utterances, trials.utterances),
                misidentified=(accepted & ~correct)[known].double().mean().item(),
                known=trials.utterances,
                strangers=tested,
            )
        )
    return tuple(points)
