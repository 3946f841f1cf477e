"""Calibration on the dev split: how sure the model may say it is, and when it should say that it knows nobody."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from training.conditions import CLEAN, Condition, mixtures, supplied_grid
from training.errors import UserError
from training.manifest import Corpus
from training.network import SpeakerNetwork

_SNRS_DB = (20.0, 10.0, 0.0)
_BATCH = 16
METHOD = (
    "temperature: least negative log-likelihood of the dev split, clean and under interference at 20, 10 and 0 dB; "
    "unknown_threshold: equal error rate between the true speaker's logit and the best of the others', clean and at 20 "
    "and 10 dB; the others' stands for a stranger's, so the threshold is optimistic about real strangers"
)


@dataclass(frozen=True)
class Calibration:
    """What turns logits into answers.

    temperature: probabilities are softmax(logits / temperature) (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017). unknown_threshold: on the best logit; below it the speaker is unknown. utterances: mixtures
    it rests on.
    """

    temperature: float
    unknown_threshold: float
    utterances: int


def calibrate(network: SpeakerNetwork, corpus: Corpus, speakers: tuple[str, ...]) -> Calibration:
    """Calibrate a network on the dev split of its corpus; UserError if that split is empty."""
    if not corpus.utterances("dev"):
        raise UserError(f"{corpus.root}: its dev split is empty; calibration needs at least one utterance there")
    supplied, _ = supplied_grid(corpus, "dev")
    conditions = tuple(c for c in supplied if c.snr_db is None or c.snr_db in _SNRS_DB)
    logits, labels, loud = _answers(network, corpus, speakers, conditions)
    true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), -math.inf).amax(dim=1)
    return Calibration(
        temperature=fit_temperature(logits, labels),
        unknown_threshold=equal_error_threshold(true[~loud], others[~loud]),
        utterances=len(labels),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the least negative log-likelihood, between 1/100 and 100.

    The likelihood is convex in the inverse temperature, so a golden-section search on its logarithm finds the minimum.
    """

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(0.01), math.log(100.0)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    for _ in range(40):
        if loss(left) < loss(right):
            high, right = right, left
            left = high - ratio * (high - low)
        else:
            low, left = left, right
            right = low + ratio * (high - low)
    return math.exp((low + high) / 2)


def equal_error_threshold(genuine: Tensor, impostor: Tensor) -> float:
    """The score at which as many genuine scores lie below as impostor scores lie at or above, in shares."""
    candidates = torch.cat([genuine, impostor]).sort().values
    missed = torch.searchsorted(genuine.sort().values, candidates) / len(genuine)
    accepted = 1.0 - torch.searchsorted(impostor.sort().values, candidates) / len(impostor)
    gap = (missed - accepted).abs()
    # Where a range of thresholds is equally good (perfect separation), its middle is the safest.
    best = candidates[gap == gap.min()]
    return float((best[0] + best[-1]) / 2)


def _answers(
    network: SpeakerNetwork, corpus: Corpus, speakers: tuple[str, ...], conditions: tuple[Condition, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, classes], labels [n], and whether the interference was as loud as the speech [n]."""
    logits, labels, loud = [], [], []
    with torch.inference_mode():
        for batch in mixtures(corpus, "dev", speakers, conditions, _BATCH):
            logits.append(network(batch.mixture.audio, batch.lengths)[0])
            labels.append(batch.labels)
            is_loud = batch.condition != CLEAN and batch.condition.snr_db == min(_SNRS_DB)
            loud.append(torch.full((len(batch.labels),), is_loud))
    return torch.cat(logits), torch.cat(labels), torch.cat(loud)
