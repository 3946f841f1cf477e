"""Enrol new speakers into a trained network: a classification head from a few utterances of each.

The weight of a speaker is the mean of the length-normalised embeddings, so the AAM head's score is the cosine to a
centroid, as in speaker verification with several enrolment utterances. The factor on the cosines is the one with the
least negative log-likelihood on the dev split.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.calibration import calibrate
from speakerlens.training.evaluation.conditions import CLEAN, batches, mixtures
from speakerlens.training.evaluation.predictions import prediction_steps
from speakerlens.training.evaluation.workers import batch_size
from speakerlens.training.model.heads import AAMHead
from speakerlens.training.model.network import SpeakerNetwork


def enrol(network: SpeakerNetwork, corpus: Corpus, speakers: Sequence[str], advance: Callable[[], None]) -> float:
    """Set the AAM head of a network to the speakers of a corpus; return the best factor on its cosines.

    Args:
        network: in evaluation mode, with an AAM head of as many classes as speakers, whose scale is 1.
        corpus: its train utterances are the enrolment, its dev utterances choose the factor.
        speakers: in the order of the classes; those of the corpus, all of them.
        advance: called after each of `enrolment_steps` batches.

    Raises:
        UserError: a speaker has no train utterance, or the dev split is empty.
    """
    enrolled = {clip.speaker for clip in corpus.utterances("train")}
    missing = [speaker for speaker in speakers if speaker not in enrolled]
    if missing:
        raise UserError(f"{corpus.root}: no train utterance of {', '.join(missing[:5])} to enrol with")
    assert isinstance(network.head, AAMHead)
    with torch.no_grad():
        network.head.weight.copy_(class_means(network, corpus, speakers, advance))
    return 1.0 / calibrate(network, corpus, speakers, advance=advance).temperature


def enrolment_steps(corpus: Corpus, speakers: Sequence[str], device: torch.device) -> int:
    """Return the number of batches in `enrol`."""
    means = len(batches(corpus.utterances("train"), batch_size(device)))
    return means + prediction_steps(corpus, "dev", speakers, device)


def class_means(
    network: SpeakerNetwork, corpus: Corpus, speakers: Sequence[str], advance: Callable[[], None]
) -> Tensor:
    """Return the mean of the length-normalised embeddings of each speaker's train utterances, [speakers, embedding]."""
    device = next(network.parameters()).device
    sums: Tensor | None = None
    counts = torch.zeros(len(speakers), 1)
    with torch.inference_mode():
        for made in mixtures(corpus, "train", speakers, (CLEAN,), batch_size(device)):
            batch = made.to(device)
            directions = F.normalize(network(batch.mixture.audio, batch.lengths)[1]).cpu()
            if sums is None:
                sums = torch.zeros(len(speakers), directions.shape[1])
            sums.index_add_(0, made.labels, directions)
            counts.index_add_(0, made.labels, torch.ones(len(made.labels), 1))
            advance()
    assert sums is not None, "every speaker has an utterance"
    return sums / counts
