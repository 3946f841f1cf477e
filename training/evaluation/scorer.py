"""Open-set score on embeddings: probabilistic linear discriminant analysis with two covariances.

The length-normalised embedding of an utterance is modelled as the mean of its speaker plus a deviation within the
speaker, both normal (Brümmer and de Villiers, "The speaker partitioning problem", Odyssey 2010). The score of a speaker
is the logarithm of the likelihood ratio of "this speaker", given the speaker's training utterances, to "any speaker".
It is quadratic in the embedding, so a few arrays hold all of it.

The cosine to a speaker's weight measures every direction alike. Here a direction counts by how much it varies within
speakers and between them: at the same share of out-of-set utterances more known ones pass
(docs/decisions/0055-known-or-not.md).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from speakerlens.measures.scorer import Scorer
from speakerlens.training.data.manifest import Corpus, spread
from speakerlens.training.evaluation.conditions import CLEAN, mixtures
from speakerlens.training.evaluation.workers import batch_size
from speakerlens.training.model.network import SpeakerNetwork

# Utterances of the train split that are embedded, spread over the speakers; fewer of each than FEWEST are no model.
_MOST_UTTERANCES, _FEWEST = 1000, 4
# How much the covariance within speakers is drawn to the sphere of the same size.
_SHRINKAGE = 0.1


def fit_scorer(network: SpeakerNetwork, corpus: Corpus, speakers: Sequence[str]) -> Scorer | None:
    """Fit the model on clean utterances of the train split; None if they are too few.

    Args:
        network: in evaluation mode, on any device.
        corpus: of the training.
        speakers: in the order of the network's classes.
    """
    clips = spread([clip for clip in corpus.utterances("train") if clip.speaker in speakers], _MOST_UTTERANCES)
    counts = {speaker: sum(clip.speaker == speaker for clip in clips) for speaker in speakers}
    if min(counts.values()) < _FEWEST:
        return None
    device = next(network.parameters()).device
    embeddings, labels = [], []
    with torch.inference_mode():
        for made in mixtures(corpus, "train", speakers, (CLEAN,), batch_size(device), clips):
            batch = made.to(device)
            embeddings.append(F.normalize(network(batch.mixture.audio, batch.lengths)[1].cpu().double()))
            labels.append(made.labels)
    return fit(torch.cat(embeddings).numpy(), torch.cat(labels).numpy(), len(speakers))


def fit(units: NDArray[np.float64], labels: NDArray[np.int64], speakers: int) -> Scorer | None:
    """Fit the model on embeddings of length one, [n, size], of speakers 0 to `speakers` - 1; None if they are alike."""
    mean = units.mean(axis=0)
    centred = units - mean
    counts = np.bincount(labels, minlength=speakers)
    means = np.stack([centred[labels == label].mean(axis=0) for label in range(speakers)])
    deviations = centred - means[labels]
    within = deviations.T @ deviations / max(1, len(units) - speakers)
    size = len(within)
    level = np.trace(within) / size
    if level <= np.finfo(np.float32).eps ** 2:
        return None
    within = (1 - _SHRINKAGE) * within + _SHRINKAGE * level * np.eye(size)
    values, vectors = np.linalg.eigh(within)
    whitening = vectors / np.sqrt(values)
    spoken = means @ whitening
    # The means vary with the speakers, and with what the deviations within leave of them.
    between = np.cov(spoken.T) - np.mean(1 / counts) * np.eye(size)
    values, vectors = np.linalg.eigh(between)
    variance = np.maximum(values, 0.0)
    spoken = spoken @ vectors
    # A speaker's mean given the training utterances, and the variance of a further utterance around it.
    weight = counts[:, None] * variance / (counts[:, None] * variance + 1)
    expected = spoken * weight
    around = 1 + np.mean(variance / (counts[:, None] * variance + 1), axis=0)
    constant = -0.5 * (expected**2 / around).sum(axis=1) - 0.5 * np.log(around / (1 + variance)).sum()
    arrays = (mean, whitening @ vectors, 0.5 * (1 / (1 + variance) - 1 / around), expected / around, constant)
    return Scorer(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))
