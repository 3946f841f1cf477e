"""Identification accuracy under interference: ranks of the true speaker, scores per condition, and their means."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN_KIND, Condition, MixtureBatch, batches, mixtures
from speakerlens.training.evaluation.intervals import Interval, bootstrap_means, percentile_interval, wilson
from speakerlens.training.evaluation.workers import Advance, Networks, batch_size, device_and_front_end, for_each

TOP = 5


@dataclass(frozen=True)
class Score:
    """Accuracy of one variant in one condition.

    Attributes:
        variant: its name in this evaluation.
        interference: "clean" or a kind of interference.
        snr_db: the ratio in decibels; None for "clean".
        top1: share of the utterances whose speaker had the highest score, in [0, 1]; top5: was among the first five.
        utterances: how many were tested.
        top1_interval: Wilson 95 % interval of the share; top5_interval likewise.
    """

    variant: str
    interference: str
    snr_db: float | None
    top1: float
    top5: float
    utterances: int
    top1_interval: Interval
    top5_interval: Interval


@dataclass(frozen=True)
class Summary:
    """Accuracy of one variant over conditions of equal weight.

    Attributes:
        variant: its name in this evaluation.
        clean: top-1 on clean speech; clean_interval: its Wilson 95 % interval.
        mean: mean top-1 over all conditions with interference; mean_interval: 95 %, by bootstrap over the utterances.
        kinds: mean top-1 over the ratios of each kind; kind_intervals: likewise.
    """

    variant: str
    clean: float
    clean_interval: Interval
    mean: float
    mean_interval: Interval
    kinds: Mapping[str, float]
    kind_intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class Difference:
    """Mean top-1 under interference of `variant` minus that of `reference`, on the same mixtures.

    The interval is 95 %, by bootstrap over the utterances, paired.
    """

    variant: str
    reference: str
    mean: float
    interval: Interval


class Answers(NamedTuple):
    """Answers of every network to every test utterance in every condition; arrays [network, condition, utterance].

    Attributes:
        ranks: of the true speaker among all, int64; 1 is best, a tie counts against it.
        predicted: index of the speaker with the highest score, int64.
        confidence: calibrated probability of that speaker, float64.
        labels: index of the true speaker, int64 [utterance].
    """

    ranks: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    labels: NDArray[np.int64]


def accuracy_steps(networks: Networks, corpus: Corpus, conditions: Sequence[Condition]) -> int:
    """Return the number of batches in `answer_all`."""
    device, _ = device_and_front_end(networks)
    return len(batches(corpus.utterances("test"), batch_size(device))) * len(conditions)


def true_ranks(
    networks: Networks, corpus: Corpus, speakers: Sequence[str], conditions: Sequence[Condition], advance: Advance
) -> NDArray[np.int64]:
    """Return the ranks of `answer_all`."""
    return answer_all(networks, corpus, speakers, conditions, dict.fromkeys(networks, 1.0), advance).ranks


def answer_all(
    networks: Networks,
    corpus: Corpus,
    speakers: Sequence[str],
    conditions: Sequence[Condition],
    temperatures: Mapping[str, float],
    advance: Advance,
) -> Answers:
    """Run every network on every test utterance in every condition; each mixture is made once.

    Args:
        networks: by name; the front end runs once for all of them.
        corpus: its test split is used.
        speakers: the labels, in order.
        conditions: those to test.
        temperatures: by name; the probabilities are softmax(logits / temperature).
        advance: called after each of `accuracy_steps` batches.

    Raises:
        UserError: a network's logits are NaN or infinite.
    """
    shape = (len(networks), len(conditions), len(corpus.utterances("test")))
    ranks, predicted = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    confidence, labels = np.zeros(shape), np.zeros(shape[2], dtype=np.int64)
    device, front_end = device_and_front_end(networks)
    column = {condition: index for index, condition in enumerate(conditions)}

    @torch.inference_mode()
    def answer(made: MixtureBatch) -> None:
        batch = made.to(device)
        own, at = made.indices.numpy(), column[batch.condition]
        labels[own] = made.labels.numpy()
        features, frames = front_end(batch.mixture.audio, batch.lengths)
        for row, (name, network) in enumerate(networks.items()):
            logits = network.logits(network.encoder(features, frames, masked=True).embedding)
            if not torch.isfinite(logits).all():
                raise UserError(f"{name}: its scores are NaN or infinite under {batch.condition}; train it again")
            ranks[row, at, own] = ranks_of(logits, batch.labels)
            best = (logits.double() / temperatures[name]).softmax(dim=1).max(dim=1)
            predicted[row, at, own], confidence[row, at, own] = best.indices.cpu().numpy(), best.values.cpu().numpy()

    for_each(mixtures(corpus, "test", speakers, conditions, batch_size(device)), answer, device, advance)
    return Answers(ranks, predicted, confidence, labels)


def ranks_of(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Return the rank of each row's true class, int64 [batch]; 1 is best, a tie counts against it.

    Args:
        logits: [batch, classes].
        labels: true classes, [batch].
    """
    ranks: NDArray[np.int64] = (logits >= logits.gather(1, labels[:, None])).sum(dim=1).cpu().numpy()
    return ranks


def score_all(variants: Sequence[str], conditions: Sequence[Condition], ranks: NDArray[np.int64]) -> tuple[Score, ...]:
    """Return the accuracy of each variant in each condition.

    Args:
        variants: names.
        conditions: in the order of `ranks`.
        ranks: of the true speaker, 1 is best, [variant, condition, utterance].
    """
    trials = ranks.shape[2]
    scores = []
    for (row, variant), (column, condition) in itertools.product(enumerate(variants), enumerate(conditions)):
        first, among = (int((ranks[row, column] <= k).sum()) for k in (1, TOP))
        scores.append(
            Score(
                variant,
                condition.kind,
                condition.snr_db,
                first / trials,
                among / trials,
                trials,
                wilson(first, trials),
                wilson(among, trials),
            )
        )
    return tuple(scores)


def summarise(
    variants: Sequence[str], conditions: Sequence[Condition], ranks: NDArray[np.int64]
) -> tuple[tuple[Summary, ...], tuple[Difference, ...]]:
    """Return the mean top-1 of each variant, and the difference of every two; arguments as for `score_all`."""
    hits = (ranks <= 1).astype(np.float64)
    kinds = list(dict.fromkeys(condition.kind for condition in conditions if condition.kind != CLEAN_KIND))
    of_kind = {kind: [i for i, condition in enumerate(conditions) if condition.kind == kind] for kind in kinds}
    clean = next(i for i, condition in enumerate(conditions) if condition.kind == CLEAN_KIND)
    corrupted = [i for i in range(len(conditions)) if i != clean]
    by_utterance = hits[:, corrupted].mean(axis=1)
    means, resampled = by_utterance.mean(axis=1), bootstrap_means(by_utterance)
    resampled_kinds = {kind: bootstrap_means(hits[:, columns].mean(axis=1)) for kind, columns in of_kind.items()}
    trials = ranks.shape[2]
    summaries = tuple(
        Summary(
            variant,
            float(hits[row, clean].mean()),
            wilson(int(hits[row, clean].sum()), trials),
            float(means[row]),
            percentile_interval(resampled[row]),
            {kind: float(hits[row, of_kind[kind]].mean()) for kind in kinds},
            {kind: percentile_interval(resampled_kinds[kind][row]) for kind in kinds},
        )
        for row, variant in enumerate(variants)
    )
    differences = tuple(
        Difference(
            variants[row],
            variants[other],
            float(means[row] - means[other]),
            percentile_interval(resampled[row] - resampled[other]),
        )
        for other, row in itertools.combinations(range(len(variants)), 2)
    )
    return summaries, differences
