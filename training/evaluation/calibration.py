"""How sure a network may say it is, and when it should say that it knows nobody: set on dev, measured on test.

A network's *score* of an utterance is its best logit over its head's scale: of the AAM head the cosine between the
embedding and the nearest speaker's weight; of the softmax head, which has no scale, the logit itself (the maximum-logit
score of Vaze et al., "Open-Set Recognition: A Good Closed-Set Classifier Is All You Need", ICLR 2022).

Every utterance is heard clean and once under each kind of interference that its split can supply, at 20, 10 or 0 dB in
turn. Strangers are the talkers from outside the speaker set (clips of kind "speech" whose speaker is named); where a
split has fewer than three, the best score among the *other* speakers stands for a stranger's, which flatters the
network: it has learnt to keep those apart. But a threshold on one or two voices is one on how those happen to sound.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Clip, Corpus, Split, spread
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN, Condition, batches, mixtures, supplied_grid
from speakerlens.training.evaluation.detection import DetectionPoint, detection_curve, equal_error, threshold_for
from speakerlens.training.evaluation.reliability import (
    ReliabilityBin,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from speakerlens.training.evaluation.results import Interval, wilson
from speakerlens.training.model.network import SpeakerNetwork

Strangers = Literal["held-out speakers", "known speakers with their own class left out"]
HELD_OUT: Strangers = "held-out speakers"

FALSE_ACCEPTANCE = 0.05
"""Share of strangers' utterances that are taken for a known speaker, unless asked otherwise."""

FEWEST_STRANGERS = 3
"""Held-out speakers in a split, below which its known speakers stand in."""

METHOD = (
    "each dev utterance clean, and under each kind of interference at 20, 10 or 0 dB in turn; temperature: least "
    "negative log-likelihood of the known speakers; threshold: on the best logit over the head's scale, such that at "
    "most the asked share of the strangers' reach it"
)

_SNRS_DB = (20.0, 10.0, 0.0)
_BATCH = 16
_MOST_UTTERANCES = 1000  # of a split: beyond, the figures change less than from one set of speakers to another


@dataclass(frozen=True)
class Calibration:
    """What turns logits into answers.

    Attributes:
        temperature: probabilities are softmax(logits / temperature), the one with the least negative log-likelihood
            (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
        threshold: an utterance whose score (see the module) is below it is of nobody known.
        false_acceptance: the share of strangers' utterances that was asked to reach the threshold, at most.
        strangers: whose scores the threshold rests on.
        stranger_speakers: how many; stranger_utterances: clips of theirs, each heard in several conditions.
        utterances: clips of known speakers that the temperature rests on, each heard in several conditions.
    """

    temperature: float
    threshold: float
    false_acceptance: float
    strangers: Strangers
    stranger_speakers: int
    stranger_utterances: int
    utterances: int


@dataclass(frozen=True)
class OperatingPoint:
    """What the threshold did in one condition.

    Attributes:
        condition: "all", "clean" or a kind of interference.
        false_acceptance: share of strangers' utterances that reached the threshold.
        miss: share of known speakers' utterances that did not.
        misidentified: share of known speakers' utterances that did, but under somebody else's name.
        false_acceptance_interval: Wilson 95 % interval; miss_interval likewise. They take an utterance heard in
            several conditions for one trial, and say nothing about other speakers than those heard.
        known: utterances of known speakers; strangers: of strangers (each counted once, however often heard).
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
    """What a calibration is worth on test utterances and test strangers: plain numbers, ready for JSON.

    Attributes:
        strangers: who they are in the test split; stranger_speakers: how many.
        top1: share of the known speakers' mixtures that were given their true speaker, threshold aside.
        ece_before: expected calibration error over 15 equal bins, at temperature 1; ece_after: at the calibrated one.
        nll_before: mean negative log-likelihood in nats, at temperature 1; nll_after: at the calibrated one.
        bins_before: reliability diagram at temperature 1; bins_after: at the calibrated one.
        curve: false acceptance and miss over rising thresholds; equal_error: where the two are the same.
        points: what the calibrated threshold did: over all conditions, clean, and per kind of interference.
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


class Heard(NamedTuple):
    """Answers to the mixtures of some clips.

    logits: [n, classes]; embeddings: [n, size]; labels: the speakers, [n]; clips: whose mixture each is;
    kinds: the interference in each.
    """

    logits: Tensor
    embeddings: Tensor
    labels: Tensor
    clips: tuple[Clip, ...]
    kinds: tuple[str, ...]


class _Trial(NamedTuple):
    """A split as the network hears it: the known speakers' answers, and both sides' scores.

    scores: of the known speakers' mixtures, [n]; stranger_scores: [m], stranger_kinds: the interference in each.
    """

    known: Heard
    utterances: int
    scores: Tensor
    stranger_scores: Tensor
    stranger_kinds: tuple[str, ...]
    strangers: Strangers
    stranger_speakers: int
    stranger_utterances: int


def calibrate(
    network: SpeakerNetwork,
    corpus: Corpus,
    speakers: Sequence[str],
    false_acceptance: float = FALSE_ACCEPTANCE,
    advance: Callable[[], None] = lambda: None,
) -> Calibration:
    """Choose temperature and threshold on the dev split.

    Args:
        network: in evaluation mode, on any device.
        corpus: its dev utterances must all be of `speakers`.
        speakers: in the order of the network's classes.
        false_acceptance: share of strangers that may be accepted, between 0 and 1.
        advance: called after each batch, `calibration_steps(corpus, "dev", speakers)` times.

    Raises:
        UserError: the dev split is empty, or has an utterance of nobody among `speakers`.
    """
    trial = _hear(network, corpus, "dev", speakers, advance)
    return Calibration(
        temperature=fit_temperature(trial.known.logits, trial.known.labels),
        threshold=threshold_for(trial.stranger_scores, false_acceptance),
        false_acceptance=false_acceptance,
        strangers=trial.strangers,
        stranger_speakers=trial.stranger_speakers,
        stranger_utterances=trial.stranger_utterances,
        utterances=trial.utterances,
    )


def measure_calibration(
    network: SpeakerNetwork,
    corpus: Corpus,
    speakers: Sequence[str],
    calibration: Calibration,
    advance: Callable[[], None] = lambda: None,
) -> CalibrationReport:
    """Measure a calibration on the test split, which it has not seen.

    Args:
        network: the one that was calibrated.
        corpus: the same; speakers: the same.
        calibration: from `calibrate`.
        advance: called after each batch, `calibration_steps(corpus, "test", speakers)` times.

    Raises:
        UserError: the test split is empty, or has an utterance of nobody among `speakers`.
    """
    trial = _hear(network, corpus, "test", speakers, advance)
    logits, labels = trial.known.logits, trial.known.labels
    right = logits.argmax(dim=1) == labels
    figures = []
    for temperature in (1.0, calibration.temperature):
        log_probability = (logits.double() / temperature).log_softmax(dim=1)
        bins = reliability(log_probability.amax(dim=1).exp(), right)
        figures.append((bins, expected_calibration_error(bins), F.nll_loss(log_probability, labels).item()))
    (bins_before, ece_before, nll_before), (bins_after, ece_after, nll_after) = figures
    return CalibrationReport(
        strangers=trial.strangers,
        stranger_speakers=trial.stranger_speakers,
        top1=right.double().mean().item(),
        ece_before=ece_before,
        ece_after=ece_after,
        nll_before=nll_before,
        nll_after=nll_after,
        bins_before=bins_before,
        bins_after=bins_after,
        curve=detection_curve(trial.scores, trial.stranger_scores),
        equal_error=equal_error(trial.scores, trial.stranger_scores),
        points=_operating_points(trial, right, calibration.threshold),
    )


def calibration_steps(corpus: Corpus, split: Split, speakers: Sequence[str]) -> int:
    """Count the calls of `advance` that going through a split takes."""
    known, strangers = talking(corpus, split, speakers)
    return sum(
        len(batches(group, _BATCH)) * len(conditions)
        for clips in (known, strangers)
        for group, conditions in _plan(corpus, split, clips)
    )


def _hear(
    network: SpeakerNetwork, corpus: Corpus, split: Split, speakers: Sequence[str], advance: Callable[[], None]
) -> _Trial:
    """Let the network hear the known speakers and the strangers of a split."""
    clips, strangers = talking(corpus, split, speakers)
    if not clips:
        raise UserError(f"{corpus.root}: its {split} split is empty; calibration needs at least one utterance there")
    scale = network.head.scale
    known = hear(network, corpus, split, clips, speakers, advance)
    scores = known.logits.amax(dim=1) / scale
    if strangers:
        names = sorted({str(clip.speaker) for clip in strangers})
        heard = hear(network, corpus, split, strangers, names, advance)
        stranger_scores = heard.logits.amax(dim=1) / scale
        counts = (len(names), len(strangers))
        return _Trial(known, len(clips), scores, stranger_scores, heard.kinds, HELD_OUT, *counts)
    others = known.logits.scatter(1, known.labels.unsqueeze(1), -torch.inf).amax(dim=1) / scale
    counts = (len({clip.speaker for clip in clips}), len(clips))
    whose: Strangers = "known speakers with their own class left out"
    return _Trial(known, len(clips), scores, others, known.kinds, whose, *counts)


def talking(corpus: Corpus, split: Split, speakers: Sequence[str]) -> tuple[Sequence[Clip], Sequence[Clip]]:
    """Known speakers' utterances of a split, and strangers', cut to the longest of the former; none of too few."""
    known = spread(corpus.utterances(split), _MOST_UTTERANCES)
    longest = max((clip.duration for clip in known), default=0.0)
    strangers = [
        replace(clip, duration=min(clip.duration, longest))
        for clip in corpus.interference("speech", split)
        if clip.speaker is not None and clip.speaker not in speakers and clip.duration >= SHORTEST_UTTERANCE
    ]
    enough = len({clip.speaker for clip in strangers}) >= FEWEST_STRANGERS
    return known, spread(strangers, _MOST_UTTERANCES) if enough else []


def _plan(
    corpus: Corpus, split: Split, clips: Sequence[Clip]
) -> Iterator[tuple[Sequence[Clip], tuple[Condition, ...]]]:
    """Say which clips are heard in which conditions: all clean, and under each kind at one of the ratios in turn."""
    conditions, _ = supplied_grid(corpus, split)
    kinds = list(dict.fromkeys(condition.kind for condition in conditions if condition != CLEAN))
    for turn in range(len(_SNRS_DB)):
        group = clips[turn :: len(_SNRS_DB)]
        ratios = (_SNRS_DB[(turn + place) % len(_SNRS_DB)] for place in range(len(kinds)))
        yield group, (CLEAN, *(Condition(kind, ratio) for kind, ratio in zip(kinds, ratios, strict=True)))


def hear(
    network: SpeakerNetwork,
    corpus: Corpus,
    split: Split,
    clips: Sequence[Clip],
    names: Sequence[str],
    advance: Callable[[], None],
) -> Heard:
    """Let a network hear clips of a split, whose speakers are among `names`, as calibration does (see the module).

    `advance` is called after each batch.
    """
    device = next(network.parameters()).device
    logits, embeddings, labels = [], [], []
    heard: list[Clip] = []
    kinds: list[str] = []
    with torch.inference_mode():
        for group, conditions in _plan(corpus, split, clips):
            for made in mixtures(corpus, split, names, conditions, _BATCH, group):
                batch = made.to(device)
                answers = network(batch.mixture.audio, batch.lengths)
                logits.append(answers[0].cpu())
                embeddings.append(answers[1].cpu())
                labels.append(made.labels)
                heard += made.clips
                kinds += [made.condition.kind] * len(made.labels)
                advance()
    return Heard(torch.cat(logits), torch.cat(embeddings), torch.cat(labels), tuple(heard), tuple(kinds))


def _operating_points(trial: _Trial, right: Tensor, threshold: float) -> tuple[OperatingPoint, ...]:
    """Count what a threshold does over all mixtures, and by kind of interference."""
    accepted, let_in = trial.scores >= threshold, trial.stranger_scores >= threshold
    points = []
    for condition in ("all", *dict.fromkeys(trial.known.kinds)):
        mine = torch.tensor([condition in ("all", kind) for kind in trial.known.kinds])
        theirs = torch.tensor([condition in ("all", kind) for kind in trial.stranger_kinds])
        false_acceptance = let_in[theirs].double().mean().item()
        miss = 1.0 - accepted[mine].double().mean().item()
        points.append(
            OperatingPoint(
                condition=condition,
                false_acceptance=false_acceptance,
                false_acceptance_interval=wilson(
                    false_acceptance * trial.stranger_utterances, trial.stranger_utterances
                ),
                miss=miss,
                miss_interval=wilson(miss * trial.utterances, trial.utterances),
                misidentified=(accepted & ~right)[mine].double().mean().item(),
                known=trial.utterances,
                strangers=trial.stranger_utterances,
            )
        )
    return tuple(points)
